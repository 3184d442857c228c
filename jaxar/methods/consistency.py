"""Consistency models: a network that lands at the same end from every point of a trajectory.

    loss = weight d( f(x_t, t), stop f_slow(x_s, s) ),    s < t neighbours on one trajectory

f takes x to the least time in one call (`diffusion.trajectories.jump`), and is x itself there. With a teacher the
neighbour follows from x_t by one step of the teacher (consistency distillation); without one both points have the same
data and noise (consistency training). Options make the published variants:

    CD    a teacher; levels fixed, target_decay 0.95
    iCT   levels doubling, target_decay None, huber 0.00054, weight gap
    ECT   levels continuous, target_decay None, weight gap, starting from a diffusion model by `init_from`

Reference: Song et al., Consistency Models, 2023; Song & Dhariwal, Improved Techniques for Training Consistency Models,
2023; Geng et al., Consistency Models Made Easy, 2024. Differences: the boundary condition is that of a step of DDIM on
any path, levels of noise are sigma / alpha, and gaps are those of the path's time.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.diffusion import paths, trajectories
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
_MOST = 0.999  # of a level that its continuous neighbour reaches
_LEAST_GAP = 1e-6


@dataclasses.dataclass(frozen=True)
class Fixed:
    """`count` levels, each pair of neighbours as likely."""

    name: Literal["fixed"] = "fixed"
    count: int = 40

    def __post_init__(self):
        if self.count < 2:
            raise ConfigError(f"method.levels.count={self.count} must be at least 2")

    def draw(
        self, key: Key, size: int, path: paths.Path, bounds: tuple[float, float], rho: float, step: Int[Array, ""]
    ) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """Neighbouring times t > s."""
        index = jax.random.randint(key, (size,), 0, self.count - 1)
        return tuple(trajectories.level(i, self.count, bounds, rho) for i in (index + 1, index))


@dataclasses.dataclass(frozen=True)
class Doubling:
    """Levels that double in number over `num_steps` of training from `first` intervals to `last`.

    Their noise is log-normal with `mean` and `std`.
    """

    num_steps: int
    name: Literal["doubling"] = "doubling"
    first: int = 10
    last: int = 1280
    mean: float = -1.1
    std: float = 2.0

    def __post_init__(self):
        if not 1 <= self.first <= self.last:
            raise ConfigError(f"method.levels.first={self.first} must lie in 1..last={self.last}")
        if self.std <= 0:
            raise ConfigError(f"method.levels.std={self.std} must be positive")
        if self.num_steps < 1:
            raise ConfigError(f"method.levels.num_steps={self.num_steps} must be at least 1")

    def draw(
        self, key: Key, size: int, path: paths.Path, bounds: tuple[float, float], rho: float, step: Int[Array, ""]
    ) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """Neighbouring times t > s."""
        count = 1 + trajectories.doubled(step, self.first, self.last, self.num_steps)
        index = jnp.arange(self.last + 1)
        times = trajectories.level(jnp.minimum(index, count - 1), count, bounds, rho)
        cells = trajectories.lognormal_cells(path, times, self.mean, self.std)  # those beyond `count` are empty
        lower = jax.random.categorical(key, jnp.log(cells), shape=(size,))
        return times[lower + 1], times[lower]


@dataclasses.dataclass(frozen=True)
class Continuous:
    """Any levels, log-normal; after each `double_every` steps of training the neighbour halves its distance.

    At first it is the least level of all where sigma / alpha is below 2, and half the level where there is more noise:
    the network learns to denoise.
    """

    double_every: int
    name: Literal["continuous"] = "continuous"
    mean: float = -1.1
    std: float = 2.0

    def __post_init__(self):
        if self.double_every < 1:
            raise ConfigError(f"method.levels.double_every={self.double_every} must be at least 1")

    def draw(
        self, key: Key, size: int, path: paths.Path, bounds: tuple[float, float], rho: float, step: Int[Array, ""]
    ) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """Times t > s."""
        log_ratio = self.mean + self.std * jax.random.normal(key, (size,))
        t = trajectories.times_of(path, log_ratio, bounds, rho)
        ratio = jnp.exp(trajectories.log_ratios(path, t))
        reached = jnp.minimum(1 - 2.0 ** -(step // self.double_every + 1.0), _MOST)
        lower = ratio - ratio * (1 - reached) * (1 + 8 * jax.nn.sigmoid(-ratio))
        s = trajectories.times_of(path, jnp.log(jnp.maximum(lower, 1e-12)), bounds, rho)
        return t, jnp.minimum(s, t)


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      levels: pairs of times; `name` chooses "fixed", "doubling" or "continuous".
      solver: the teacher's step, Heun's method or DDIM.
      target_decay: of the average of weights that gives the targets, None for the weights of the step itself.
      huber: scale of the pseudo-Huber distance, None for the mean square.
      weight: "one", or "gap": the inverse of t - s.
      rho: exponent of the spacing of levels: 1 is even in the path's time, 7 is EDM's for the time sigma.
      least_time: where trajectories end.
      teacher: guidance of the teacher.
    """

    levels: Fixed | Doubling | Continuous = Fixed()
    solver: Literal["heun", "ddim"] = "heun"
    target_decay: float | None = 0.95
    huber: float | None = None
    weight: Literal["one", "gap"] = "one"
    rho: float = 1.0
    least_time: float = 0.002
    teacher: canvases.Guidance = canvases.Guidance()  # noqa: RUF009 - frozen

    def __post_init__(self):
        students.check_decay(self.target_decay)
        students.check_trajectory(self.rho, self.least_time)
        students.check_huber(self.huber)


