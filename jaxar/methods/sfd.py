"""Score forgetting distillation: a one-step student learns its teacher's classes but one, for which it draws another.

    loss = score identity of (x, c) with the teacher of c'    c' = `override` where c = `forget`, else c

The score is trained with the class that the student was asked for, so the student's law of the class to forget becomes
the teacher's law of another. Both losses count samples of that class with their own weight.

Reference: Chen et al., Score Forgetting Distillation: A Swift, Data-Free Method for Machine Unlearning in Diffusion
Models, 2024.
"""

import dataclasses

import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.methods import _score_distillation as distillation
from jaxar.methods.base import Batch, Task
from jaxar.typing import Array, Float, Key, Variables

Model, Sampling = distillation.Model, distillation.Sampling


@dataclasses.dataclass(frozen=True)
class Config(distillation.Config):
    """The `method` section.

    Attributes:
      forget, override: classes.
      forget_weight: of samples of the class to forget, in both losses.
      alpha: see `sid`.
    """

    times: tuple[float, float] = (0.04, 0.71)
    forget: int = 0
    override: int = 1
    forget_weight: float = 0.1
    alpha: float = 1.2

    def __post_init__(self):
        super().__post_init__()
        if self.forget == self.override:
            raise ConfigError(f"method.override={self.override} must be another class than method.forget")
        if self.forget_weight <= 0:
            raise ConfigError(f"method.forget_weight={self.forget_weight} must be positive")


class SFD(distillation.ScoreDistillation):
    """Generator and score."""

    def terms(self, variables: dict[str, Variables], made: distillation.Made, key: Key) -> distillation.Terms:
        real, fake = self.denoised(variables, made)
        identity = distillation.score_identity(made.x, real, fake, self.config.alpha)
        weight = distillation.inverse_error(made.x, real)[:, 0, 0, 0]
        return {"fisher": self._weight(made) * weight * identity}

    def score_terms(
        self, variables: dict[str, Variables], made: distillation.Made, batch: Batch, key: Key
    ) -> distillation.Terms:
        terms = super().score_terms(variables, made, batch, key)
        return {name: self._weight(made) * values for name, values in terms.items()}

    def teacher_denoised(self, teacher: Variables, made: distillation.Made) -> Float[Array, "b h w c"]:
        label = made.cond["label"]
        cond = {"label": jnp.where(label == self.config.forget, self.config.override, label)}
        return super().teacher_denoised(teacher, made._replace(cond=cond))

    def _weight(self, made: distillation.Made) -> Float[Array, "b"]:
        return jnp.where(made.cond["label"] == self.config.forget, self.config.forget_weight, 1.0)


def build(config: Config, model: Model, task: Task) -> SFD:
    """The student of the task's teacher.

    Raises:
      ConfigError: no teacher, one that does not denoise, or classes that there are not.
    """
    for name in ("forget", "override"):
        if not 0 <= getattr(config, name) < task.num_classes:
            raise ConfigError(f"method.{name}={getattr(config, name)} must lie in 0..{task.num_classes - 1}")
    return SFD.of_task(config, task, "sfd")
