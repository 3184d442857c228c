"""Score distillation with a discriminator, which compares the student's samples with data: both noised.

    discriminator: softplus(l(x_t)) + softplus(-l(y_t)),    generator: softplus(-l(x_t)),    x drawn, y data

The logit l is read off features that a denoiser has of x_t: those of the score, which then learns from the
discriminator's loss, too, or those of the frozen teacher. At its best, l is the logarithm of the ratio of densities, of
data and of samples, at x_t.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.diffusion import paths
from jaxar.methods import _score_distillation as distillation
from jaxar.methods.base import Batch, LossSpec, PlayerSpec
from jaxar.models.feature_discriminator import FeatureDiscriminator
from jaxar.typing import Array, Float, Int, Key, Variables


@dataclasses.dataclass(frozen=True)
class Config(distillation.Config):
    """The `method` section.

    Attributes:
      adversarial_weight: of the generator's adversarial term.
      discriminator_weight: of the discriminator's loss beside the score's.
      discriminator_width: of its layers.
      features: whose, see above.
    """

    generator_every: int = 5
    adversarial_weight: float = 3e-3
    discriminator_weight: float = 1e-2
    discriminator_width: int = 256
    features: Literal["score", "teacher"] = "score"

    def __post_init__(self):
        super().__post_init__()
        for name in ("adversarial_weight", "discriminator_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"method.{name}={getattr(self, name)} must be at least 0")


@dataclasses.dataclass(frozen=True)
class AdversarialDistillation(distillation.ScoreDistillation):
    """Generator, score and discriminator."""

    head: FeatureDiscriminator

    def players(self) -> dict[str, PlayerSpec]:
        return {**super().players(), "discriminator": PlayerSpec(ema=False)}

    def init(self, key: Key) -> dict[str, Variables]:
        key, head_key = jax.random.split(key)
        variables = super().init(key)
        label = jnp.zeros(1, jnp.int32)
        zeros = jnp.zeros((1, *self.student.canvas.shape))
        features = self.student.features(variables["score"], zeros, jnp.ones(1), label)
        return {**variables, "discriminator": self.head.init(head_key, features)}

    def losses(self) -> tuple[LossSpec, ...]:
        score, generator = super().losses()
        return dataclasses.replace(score, updates=("score", "discriminator")), generator

    def score_terms(
        self, variables: dict[str, Variables], made: distillation.Made, batch: Batch, key: Key
    ) -> distillation.Terms:
        fake_key, real_key = jax.random.split(key)
        label = made.cond["label"]
        on_fake = self.logits(variables, made.x, label, fake_key)
        on_real = self.logits(variables, self.student.canvas.read(batch), label, real_key)
        loss = self.config.discriminator_weight * (jax.nn.softplus(on_fake) + jax.nn.softplus(-on_real))
        return {**super().score_terms(variables, made, batch, key), "discriminator": loss}

    def adversarial_term(self, variables: dict[str, Variables], made: distillation.Made, key: Key) -> Float[Array, "b"]:
        """The generator's weighted loss against the discriminator."""
        logits = self.logits(variables, made.x, made.cond["label"], key)
        return self.config.adversarial_weight * jax.nn.softplus(-logits)

    def logits(
        self, variables: dict[str, Variables], x: Float[Array, "b h w c"], label: Int[Array, "b"], key: Key
    ) -> Float[Array, "b"]:
        """Of maps that are noised here, at random times."""
        time_key, noise_key = jax.random.split(key)
        low, high = distillation.WHOLE
        t = self.teacher.time_at(jax.random.uniform(time_key, label.shape, minval=low, maxval=high))
        noised = paths.add_noise(self.teacher.path(t), x, jax.random.normal(noise_key, x.shape))
        return self.logits_at(variables, noised, t, label)

    def logits_at(
        self, variables: dict[str, Variables], noised: Float[Array, "b h w c"], t: Float[Array, "b"], label: Array
    ) -> Float[Array, "b"]:
        """Of maps at times t of the path."""
        network = {"score": self.student, "teacher": self.teacher}[self.config.features]
        features = network.features(variables[self.config.features], noised, t, label)
        return self.head.apply(variables["discriminator"], features)
