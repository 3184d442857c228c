"""Continuous-time consistency models: neighbours on a trajectory that are infinitely close (sCM).

On the path of constant variance, at the angle a = pi t / 2, the network predicts F = dx/da and lands at

    f(x, a) = cos(a) x - sin(a) F(x, a)

which must not change along a trajectory. F is pulled along the tangent cos(a) df/da,

    g = -cos^2(a) (F - dx/da) - r cos(a) sin(a) (x + dF/da),    loss = |F - stop(F + g / (|g| + c))|^2

dx/da is the guided teacher's, or that of data without one; dF/da is one forward-mode derivative; r rises from 0 to 1 at
the start of training.

Reference: Lu & Song, Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models, 2025, Sec. 4.
Differences: the deviation of the data counts as 1, and times have no learned weights. Those would settle at the inverse
of the loss at each time, which is 1 / |g / (|g| + c)|^2: nearly 1 everywhere.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.diffusion import paths
from jaxar.methods import _canvas as canvases
from jaxar.methods import _denoiser as denoisers
from jaxar.methods import _landing as landing
from jaxar.methods import _students as students
from jaxar.methods import flow_matching
from jaxar.methods.base import Cond, Task
from jaxar.models import dit
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Float, Int, Key, Keys, Variables

Model, Sampling = dit.Sizes, students.Sampling
_RADIANS = np.pi / 2  # per unit of time


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      mean, std: of the normal law of the logarithm of tan(a), the noise level.
      warmup_steps: of training until r is 1.
      norm_eps: c of the tangent's normalisation, whose length is that of one value.
      teacher: guidance of the teacher.
    """

    mean: float = -1.0
    std: float = 1.4
    warmup_steps: int = 10_000
    norm_eps: float = 0.1
    teacher: canvases.Guidance = canvases.Guidance()  # noqa: RUF009 - frozen

    def __post_init__(self):
        if self.std <= 0 or self.norm_eps <= 0:
            raise ConfigError(f"method.std={self.std} and method.norm_eps={self.norm_eps} must be positive")
        if self.warmup_steps < 0:
            raise ConfigError(f"method.warmup_steps={self.warmup_steps} must be at least 0")


@dataclasses.dataclass(frozen=True)
class SCM(students.Student):
    """One network, one loss."""

    def errors(
        self, variables: dict[str, Variables], x: Float[Array, "b h w c"], cond: Cond, key: Key, step: Int[Array, ""]
    ) -> Float[Array, "b"]:
        time_key, noise_key = jax.random.split(key)
        ratio = jnp.exp(self.config.mean + self.config.std * jax.random.normal(time_key, (len(x),)))
        t = jnp.clip(jnp.arctan(ratio) / _RADIANS, *self.times)
        noise, point = students.drawn(x, noise_key), self.path(t)
        noised, velocity = paths.add_noise(point, x, noise), paths.velocity(point, x, noise)
        if self.teacher is not None:
            denoised = self.taught(variables, cond)(noised, t)
            velocity = paths.convert(point, noised, denoised, "denoised", "velocity")
        found, tangent = self.tangent(variables["model"], noised, velocity, t, cond["label"], self.rise(step))
        length = jnp.sqrt(jnp.mean(tangent**2, axis=(1, 2, 3), keepdims=True))
        target = jax.lax.stop_gradient(found + tangent / (length + self.config.norm_eps))
        return students.squared(found, target)

    def rise(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """r at a step of training."""
        return (jnp.minimum(step, self.config.warmup_steps) + 1) / (self.config.warmup_steps + 1)

    def tangent(
        self,
        model: Variables,
        x: Float[Array, "b h w c"],
        velocity: Float[Array, "b h w c"],
        t: Float[Array, "b"],
        labels: Int[Array, "b"],
        rise: Float[Array, ""] | float,
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """F at x, and cos(a) df/da along this velocity, with the part that `rise` weighs."""
        at = self.path(t).like(x)
        cos, sin = at.alpha, at.sigma
        slope = jax.lax.stop_gradient(velocity) / _RADIANS  # dx/da

        def predict(x: Array, angle: Array) -> Array:
            return self.network.velocity(model, x, angle / _RADIANS, labels) / _RADIANS

        # The derivative is scaled within: it grows where its factor vanishes.
        scale = cos * sin
        found, derivative = jax.jvp(predict, (x, t * _RADIANS), (scale * slope, scale[:, 0, 0, 0]))
        return found, -(cos**2) * (found - slope) - rise * (scale * x + derivative)

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Keys, options: Sampling) -> Tokens:
        return self.canvas.tokens(landing.renoised_sample(self, variables["model"], keys, options, cond["label"]))


def build(config: Config, model: Model, task: Task) -> SCM:
    """With a teacher, on the path of constant variance, its own network; without one that of the section `model`.

    Raises:
      ConfigError: other tokens, maps that the network cannot have, a teacher on another path.
    """
    if task.teacher is None:
        network: Any = flow_matching.build(flow_matching.Config(path="cosine"), model, task)
        return SCM(students.forward_mode(network), None, config)
    teacher = denoisers.of_teacher(task, "scm")
    if teacher.path is not paths.cosine:
        raise ConfigError(
            "method.name='scm' needs a teacher on the path of constant variance; train one with path='cosine'"
        )
    return SCM(students.forward_mode(teacher.student()), teacher, config)
