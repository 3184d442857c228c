"""Score identity distillation: a one-step student descends the distance between its noised score and its teacher's.

    loss = w (D_T - D_S) . ((D_T - x) - alpha (D_T - D_S)),    w = 1 / mean |x - D_T|, without gradient

The gradient flows through x_t into both denoisers. alpha = 1 is the gradient of the distance if the score is exact,
1.2 is published as best; the value of the loss is no measure of progress, and negative for alpha > 1.

Reference: Zhou et al., Score identity Distillation: Exponentially Fast Distillation of Pretrained Diffusion Models for
One-Step Generation, 2024.
"""

import dataclasses

from jaxar.methods import _score_distillation as distillation
from jaxar.methods.base import Task
from jaxar.typing import Key, Variables

Model, Sampling = distillation.Model, distillation.Sampling


@dataclasses.dataclass(frozen=True)
class Config(distillation.Config):
    """The `method` section. `alpha`: see above; keep it at most 1 for a student that starts wider than its teacher."""

    times: tuple[float, float] = (0.0, 0.8)
    alpha: float = 1.2


class SiD(distillation.ScoreDistillation):
    """Generator and score."""

    def terms(self, variables: dict[str, Variables], made: distillation.Made, key: Key) -> distillation.Terms:
        real, fake = self.denoised(variables, made)
        identity = distillation.score_identity(made.x, real, fake, self.config.alpha)
        return {"fisher": distillation.inverse_error(made.x, real)[:, 0, 0, 0] * identity}


def build(config: Config, model: Model, task: Task) -> SiD:
    """The student of the task's teacher.

    Raises:
      ConfigError: no teacher, or one that does not denoise.
    """
    return SiD.of_task(config, task, "sid")
