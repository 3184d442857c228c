"""Variational score distillation: a one-step student descends the divergence between its noised law and its teacher's.

    gradient in x = w(t) (D_S - D_T)(x_t)    w = 1 (Diff-Instruct), alpha sigma (SwiftBrush: sigma^2 on noise)

Both denoisers may be guided alike; the score then learns the null label, too.

Reference: Luo et al., Diff-Instruct: A Universal Approach for Transferring Knowledge From Pre-trained Diffusion Models,
2023; Nguyen & Tran, SwiftBrush: One-Step Text-to-Image Diffusion Model with Variational Score Distillation, 2024. There
the score is the teacher with low-rank changes; here it is a network of its own.
"""

import dataclasses
from typing import Literal

from jaxar.config import ConfigError
from jaxar.methods import _canvas as canvases
from jaxar.methods import _conditions as conditions
from jaxar.methods import _denoiser as denoisers
from jaxar.methods import _score_distillation as distillation
from jaxar.methods.base import Batch, Task
from jaxar.typing import Array, Float, Key, Variables

Model, Sampling = distillation.Model, distillation.Sampling


@dataclasses.dataclass(frozen=True)
class Config(distillation.Config):
    """The `method` section.

    Attributes:
      weight: "constant" or "noise", see above.
      guided_score: the score is guided as the teacher is, as in SwiftBrush.
      label_drop: share of labels that the score's training replaces by the null one.
    """

    weight: Literal["constant", "noise"] = "constant"
    guided_score: bool = False
    label_drop: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        canvases.check_label_drop(self.label_drop)
        if self.guided_score and not self.label_drop:
            raise ConfigError("method.guided_score=True needs a null label; train it with method.label_drop=0.1, say")


class VSD(distillation.ScoreDistillation):
    """Generator and score."""

    def terms(self, variables: dict[str, Variables], made: distillation.Made, key: Key) -> distillation.Terms:
        real, fake = self.denoised(variables, distillation.detached(made))
        return {"divergence": distillation.surrogate(made.x, self._weight(made) * (fake - real))}

    def _weight(self, made: distillation.Made) -> Float[Array, "b 1 1 1"] | float:
        if self.config.weight == "constant":
            return 1.0
        at = self.teacher.path(made.draws.t).like(made.x)
        return at.alpha * at.sigma

    def score_denoised(self, score: Variables, made: distillation.Made) -> Float[Array, "b h w c"]:
        guidance = canvases.Guidance(self.config.guidance_scale if self.config.guided_score else 1.0)
        return denoisers.guided(self.student, score, made.cond, guidance)(made.noised, made.draws.t)

    def score_terms(
        self, variables: dict[str, Variables], made: distillation.Made, batch: Batch, key: Key
    ) -> distillation.Terms:
        cond = conditions.drop(made.cond, key, self.config.label_drop, self.student.num_classes)
        return super().score_terms(variables, made._replace(cond=cond), batch, key)


def build(config: Config, model: Model, task: Task) -> VSD:
    """The student of the task's teacher.

    Raises:
      ConfigError: no teacher, or one that does not denoise.
    """
    return VSD.of_task(config, task, "vsd")
