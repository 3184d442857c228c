"""Variational autoencoder with a Gaussian posterior per cell of the grid: continuous tokens (the tokenizer of MAR).

The encoder ends in the mean and the log-variance of every latent; training adds their divergence from a standard
normal. Attention sits at the encoder's lowest resolution and in both middles, not in the decoder's levels.

Reference: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022, Sec. 3.1 and App. G; Li
et al., Autoregressive Image Generation without Vector Quantization, 2024, which uses it.

Golden: mar_kl16
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.nn.convnet import ConvStack, Decoder, Encoder, conv
from jaxar.tokenizers._autoencoder import Dtype, grid_side
from jaxar.tokenizers.base import ImageSpec, Reconstruction, Tokens, TokenSpec
from jaxar.typing import Array, Float, Key, Params, Variables, typechecked

OFFICIAL_STACK = ConvStack(128, (1, 1, 2, 2, 4))
_LOG_VARIANCE_RANGE = (-30.0, 20.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """The `tokenizer` section; defaults are MAR's stride-16 autoencoder of 256-pixel images.

    Attributes:
      latent_channels: width of a token.
      stack: sizes of encoder and decoder; `level_attention` is the encoder's alone.
      latent_scale: tokens are latents times this, so that models see unit variance; 0.2325 for the official weights.
        The metric `latent_std` of a training run tells the right one: its inverse.
      kl_weight: of the divergence in nats, summed over the latents of an image and divided by its number of pixel
        values. The reconstruction terms are means over pixel values, so the ratio is that of summing both.
      dtype: the convolutions compute in it.
    """

    latent_channels: int = 16
    stack: ConvStack = OFFICIAL_STACK
    latent_scale: float = 0.2325
    kl_weight: float = 1e-6
    dtype: Dtype = "float32"

    def __post_init__(self):
        if self.latent_channels < 1:
            raise ConfigError(f"tokenizer.latent_channels={self.latent_channels} must be at least 1")
        if self.latent_scale <= 0:
            raise ConfigError(f"tokenizer.latent_scale={self.latent_scale} must be positive; 1 leaves latents alone")
        if self.kl_weight < 0:
            raise ConfigError(f"tokenizer.kl_weight={self.kl_weight} must be at least 0, which switches it off")


class Posterior(NamedTuple):
    """Independent Gaussians over latents: `mean` and `log_variance`, [b gh gw c] each, float32."""

    mean: Float[Array, "b gh gw c"]
    log_variance: Float[Array, "b gh gw c"]

    @property
    def std(self) -> Float[Array, "b gh gw c"]:
        return jnp.exp(0.5 * self.log_variance)

    def draw(self, noise: Float[Array, "b gh gw c"]) -> Float[Array, "b gh gw c"]:
        """Latents, from standard normal noise."""
        return self.mean + self.std * noise

    def divergence(self) -> Float[Array, "b"]:
        """KL divergence from a standard normal in nats, summed over the latents of an image."""
        terms = self.mean**2 + jnp.exp(self.log_variance) - 1 - self.log_variance
        return 0.5 * jnp.sum(terms, axis=(1, 2, 3))


class Network(nn.Module):
    """Images to moments (means, then log-variances, along the channels), and latents to images."""

    stack: ConvStack
    image_channels: int
    latent_channels: int
    dtype: Dtype

    def setup(self):
        dtype, moments = jnp.dtype(self.dtype), 2 * self.latent_channels
        self.encoder = Encoder(self.stack, moments, dtype)
        self.quant_conv = conv(moments, 1, "quant_conv", out_axis=None, dtype=dtype)
        self.post_quant_conv = conv(self.latent_channels, 1, "post_quant_conv", out_axis=None, dtype=dtype)
        self.decoder = Decoder(dataclasses.replace(self.stack, level_attention=False), self.image_channels, dtype)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.decode(jnp.split(self.encode(images), 2, axis=-1)[0])

    def encode(self, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw 2*e"]:
        return self.quant_conv(self.encoder(images)).astype(jnp.float32)

    def decode(self, latents: Float[Array, "b gh gw e"]) -> Float[Array, "b h w c"]:
        return self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class KL:
    """A raster tokenizer: one latent vector per cell of the grid, rows first."""

    config: Config
    image: ImageSpec
    spec: TokenSpec

    @property
    def _net(self) -> Network:
        return Network(self.config.stack, self.image.channels, self.config.latent_channels, self.config.dtype)

    def init(self, key: Key) -> Variables:
        side = self.config.stack.stride
        return self._net.init(key, jnp.zeros((1, side, side, self.image.channels)))

    @typechecked
    def posterior(self, variables: Variables, images: Float[Array, "b h w c"]) -> Posterior:
        """The distribution of each image's latents, before `latent_scale`."""
        moments = self._net.apply({"params": variables["params"]}, images, method="encode")
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.clip(log_variance, *_LOG_VARIANCE_RANGE))

    @typechecked
    def decode_latents(self, variables: Variables, latents: Float[Array, "b gh gw e"]) -> Float[Array, "b h w c"]:
        """Images of latents before `latent_scale`, not clipped."""
        return self._net.apply({"params": variables["params"]}, latents, method="decode")

    @typechecked
    def encode(self, variables: Variables, images: Float[Array, "b h w c"], key: Key | None = None) -> Tokens:
        latents = _draw(self.posterior(variables, images), key) * self.config.latent_scale
        return Tokens(latents=latents.reshape(images.shape[0], -1, self.config.latent_channels))

    @typechecked
    def decode(self, variables: Variables, tokens: Tokens) -> Float[Array, "b h w c"]:
        latents = tokens.latents.reshape(-1, *self.spec.grid, self.config.latent_channels)
        return jnp.clip(self.decode_latents(variables, latents / self.config.latent_scale), -1, 1)

    @typechecked
    def reconstruct(
        self, variables: Variables, images: Float[Array, "b h w c"], key: Key | None, train: bool
    ) -> Reconstruction:
        posterior = self.posterior(variables, images)
        latents = _draw(posterior, key)
        divergence = jnp.mean(posterior.divergence())
        loss = self.config.kl_weight * divergence / images[0].size
        metrics = {"kl_loss": loss, "kl_nats": divergence, "latent_std": jnp.std(latents)}
        return Reconstruction(self.decode_latents(variables, latents), loss, metrics, {})

    def project(self, params: Params, collections: dict[str, Any], key: Key) -> tuple[Params, dict[str, Any]]:
        return params, collections


def _draw(posterior: Posterior, key: Key | None) -> Float[Array, "b gh gw c"]:
    """A sample of the posterior, or its mean without a key."""
    return posterior.mean if key is None else posterior.draw(jax.random.normal(key, posterior.mean.shape))


def build(config: Config, image: ImageSpec) -> KL:
    """The tokenizer of images of this size.

    Raises:
      ConfigError: the stride does not divide the image.
    """
    side = grid_side(config.stack, image)
    return KL(config, image, TokenSpec("continuous", ((side, side),), config.latent_channels))
