"""Distribution matching distillation 2: a score that is trained more often than the student, and a discriminator.

    gradient in x = (D_S - D_T)(x_t) / mean |x - D_T|,    plus the adversarial term

Several calls of the generator are trained on inputs of its own making.

Reference: Yin et al., Improved Distribution Matching Distillation for Fast Image Synthesis, 2024.
"""

from jaxar.methods import _adversarial_distillation as adversarial
from jaxar.methods import _score_distillation as distillation
from jaxar.methods.base import Task
from jaxar.models.feature_discriminator import FeatureDiscriminator
from jaxar.typing import Key, Variables

Model, Sampling, Config = distillation.Model, distillation.Sampling, adversarial.Config


class DMD2(adversarial.AdversarialDistillation):
    """Generator, score and discriminator."""

    def terms(self, variables: dict[str, Variables], made: distillation.Made, key: Key) -> distillation.Terms:
        real, fake = self.denoised(variables, distillation.detached(made))
        gradient = distillation.inverse_error(made.x, real) * (fake - real)
        return {
            "divergence": distillation.surrogate(made.x, gradient),
            "adversarial": self.adversarial_term(variables, made, key),
        }


def build(config: Config, model: Model, task: Task) -> DMD2:
    """The student of the task's teacher.

    Raises:
      ConfigError: no teacher, or one that does not denoise.
    """
    return DMD2.of_task(config, task, "dmd2", head=FeatureDiscriminator(config.discriminator_width))