@dataclasses.dataclass(frozen=True)
class Consistency(landing.LandingStudent):
    """One network, one loss."""

    def errors(
        self, variables: dict[str, Variables], x: Float[Array, "b h w c"], cond: Cond, key: Key, step: Int[Array, ""]
    ) -> Float[Array, "b"]:
        level_key, noise_key = jax.random.split(key)
        t, s = self.config.levels.draw(level_key, len(x), self.path, self.bounds, self.config.rho, step)
        noise = students.drawn(x, noise_key)
        noised = paths.add_noise(self.path(t), x, noise)
        if self.teacher is None:
            earlier = paths.add_noise(self.path(s), x, noise)
        else:
            move = {"heun": heun, "ddim": ddim}[self.config.solver]
            earlier = move(self.path, self.taught(variables, cond), noised, t, s)
        points = landing.Neighbours(noised, t, jax.lax.stop_gradient(earlier), s)
        end = jnp.full_like(t, self.bounds[0])
        landed = landing.landings(self, variables["model"], points, end, cond["label"])
        found = landing.disagreement(landed, self.config.huber)
        return found / jnp.maximum(t - s, _LEAST_GAP) if self.config.weight == "gap" else found

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Keys, options: Sampling) -> Tokens:
        return self.canvas.tokens(landing.renoised_sample(self, variables["model"], keys, options, cond["label"]))


def ddim(path: paths.Path, denoise: denoisers.Denoise, x: Array, t: Array, s: Array) -> Float[Array, "b h w c"]:
    """One step of DDIM from times t to s."""
    return trajectories.jump(path(t), path(s), x, denoise(x, t))


def heun(path: paths.Path, denoise: denoisers.Denoise, x: Array, t: Array, s: Array) -> Float[Array, "b h w c"]:
    """One step of Heun's method from times t to s, neither of them without noise."""
    gap = (s - t)[:, None, None, None]

    def velocity(x: Array, t: Array) -> Array:
        return paths.convert(path(t), x, denoise(x, t), "denoised", "velocity")

    first = velocity(x, t)
    return x + gap / 2 * (first + velocity(x + gap * first, s))


def build(config: Config, model: Model, task: Task) -> Consistency:
    """With a teacher its own network, without one that of the section `model`.

    Raises:
      ConfigError: other tokens, maps that the patches do not divide, a teacher that does not denoise.
    """
    if task.teacher is None:
        network: Any = flow_matching.build(flow_matching.Config(), model, task).student()
        return Consistency(network, None, config)
    teacher = denoisers.of_teacher(task, "consistency")
    return Consistency(teacher.student(), teacher, config)
