"""Score implicit matching: a one-step student descends a convex distance d between its noised score and its teacher's.

    loss = w d'(y) . (x - D_S),    y = D_S - D_T

The gradient flows through x_t into both denoisers, and is that of the expectation of w d(y) under the student's law
held fixed, if the score is exact. The distance is the pseudo-Huber one, d'(y) = y / sqrt(mean y^2 + c^2), which limits
how far one sample pulls; or |y|^2 / 2, which with w = 1 / mean |x - D_T| is score identity distillation with alpha = 1.

Reference: Luo et al., One-Step Diffusion Distillation through Score Implicit Matching, 2024. The published c is not
known; distances are taken between expectations of data, so that c has their unit.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.methods import _score_distillation as distillation
from jaxar.methods.base import Task
from jaxar.typing import Key, Variables

Model, Sampling = distillation.Model, distillation.Sampling


@dataclasses.dataclass(frozen=True)
class Config(distillation.Config):
    """The `method` section. `distance`: see above; `huber`: c of "huber", in the unit of the data."""

    distance: Literal["huber", "square"] = "huber"
    huber: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        if self.huber <= 0:
            raise ConfigError(f"method.huber={self.huber} must be positive; use method.distance='square' for none")


class SIM(distillation.ScoreDistillation):
    """Generator and score."""

    def terms(self, variables: dict[str, Variables], made: distillation.Made, key: Key) -> distillation.Terms:
        real, fake = self.denoised(variables, made)
        gap, axes = fake - real, (1, 2, 3)
        if self.config.distance == "huber":
            slope = gap / jnp.sqrt(jnp.mean(gap**2, axis=axes, keepdims=True) + self.config.huber**2)
        else:
            slope = distillation.inverse_error(made.x, real) * gap
        return {"distance": jnp.mean(slope * (made.x - fake), axis=axes)}


def build(config: Config, model: Model, task: Task) -> SIM:
    """The student of the task's teacher.

    Raises:
      ConfigError: no teacher, or one that does not denoise.
    """
    return SIM.of_task(config, task, "sim")
