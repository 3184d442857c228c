"""Shortcut models: flow matching whose network is told how far it will jump, and agrees with itself on longer jumps.

    s(x_t, t, 2d) = ( s(x_t, t, d) + s(x_{t-d}, t - d, d) ) / 2,    x_{t-d} = x_t - d s(x_t, t, d)

A share of each batch learns this identity with targets of the averaged weights, the rest the velocity of data under the
name of the shortest jump.

Reference: Frans et al., One Step Diffusion via Shortcut Models, 2024, Eq. 4-6.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.diffusion import paths
from jaxar.methods import _canvas as canvases
from jaxar.methods import _conditions as conditions
from jaxar.methods import _students as students
from jaxar.methods import flow_matching
from jaxar.methods.base import Cond, Task
from jaxar.models import dit
from jaxar.typing import Array, Float, Int, Key, Variables

Model, Sampling = dit.Sizes, students.Sampling


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      shortest: number of the shortest jumps from noise to data, a power of two.
      bootstrap_share: of the batch that learns the identity.
      target_decay: of the average of weights that gives the targets.
      clip: bound of the values of points and targets of the identity, None for none.
      guidance_scale: of the velocity that targets use for the shortest jump; 1 is none.
      label_drop: share of labels that flow matching replaces by the null one.
    """

    shortest: int = 128
    bootstrap_share: float = 0.125
    target_decay: float = 0.999
    clip: float | None = 4.0
    guidance_scale: float = 1.0
    label_drop: float = 0.1

    def __post_init__(self):
        canvases.check_label_drop(self.label_drop)
        students.check_decay(self.target_decay)
        if self.shortest < 2 or self.shortest & (self.shortest - 1):
            raise ConfigError(f"method.shortest={self.shortest} must be a power of two, at least 2")
        if not 0 <= self.bootstrap_share <= 1:
            raise ConfigError(f"method.bootstrap_share={self.bootstrap_share} must lie in [0, 1]")
        if self.clip is not None and self.clip <= 0:
            raise ConfigError(f"method.clip={self.clip} must be positive; None does not clip")


@dataclasses.dataclass(frozen=True)
class Shortcut(students.Student):
    """One network, which is told t and the length of the jump."""

    @property
    def slowness(self) -> float:
        return self.config.target_decay

    def errors(
        self, variables: dict[str, Variables], x: Float[Array, "b h w c"], cond: Cond, key: Key, step: Int[Array, ""]
    ) -> Float[Array, "b"]:
        """Mean squared errors; the first rows are those of the identity."""
        keys = jax.random.split(key, 5)
        count, model = round(len(x) * self.config.bootstrap_share), variables["model"]
        labels = conditions.drop(cond, keys[0], self.config.label_drop, self.num_classes)["label"]
        labels = jnp.where(jnp.arange(len(x)) < count, cond["label"], labels)
        noise = students.drawn(x, keys[1])
        span = jnp.full(len(x), 1 / self.config.shortest)
        t = jax.random.randint(keys[2], span.shape, 1, self.config.shortest + 1) / self.config.shortest
        if count:
            half, late = self.draw_jumps(keys[3], count)
            span, t = span.at[:count].set(2 * half), t.at[:count].set(late)
        point = self.path(t)
        noised, target = paths.add_noise(point, x, noise), paths.velocity(point, x, noise)
        if count:
            bootstrapped = self.target(self.slow(model), noised[:count], late, half, labels[:count])
            target = target.at[:count].set(bootstrapped)
        found = self.network.velocity(model, noised, t, labels, span)
        return students.squared(found, jax.lax.stop_gradient(target))

    def draw_jumps(self, key: Key, count: int) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """Lengths d of half jumps, every power of two as likely, and times t on the grid of 2 d."""
        power_key, time_key = jax.random.split(key)
        powers = jax.random.randint(power_key, (count,), 0, self.config.shortest.bit_length() - 1)
        jumps = 2**powers  # of length 2 d from noise to data
        position = jnp.floor(jax.random.uniform(time_key, (count,)) * jumps)
        return 0.5 / jumps, 1 - position / jumps

    def target(
        self, model: Variables, x: Float[Array, "b h w c"], t: Array, half: Array, labels: Int[Array, "b"]
    ) -> Float[Array, "b h w c"]:
        """The mean velocity of two jumps of length `half` from times t."""
        first = self._guided(model, x, t, half, labels)
        between = self._clipped(x - half[:, None, None, None] * first)
        second = self._guided(model, between, t - half, half, labels)
        return self._clipped((first + second) / 2)

    def _guided(self, model: Variables, x: Array, t: Array, span: Array, labels: Array) -> Array:
        """The velocity of a jump; only the shortest are guided, longer ones learn it from them."""
        cond = self.network.velocity(model, x, t, labels, span)
        if self.config.guidance_scale == 1:
            return cond
        null = self.network.velocity(model, x, t, jnp.full_like(labels, self.num_classes), span)
        scale = jnp.where(span <= 1 / self.config.shortest, self.config.guidance_scale, 1.0)
        return canvases.guide(cond, null, scale[:, None, None, None], None)

    def _clipped(self, x: Array) -> Array:
        return x if self.config.clip is None else jnp.clip(x, -self.config.clip, self.config.clip)

    def visited(self, options: Sampling) -> Float[np.ndarray, "m"]:
        count = options.num_steps
        if count & (count - 1) or count > self.config.shortest:
            raise ConfigError(
                f"sample.num_steps={count} must be a power of two, at most method.shortest={self.config.shortest}"
            )
        return super().visited(options)

    def advance(self, model: Variables, x: Array, t: Array, s: Array, labels: Array) -> Float[Array, "b h w c"]:
        return x - (t - s)[:, None, None, None] * self.network.velocity(model, x, t, labels, t - s)

    def denoise(self, model: Variables, x: Array, t: Array, labels: Array) -> Float[Array, "b h w c"]:
        """Data in one jump."""
        return self.advance(model, x, t, jnp.zeros_like(t), labels)

    def velocity(self, model: Variables, x: Array, t: Array, labels: Array) -> Float[Array, "b h w c"]:
        return self.network.velocity(model, x, t, labels, jnp.full_like(t, 1 / self.config.shortest))


def build(config: Config, model: Model, task: Task) -> Shortcut:
    """The method for pixels or continuous tokens, conditional on the class.

    Raises:
      ConfigError: other tokens, or maps that the patches do not divide.
    """
    network = flow_matching.build(flow_matching.Config(), model, task).student(num_scalars=1)
    return Shortcut(network, None, config)
