"""The smallest distillation, for runs of it: a student's denoiser is pulled to its teacher's on normal noise."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxar.methods import _denoiser as denoisers
from jaxar.methods import analytic
from jaxar.methods.base import LossAux, LossSpec, Method

Sampling = analytic.Sampling


@dataclasses.dataclass(frozen=True)
class Model:
    pass


@dataclasses.dataclass(frozen=True)
class Config:
    pass


@dataclasses.dataclass(frozen=True)
class Matching(Method):
    teacher: denoisers.Denoiser
    student: denoisers.Denoiser

    def players(self):
        return self.student.players()

    def init(self, key):
        return self.student.init(key)

    def losses(self):
        return (LossSpec("matching", self.loss, ("model",)),)

    def loss(self, variables, batch, key, step):
        x_key, t_key = jax.random.split(key)
        labels = batch["label"]
        x = jax.random.normal(x_key, (len(labels), *self.student.canvas.shape))
        t = jax.random.uniform(t_key, labels.shape)
        wanted = self.teacher.denoise(variables["teacher"], x, t, labels)
        return jnp.mean((self.student.denoise(variables["model"], x, t, labels) - wanted) ** 2), LossAux({})

    def evaluate(self, variables, batch, key):
        return {"loss": self.loss(variables, batch, key, 0)[0]}

    def sample(self, variables, cond, keys, options):
        x = denoisers.generate(self.student, variables["model"], denoisers.noise_of(self.student, keys), cond)
        return self.student.canvas.tokens(x)

    def network_calls(self, options):
        return 1


def build(config, model, task):
    teacher = denoisers.of_teacher(task, "matching")
    return Matching(teacher, teacher.student())
