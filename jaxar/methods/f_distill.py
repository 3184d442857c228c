"""Distribution matching by any of eight f-divergences: the student's gradient is weighted by the ratio of densities.

    D_f = E_q f(r),    r = p / q of teacher and student at x_t
    gradient in x = h(r) (D_S - D_T)(x_t) / mean |x - D_T|,    h(r) = f''(r) r^2,    plus the adversarial term

The discriminator gives r = exp(l): data stand in for the teacher. The expectation of r is 1 at every time, so r is
divided by its mean over samples of about the same time, and h by its mean over all. With h = 1, reverse KL, this is
DMD2.

Reference: Xu et al., One-step Diffusion Models with f-Divergence Distribution Matching, 2025. Their running means of r
are means over the batch, as in their default.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.methods import _adversarial_distillation as adversarial
from jaxar.methods import _score_distillation as distillation
from jaxar.methods.base import Task
from jaxar.models.feature_discriminator import FeatureDiscriminator
from jaxar.typing import Array, Float, Key, Variables

Model, Sampling = distillation.Model, distillation.Sampling

_LOGIT_BOUND = 10.0
_RATIO_BOUNDS = (0.1, 20.0)
_BINS = 10  # of time

Divergence = Literal[
    "reverse_kl", "softened_reverse_kl", "jensen_shannon", "squared_hellinger", "kl", "jeffreys", "neyman", "pearson"
]
# h(r), up to a constant.
WEIGHTS: dict[str, Callable[[Array], Array]] = {
    "reverse_kl": jnp.ones_like,
    "softened_reverse_kl": lambda r: 1 / (1 + r),
    "jensen_shannon": lambda r: r / (1 + r),
    "squared_hellinger": jnp.sqrt,
    "kl": lambda r: r,
    "jeffreys": lambda r: 1 + r,
    "neyman": lambda r: 1 / r,
    "pearson": jnp.square,
}


@dataclasses.dataclass(frozen=True)
class Config(adversarial.Config):
    """The `method` section. `divergence`: "reverse_kl" seeks modes, "kl" covers them."""

    divergence: Divergence = "jensen_shannon"
    features: Literal["score", "teacher"] = "teacher"

    def __post_init__(self):
        super().__post_init__()
        if self.discriminator_weight == 0 and self.divergence != "reverse_kl":
            raise ConfigError(
                f"method.discriminator_weight=0 leaves the ratio of densities unknown, which method.divergence="
                f"{self.divergence!r} needs; use a positive one, or reverse_kl"
            )


class FDistill(adversarial.AdversarialDistillation):
    """Generator, score and discriminator."""

    def terms(self, variables: dict[str, Variables], made: distillation.Made, key: Key) -> distillation.Terms:
        made = distillation.detached(made)
        real, fake = self.denoised(variables, made)
        logits = self.logits_at(variables, made.noised, made.draws.t, made.cond["label"])
        weights = density_weights(self.config.divergence, jax.lax.stop_gradient(logits), made.draws.share)
        gradient = weights[:, None, None, None] * distillation.inverse_error(made.x, real) * (fake - real)
        return {
            "divergence": distillation.surrogate(made.x, gradient),
            "adversarial": self.adversarial_term(variables, made, key),
        }


def density_weights(divergence: str, logits: Float[Array, "b"], shares: Float[Array, "b"]) -> Float[Array, "b"]:
    """h(r) of each sample, of mean 1 over the batch.

    Args:
      divergence: a key of `WEIGHTS`.
      logits: estimates of log r.
      shares: times, in [0, 1].
    """
    ratio = jnp.clip(jnp.exp(jnp.clip(logits, -_LOGIT_BOUND, _LOGIT_BOUND)), *_RATIO_BOUNDS)
    sound = jnp.isfinite(ratio)
    bins = jax.nn.one_hot(jnp.clip(shares * _BINS, 0, _BINS - 1).astype(jnp.int32), _BINS) * sound[:, None]
    means = jnp.where(sound, ratio, 0) @ bins / jnp.maximum(bins.sum(axis=0), 1)
    weights = WEIGHTS[divergence](ratio / jnp.where(sound, bins @ means, 1))
    return weights / jnp.mean(weights, where=sound)


def build(config: Config, model: Model, task: Task) -> FDistill:
    """The student of the task's teacher.

    Raises:
      ConfigError: no teacher, or one that does not denoise.
    """
    return FDistill.of_task(config, task, "f_distill", head=FeatureDiscriminator(config.discriminator_width))
