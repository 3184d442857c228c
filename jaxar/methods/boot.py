"""BOOT: the signal part of the trajectory that starts at given noise, learnt without data from late times to early.

    x_t = alpha_t y(eps, t) + sigma_t eps,    y_s = k y_t + (1 - k) D(x_t, t)

with k = (alpha_t / sigma_t)(sigma_s / alpha_s).

The student predicts y from noise and time. Its own value at t gives the target at s = t - gap, the teacher's D the
direction; at the noisiest time y is D itself. One call at the least time is a sample.

    loss = |y(eps, s) - stop(y_t + (1 - k)(D(x_t, t) - y_t))|^2 / gap^2 + boundary_weight |y(eps, 1) - D(eps, 1)|^2

Reference: Gu et al., BOOT: Data-free Distillation of Denoising Diffusion Models with Bootstrapping, 2023. Difference:
the student is its teacher at the noisiest time, told t beside it: it starts close to where the boundary wants it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.methods import _canvas as canvases
from jaxar.methods import _denoiser as denoisers
from jaxar.methods import _students as students
from jaxar.methods.base import Cond, Task
from jaxar.typing import Array, Float, Int, Key, Variables

Model = students.Model


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      gap: between the times of student and target, as a share of all times.
      boundary_weight: see above.
      least_time: at which samples are drawn.
      teacher: guidance of the teacher.
    """

    gap: float = 0.04
    boundary_weight: float = 1.0
    least_time: float = 0.002
    teacher: canvases.Guidance = canvases.Guidance()  # noqa: RUF009 - frozen

    def __post_init__(self):
        if not 0 < self.gap < 1:
            raise ConfigError(f"method.gap={self.gap} must lie in (0, 1)")
        if self.boundary_weight < 0:
            raise ConfigError(f"method.boundary_weight={self.boundary_weight} must be at least 0")
        students.check_trajectory(1.0, self.least_time)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The `sample` section: empty, there is one call."""


@dataclasses.dataclass(frozen=True)
class Boot(students.Student):
    """One network, one loss."""

    @property
    def bounds(self) -> tuple[float, float]:
        return students.bounds(self.network, self.config.least_time)

    def errors(
        self, variables: dict[str, Variables], x: Float[Array, "b h w c"], cond: Cond, key: Key, step: Int[Array, ""]
    ) -> Float[Array, "b"]:
        """Both terms, for noise of the shape of x."""
        noise_key, time_key = jax.random.split(key)
        noise, labels, model = students.drawn(x, noise_key), cond["label"], variables["model"]
        denoise = self.taught(variables, cond)
        share = jax.random.uniform(time_key, (len(x),), minval=self.config.gap)
        t, s = self.time(share), self.time(share - self.config.gap)
        residual = students.squared(
            self.signal(model, noise, s, labels), self.target(model, denoise, noise, t, s, labels)
        )
        last = jnp.full_like(t, self.bounds[1])
        first = jax.lax.stop_gradient(denoise(self._at(noise, last), last))
        boundary = students.squared(self.signal(model, noise, last, labels), first)
        return residual / self.config.gap**2 + self.config.boundary_weight * boundary

    def time(self, share: Float[Array, "b"]) -> Float[Array, "b"]:
        """Times at shares in [0, 1] of the way from the least."""
        return jnp.maximum(self.time_at(share), self.bounds[0])

    def target(
        self, model: Variables, denoise: denoisers.Denoise, noise: Array, t: Array, s: Array, labels: Array
    ) -> Float[Array, "b h w c"]:
        """y at times s, from the student's y at times t by one step of the teacher, without gradient."""
        point, after = self.path(t).like(noise), self.path(s).like(noise)
        y = self.signal(model, noise, t, labels)
        denoised = denoise(point.alpha * y + point.sigma * noise, t)
        kept = point.alpha * after.sigma / (after.alpha * point.sigma)
        return jax.lax.stop_gradient(y + (1 - kept) * (denoised - y))

    def signal(
        self, model: Variables, noise: Float[Array, "b h w c"], t: Float[Array, "b"], labels: Int[Array, "b"]
    ) -> Float[Array, "b h w c"]:
        """y: the student's network, called at the noisiest time and told t."""
        last = jnp.full_like(t, self.times[1])
        return self.network.denoise(model, self._at(noise, last), last, labels, t)

    def _at(self, noise: Array, t: Array) -> Array:
        """x where it is noise alone."""
        return self.path(t).like(noise).sigma * noise

    def denoise(self, model: Variables, x: Array, t: Array, labels: Array) -> Float[Array, "b h w c"]:
        """Data in one call; x is taken to be noise alone, whatever t."""
        last, least = jnp.full_like(t, self.times[1]), jnp.full_like(t, self.bounds[0])
        return self.network.denoise(model, x, last, labels, least)

    def visited(self, options: Sampling) -> Float[np.ndarray, "m"]:
        return np.array([self.times[1], 0.0])

    def advance(self, model: Variables, x: Array, t: Array, s: Array, labels: Array) -> Float[Array, "b h w c"]:
        return self.denoise(model, x, t, labels)


def build(config: Config, model: Model, task: Task) -> Boot:
    """The method for a teacher's network, which is told another time.

    Raises:
      ConfigError: no teacher, or one that does not denoise.
    """
    teacher = denoisers.of_teacher(task, "boot")
    return Boot(teacher.student(num_scalars=1), teacher, config)
