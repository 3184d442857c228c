"""SlimFlow: rectified flow from a large teacher's pairs for a smaller network, which cannot start with its weights.

    x_0' = sqrt(1 - b^2) x_0 + b eps,    loss = |x_0' - x_1 - v((1 - t) x_1 + t x_0', t)|^2

b falls from 1 to 0: training begins with independent noise, as flow matching does, and ends with the teacher's pairs. A
second run, whose teacher is the first, distils one step: its own pairs, and without data

    |p - stop(n - x_1)|^2,    p = v(n, 1), x_t = n - (1 - t) p, x_1 = x_t - t v_teacher(x_t, t)

Reference: Zhu et al., SlimFlow: Training Smaller One-Step Diffusion Models with Rectified Flow, 2024. Differences:
pairs are computed in the step and not flipped; the distance is the mean square.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.methods import _canvas as canvases
from jaxar.methods import _denoiser as denoisers
from jaxar.methods import _students as students
from jaxar.methods import flow_matching, reflow
from jaxar.methods.base import Cond, Task
from jaxar.models import dit
from jaxar.typing import Array, Float, Int, Key, Variables

Model, Sampling = dit.Sizes, students.Sampling
_BETWEEN = (0.2, 0.8)  # times at which the teacher is asked where a step should have led


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      distil: whether one step is trained in place of the whole flow.
      anneal_steps: of training until b is 0; without effect when distilling.
      solver_steps: of Heun's method from noise to the data of a pair.
      teacher: guidance of the teacher.
    """

    distil: bool = False
    anneal_steps: int = 300_000
    solver_steps: int = 12
    teacher: canvases.Guidance = canvases.Guidance()  # noqa: RUF009 - frozen

    def __post_init__(self):
        reflow.check_solver_steps(self.solver_steps)
        if self.anneal_steps < 0:
            raise ConfigError(f"method.anneal_steps={self.anneal_steps} must be at least 0")


@dataclasses.dataclass(frozen=True)
class SlimFlow(students.Student):
    """One network, one loss."""

    @property
    def teaches(self) -> bool:
        return not self.config.distil

    def errors(
        self, variables: dict[str, Variables], x: Float[Array, "b h w c"], cond: Cond, key: Key, step: Int[Array, ""]
    ) -> Float[Array, "b"]:
        noise_key, time_key, fresh_key, between_key = jax.random.split(key, 4)
        noise, fresh = students.drawn(x, noise_key), students.drawn(x, fresh_key)
        denoise, labels = self.taught(variables, cond), cond["label"]
        data = reflow.solved(self.path, denoise, noise, self.config.solver_steps)
        t = reflow.line_times(time_key, len(x), self.config.distil)
        if self.config.distil:
            pairs = reflow.line_errors(self.network, variables["model"], noise, data, t, labels)
            return pairs + self.guided(variables["model"], denoise, fresh, labels, between_key)
        b = self.anneal(step)
        mixed = jnp.sqrt(1 - b**2) * noise + b * fresh
        return reflow.line_errors(self.network, variables["model"], mixed, data, t, labels)

    def anneal(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """b at a step of training."""
        return jnp.maximum(1 - step / max(self.config.anneal_steps, 1), 0.0) if self.config.anneal_steps else 0.0

    def guided(
        self,
        model: Variables,
        denoise: denoisers.Denoise,
        noise: Float[Array, "b h w c"],
        labels: Int[Array, "b"],
        key: Key,
    ) -> Float[Array, "b"]:
        """Error of the student's one step where the teacher, asked on the way, leads elsewhere."""
        step = self.network.velocity(model, noise, jnp.ones(len(noise)), labels)
        t = jax.random.uniform(key, (len(noise),), minval=_BETWEEN[0], maxval=_BETWEEN[1])
        between = noise - (1 - t)[:, None, None, None] * jax.lax.stop_gradient(step)
        end = denoise(between, t)  # on the linear path, x_t - t v
        return students.squared(step, jax.lax.stop_gradient(noise - end))


def build(config: Config, model: Model, task: Task) -> SlimFlow:
    """The method for the network of the section `model`; one of its teacher's sizes starts with its weights.

    Raises:
      ConfigError: see `reflow.straight_teacher`; maps that the patches do not divide.
    """
    teacher = reflow.straight_teacher(task, "slimflow")
    inner = teacher.student()  # weights can be taken over if both clocks run alike
    clock = inner.config.clock if isinstance(inner, flow_matching.FlowMatching) else "data"
    network = flow_matching.build(flow_matching.Config(clock=clock), model, task)
    return SlimFlow(network, teacher, config)
