"""Distribution matching distillation: divergence from the teacher, and regression on what the teacher makes of noise.

    gradient in x = (D_S - D_T)(x_t) / mean |x - D_T|,    plus regression_weight |x - ODE(z)|^2 for x = G(z)

The teacher solves its ODE in the step, from the noise that the generator was given.

Reference: Yin et al., One-step Diffusion with Distribution Matching Distillation, 2024. There pairs of noise and data
are made beforehand, and their distance is perceptual; here it is the squared one, of pixels or latents.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.diffusion import solvers
from jaxar.methods import _canvas as canvases
from jaxar.methods import _denoiser as denoisers
from jaxar.methods import _score_distillation as distillation
from jaxar.methods.base import Task
from jaxar.typing import Array, Float, Key, Variables

Model, Sampling = distillation.Model, distillation.Sampling


@dataclasses.dataclass(frozen=True)
class Config(distillation.Config):
    """The `method` section.

    Attributes:
      regression_weight: of the squared distance.
      solver_steps: of the teacher from noise to data, a call each.
    """

    regression_weight: float = 0.25
    solver_steps: int = 8

    def __post_init__(self):
        super().__post_init__()
        if self.calls != (1.0,):
            raise ConfigError(f"method.calls={self.calls} must be (1.0,): the regression is from noise to data")
        if self.regression_weight < 0 or self.solver_steps < 1:
            raise ConfigError(
                f"method.regression_weight={self.regression_weight} must be at least 0, "
                f"method.solver_steps={self.solver_steps} at least 1"
            )


class DMD(distillation.ScoreDistillation):
    """Generator and score."""

    def terms(self, variables: dict[str, Variables], made: distillation.Made, key: Key) -> distillation.Terms:
        real, fake = self.denoised(variables, distillation.detached(made))
        gradient = distillation.inverse_error(made.x, real) * (fake - real)
        distance = jnp.mean((made.x - self.target(variables["teacher"], made)) ** 2, axis=(1, 2, 3))
        return {
            "divergence": distillation.surrogate(made.x, gradient),
            "regression": self.config.regression_weight * distance,
        }

    def target(self, teacher: Variables, made: distillation.Made) -> Float[Array, "b h w c"]:
        """The teacher's data for the noise that the generator was given."""
        shares = np.linspace(1, 0, self.config.solver_steps + 1)[:-1]
        times = np.append(self.teacher.time_at(shares), 0.0)
        table = solvers.dpm_solver(solvers.levels(self.teacher.path, times))
        guidance = canvases.Guidance(self.config.guidance_scale)
        denoise = denoisers.guided(self.teacher, teacher, made.cond, guidance)
        return jax.lax.stop_gradient(solvers.sample(table, denoise, made.given, lambda index: made.given))


def build(config: Config, model: Model, task: Task) -> DMD:
    """The student of the task's teacher.

    Raises:
      ConfigError: no teacher, or one that does not denoise.
    """
    return DMD.of_task(config, task, "dmd")
