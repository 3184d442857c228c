"""Phased consistency: the trajectory is cut into phases, and the network lands at the lower end of the phase it is in.

    loss = d( f(x_n, t_n -> s_m), stop f(x_{n-1}, t_{n-1} -> s_m) ),    s_m < t_n the end of the phase

x_{n-1} is one step of DDIM of the guided teacher. Samples jump from end to end without new noise; with one phase this
is a consistency model.

With an adversary, both ends are compared after noise took them back to a time within the phase.

Reference: Wang et al., Phased Consistency Model, 2024, Sec. 3. Difference: all phases are those of one grid of levels.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.diffusion import paths, trajectories
from jaxar.methods import _canvas as canvases
from jaxar.methods import _denoiser as denoisers
from jaxar.methods import _landing as landing
from jaxar.methods import _students as students
from jaxar.methods import consistency
from jaxar.methods._adversarial_students import Adversarial, AdversarialStudent, Contest
from jaxar.methods.base import Cond, Task
from jaxar.typing import Array, Float, Int, Key, Shaped, Variables

Model = students.Model


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      phases: of the trajectory, and calls for a sample.
      levels: steps of the teacher from noise to data.
      huber: scale of the pseudo-Huber distance, None for the mean square.
      rho, least_time: as in `consistency`.
      teacher: guidance of the teacher.
      adversarial: the discriminator.
    """

    phases: int = 4
    levels: int = 50
    huber: float | None = 0.001
    rho: float = 1.0
    least_time: float = 0.002
    teacher: canvases.Guidance = canvases.Guidance()  # noqa: RUF009 - frozen
    adversarial: Adversarial = Adversarial()  # noqa: RUF009 - frozen

    def __post_init__(self):
        students.check_trajectory(self.rho, self.least_time)
        students.check_huber(self.huber)
        if not 1 <= self.phases <= self.levels:
            raise ConfigError(f"method.phases={self.phases} must lie in 1..levels={self.levels}")

    @property
    def edges(self) -> tuple[int, ...]:
        """Numbers of the levels where phases end, rising; the last is that of noise."""
        return tuple(phase * self.levels // self.phases for phase in range(self.phases + 1))


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The `sample` section: empty, there is one call per phase."""


@dataclasses.dataclass(frozen=True)
class PCM(AdversarialStudent):
    """One network, and a discriminator if its weight is not 0."""

    def landings(
        self, variables: dict[str, Variables], x: Float[Array, "b h w c"], cond: Cond, key: Key
    ) -> landing.Landings:
        level_key, noise_key = jax.random.split(key)
        lower = jax.random.randint(level_key, (len(x),), 0, self.config.levels)
        t, s, end = self.level(lower + 1), self.level(lower), self.level(self.edge(lower))
        noised = paths.add_noise(self.path(t), x, students.drawn(x, noise_key))
        earlier = consistency.ddim(self.path, self.taught(variables, cond), noised, t, s)
        points = landing.Neighbours(noised, t, jax.lax.stop_gradient(earlier), s)
        return landing.landings(self, variables["model"], points, end, cond["label"])

    def contest(self, landed: landing.Landings, x: Float[Array, "b h w c"], key: Key) -> Contest:
        """Both ends, noised to one time within the phase."""
        time_key, *keys = jax.random.split(key, 3)
        edges = jnp.array(self.config.edges)
        phase = jnp.argmin(jnp.abs(self.level(edges) - landed.end[:, None]), axis=1)
        share = jax.random.uniform(time_key, landed.end.shape)
        t = self.level(edges[phase] + share * (edges[phase + 1] - edges[phase]))

        def noised(x: Array, key: Key) -> Array:
            return trajectories.renoise(self.path(landed.end), self.path(t), x, students.drawn(x, key))

        return Contest(noised(landed.found, keys[0]), noised(landed.target, keys[1]), t)

    def edge(self, lower: Int[Array, "b"]) -> Int[Array, "b"]:
        """Where the phase ends that the steps from the next level to level `lower` belong to."""
        edges = jnp.array(self.config.edges)
        return edges[jnp.searchsorted(edges, lower, side="right") - 1]

    def level(self, index: Shaped[Array, "*n"]) -> Float[Array, "*n"]:
        """Times of levels, and between them."""
        bounds = students.bounds(self.network, self.config.least_time)
        return trajectories.level(index, self.config.levels + 1, bounds, self.config.rho)

    def visited(self, options: Sampling) -> Float[np.ndarray, "m"]:
        return self.level(np.array(self.config.edges[::-1]))


def build(config: Config, model: Model, task: Task) -> PCM:
    """The method for a teacher's network.

    Raises:
      ConfigError: no teacher, or one that does not denoise.
    """
    teacher = denoisers.of_teacher(task, "pcm")
    return PCM(teacher.student(), teacher, config)
