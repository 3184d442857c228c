"""Trains any tokenizer to reproduce images: reconstruction, the tokenizer's own terms, perceptual and adversarial loss.

Reference: Esser et al., Taming Transformers for High-Resolution Image Synthesis, 2021, Eq. 3-6. Adversarial weights are
constant, as in Sun et al., Autoregressive Model Beats Diffusion, 2024; there is no adaptive weight.

The weights of the perceptual network are frozen variables: the trainer loads them once and passes them to each step as
arguments. As constants they would be compiled into every program (59 MB); as a player they would be given optimizer
states and be written to every checkpoint.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.methods.base import Batch, LossAux, LossSpec, Method, PlayerSpec, Stage, Task
from jaxar.models import perceptual
from jaxar.models.discriminator import Discriminator
from jaxar.models.discriminator import Sizes as Model
from jaxar.tokenizers.base import ImageSpec, Tokenizer
from jaxar.typing import Array, Float, Int, Key, Metrics, Variables, typechecked

Sampling = None
_PERCEPTUAL = "perceptual"
_TINY = 1e-10  # squared error below which the signal-to-noise ratio stops growing, at 106 dB


@dataclasses.dataclass(frozen=True)
class Perceptual:
    """LPIPS. `weights` names a .safetensors file with VGG16-LPIPS weights; nothing is downloaded."""

    weight: float = 0.0
    weights: str | None = None

    def __post_init__(self):
        if self.weight < 0:
            raise ConfigError(f"method.perceptual.weight={self.weight} must be at least 0, which switches it off")
        if self.weight and self.weights is None:
            raise ConfigError(
                f"method.perceptual.weight={self.weight} needs method.perceptual.weights, the path of a .safetensors "
                "file with VGG16-LPIPS weights; or use weight 0"
            )


@dataclasses.dataclass(frozen=True)
class Adversarial:
    """A discriminator that takes part from step `start` on; weight 0 for none."""

    weight: float = 0.0
    start: int = 0
    loss: Literal["hinge", "non_saturating"] = "hinge"

    def __post_init__(self):
        if self.weight < 0 or self.start < 0:
            raise ConfigError(
                f"method.adversarial has weight={self.weight}, start={self.start}; both must be at least 0"
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section: weights of mean absolute error, mean squared error and the two optional networks."""

    l1: float = 0.0
    l2: float = 1.0
    perceptual: Perceptual = Perceptual()
    adversarial: Adversarial = Adversarial()

    def __post_init__(self):
        if self.l1 < 0 or self.l2 < 0 or self.l1 + self.l2 == 0:
            raise ConfigError(f"method.l1={self.l1}, method.l2={self.l2} must be at least 0, and one of them positive")


