"""Rectified flow from a teacher's own pairs of noise and data: trajectories become straight, then one step is enough.

    x_1 = end of the teacher's trajectory from noise x_0,    loss = |x_0 - x_1 - v((1 - t) x_1 + t x_0, t)|^2

A first run straightens (t uniform); a second one, whose teacher is the first, distils (`distil`, t = 1 alone), as
InstaFlow does. Each computes its pairs with its own teacher, in the step.

Reference: Liu et al., Flow Straight and Fast, 2023, Alg. 1; Liu et al., InstaFlow: One Step is Enough for High-Quality
Diffusion-Based Text-to-Image Generation, 2024. Difference: the distance of the second stage is the mean square, without
a perceptual one.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.diffusion import paths, solvers
from jaxar.methods import _canvas as canvases
from jaxar.methods import _denoiser as denoisers
from jaxar.methods import _students as students
from jaxar.methods.base import Cond, Task
from jaxar.typing import Array, Float, Int, Key, Variables

Model, Sampling = students.Model, students.Sampling


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      distil: whether one step is trained in place of the whole flow.
      solver_steps: of Heun's method from noise to the data of a pair.
      teacher: guidance of the teacher.
    """

    distil: bool = False
    solver_steps: int = 12
    teacher: canvases.Guidance = canvases.Guidance()  # noqa: RUF009 - frozen

    def __post_init__(self):
        check_solver_steps(self.solver_steps)


@dataclasses.dataclass(frozen=True)
class Reflow(students.Student):
    """One network, one loss."""

    @property
    def teaches(self) -> bool:
        return not self.config.distil

    def errors(
        self, variables: dict[str, Variables], x: Float[Array, "b h w c"], cond: Cond, key: Key, step: Int[Array, ""]
    ) -> Float[Array, "b"]:
        noise_key, time_key = jax.random.split(key)
        noise = students.drawn(x, noise_key)
        data = solved(self.path, self.taught(variables, cond), noise, self.config.solver_steps)
        t = line_times(time_key, len(x), self.config.distil)
        return line_errors(self.network, variables["model"], noise, data, t, cond["label"])


def solved(
    path: paths.Path, denoise: denoisers.Denoise, noise: Float[Array, "b h w c"], num_steps: int
) -> Float[Array, "b h w c"]:
    """The data that a trajectory from this noise ends in, without gradient."""
    table = solvers.heun(path, np.linspace(1, 0, num_steps + 1))
    return jax.lax.stop_gradient(solvers.sample(table, denoise, noise, lambda index: noise))


def line_times(key: Key, count: int, distil: bool) -> Float[Array, "b"]:
    """Where lines are compared: everywhere, or where they begin."""
    return jnp.ones(count) if distil else jax.random.uniform(key, (count,))


def line_errors(
    network: denoisers.Denoiser,
    model: Variables,
    noise: Float[Array, "b h w c"],
    data: Float[Array, "b h w c"],
    t: Float[Array, "b"],
    labels: Int[Array, "b"],
) -> Float[Array, "b"]:
    """Mean squared error of the velocity on the line between a pair."""
    point = paths.linear(t)
    velocity = network.velocity(model, paths.add_noise(point, data, noise), t, labels)
    return students.squared(velocity, paths.velocity(point, data, noise))


def check_solver_steps(num_steps: int) -> None:
    """Refuses fewer steps than one."""
    if num_steps < 1:
        raise ConfigError(f"method.solver_steps={num_steps} must be at least 1")


def straight_teacher(task: Task, method: str) -> denoisers.Denoiser:
    """The task's teacher, on the linear path.

    Raises:
      ConfigError: no teacher, one that does not denoise, or one on another path.
    """
    teacher = denoisers.of_teacher(task, method)
    if teacher.path is not paths.linear:
        raise ConfigError(f"method.name={method!r} needs a teacher on the linear path; train one with path='linear'")
    return teacher


def build(config: Config, model: Model, task: Task) -> Reflow:
    """The method for a teacher's network.

    Raises:
      ConfigError: see `straight_teacher`.
    """
    teacher = straight_teacher(task, "reflow")
    return Reflow(teacher.student(), teacher, config)