@dataclasses.dataclass(frozen=True)
class Autoencoder(Method):
    """Players `tokenizer` and, with an adversarial loss, `discriminator`."""

    config: Config
    model: Model
    tokenizer: Tokenizer
    image: ImageSpec

    @property
    def _adversarial(self) -> bool:
        return self.config.adversarial.weight > 0

    @property
    def _critic(self) -> Discriminator:
        return Discriminator(self.model)

    def players(self) -> dict[str, PlayerSpec]:
        # Decay would pull codes towards the origin, unused ones most of all.
        players = {"tokenizer": PlayerSpec(no_decay=("codebook",), project=self.tokenizer.project)}
        return players | ({"discriminator": PlayerSpec(ema=False)} if self._adversarial else {})

    def init(self, key: Key) -> dict[str, Variables]:
        tokenizer_key, critic_key = jax.random.split(key)
        variables = {"tokenizer": self.tokenizer.init(tokenizer_key)}
        if self._adversarial:
            variables["discriminator"] = self._critic.init(critic_key, jnp.zeros((1, *self.image.shape)))
        return variables

    def frozen(self) -> dict[str, Variables]:
        if not self.config.perceptual.weight:
            return {}
        path = self.config.perceptual.weights
        return {_PERCEPTUAL: {"params": perceptual.load(path, "method.perceptual.weights")}}

    def losses(self) -> tuple[LossSpec, ...]:
        plain = functools.partial(self._reconstruction, adversarial=False)
        losses = (LossSpec("reconstruction", plain, ("tokenizer",)),)
        if not self._adversarial:
            return losses
        generator = functools.partial(self._reconstruction, adversarial=True)
        return (
            *losses,
            LossSpec("generator", generator, ("tokenizer",)),
            LossSpec("discriminator", self._discrimination, ("discriminator",)),
        )

    def stages(self) -> tuple[Stage, ...]:
        """Without a discriminator until `adversarial.start`, and with it from there on."""
        first = Stage("reconstruct", 0, ("reconstruction",))
        if not self._adversarial:
            return (first,)
        second = Stage("adversarial", self.config.adversarial.start, ("generator", "discriminator"))
        return (first, second) if second.start else (second,)

    def _reconstruction(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""], *, adversarial: bool
    ) -> tuple[Float[Array, ""], LossAux]:
        config, images = self.config, batch["image"]
        result = self.tokenizer.reconstruct(variables["tokenizer"], images, key, train=True)
        difference = result.images - images
        terms = {"l1": jnp.mean(jnp.abs(difference)), "l2": jnp.mean(difference**2)}
        loss = config.l1 * terms["l1"] + config.l2 * terms["l2"] + result.loss
        if config.perceptual.weight:
            params = variables[_PERCEPTUAL]["params"]
            terms["lpips"] = jnp.mean(perceptual.distance(params, result.images, images))
            loss += config.perceptual.weight * terms["lpips"]
        if adversarial:
            terms["adversarial"] = generator_loss(self._logits(variables, result.images), config.adversarial.loss)
            loss += config.adversarial.weight * terms["adversarial"]
        collections = {"tokenizer": result.collections} if result.collections else {}
        return loss, LossAux(terms | dict(result.metrics), collections)

    def _discrimination(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        images = batch["image"]
        fake = self.tokenizer.reconstruct(variables["tokenizer"], images, key, train=False).images
        on_real, on_fake = self._logits(variables, images), self._logits(variables, fake)
        loss = discriminator_loss(on_real, on_fake, self.config.adversarial.loss)
        return loss, LossAux({"logits_real": on_real.mean(), "logits_fake": on_fake.mean()})

    def _logits(self, variables: dict[str, Variables], images: Array) -> Array:
        return self._critic.apply(variables["discriminator"], images)

    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        """Per image: l1, mse, psnr in dB (of images in [-1, 1], clipped) and lpips; code use of the batch."""
        images = batch["image"]
        result = self.tokenizer.reconstruct(variables["tokenizer"], images, None, train=False)
        decoded = jnp.clip(result.images, -1, 1)
        axes = (1, 2, 3)
        mse = jnp.mean((decoded - images) ** 2, axis=axes)
        figures = {"l1": jnp.mean(jnp.abs(decoded - images), axis=axes), "mse": mse}
        figures["psnr"] = 10 * jnp.log10(4 / jnp.maximum(mse, _TINY))
        if self.config.perceptual.weight:
            figures["lpips"] = perceptual.distance(variables[_PERCEPTUAL]["params"], decoded, images)
        return figures | dict(result.metrics)


@typechecked
def generator_loss(fake: Float[Array, "b ph pw"], kind: str) -> Float[Array, ""]:
    """What logits of reconstructions cost the tokenizer: -mean for "hinge", mean softplus(-x) for "non_saturating"."""
    return -jnp.mean(fake) if kind == "hinge" else jnp.mean(jax.nn.softplus(-fake))


@typechecked
def discriminator_loss(real: Float[Array, "b ph pw"], fake: Float[Array, "b ph pw"], kind: str) -> Float[Array, ""]:
    """Half the mean of relu(1 - real) + relu(1 + fake) for "hinge", of softplus(-real) + softplus(fake) otherwise."""
    if kind == "hinge":
        return 0.5 * jnp.mean(jax.nn.relu(1 - real) + jax.nn.relu(1 + fake))
    return 0.5 * jnp.mean(jax.nn.softplus(-real) + jax.nn.softplus(fake))


def build(config: Config, model: Model, task: Task) -> Autoencoder:
    """Training of `task.tokenizer`.

    Raises:
      ConfigError: no tokenizer to train, images too small for the discriminator or the perceptual network.
    """
    if task.tokenizer is None:
        raise ConfigError("method.name='autoencoder' trains a tokenizer; give one as tokenizer.name")
    if config.adversarial.weight:
        model.check(task.image.size)
    if config.perceptual.weight and task.image.size < perceptual.MIN_SIZE:
        raise ConfigError(
            f"method.perceptual.weight={config.perceptual.weight} needs images of at least {perceptual.MIN_SIZE} "
            f"pixels, data.image_size={task.image.size}; use weight 0"
        )
    return Autoencoder(config, model, task.tokenizer, task.image)
