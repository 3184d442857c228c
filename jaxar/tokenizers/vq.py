"""Vector-quantized autoencoder with low-dimensional codes of unit length (the tokenizer of LlamaGen).

Reference: Esser et al., Taming Transformers for High-Resolution Image Synthesis, 2021; Sun et al., Autoregressive Model
Beats Diffusion: Llama for Scalable Image Generation, 2024, section 3.1.

Golden: llamagen_vq16
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.nn import quantize
from jaxar.nn.convnet import ConvStack
from jaxar.partition import logical
from jaxar.tokenizers import _code_use
from jaxar.tokenizers._autoencoder import Autoencoder, Dtype, grid_side
from jaxar.tokenizers._code_use import DEFAULT_GUARD, CodeGuard
from jaxar.tokenizers.base import ImageSpec, Reconstruction, Tokens, TokenSpec
from jaxar.typing import Array, Float, Int, Key, Metrics, Params, Variables, typechecked

OFFICIAL_STACK = ConvStack(128, (1, 1, 2, 2, 4))


@dataclasses.dataclass(frozen=True)
class Config:
    """The `tokenizer` section; defaults are LlamaGen's stride-16 tokenizer of 256-pixel images.

    Attributes:
      vocab_size: number of codes.
      code_channels: width of a code.
      stack: sizes of encoder and decoder.
      latent_channels: width before the 1x1 convolution into code space.
      beta: weight of the commitment loss against the codebook loss.
      entropy_weight: of the entropy loss, 0 for none; it costs a softmax over all codes per token.
      guard: against dead codes.
      dtype: the convolutions compute in it; quantization is float32 always.
    """

    vocab_size: int = 16384
    code_channels: int = 8
    stack: ConvStack = OFFICIAL_STACK
    latent_channels: int = 256
    beta: float = 0.25
    entropy_weight: float = 0.0
    guard: CodeGuard = DEFAULT_GUARD
    dtype: Dtype = "float32"

    def __post_init__(self):
        for name in ("vocab_size", "code_channels", "latent_channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"tokenizer.{name}={getattr(self, name)} must be at least 1")


class Coded(NamedTuple):
    """Quantized features.

    Attributes:
      features: of unit length.
      ids, codes: the nearest codes, and what they are.
      terms: weighted losses of the code space, by name.
    """

    features: Float[Array, "b gh gw e"]
    ids: Int[Array, "b gh gw"]
    codes: Float[Array, "b gh gw e"]
    terms: Metrics


@dataclasses.dataclass(frozen=True)
class VQ:
    """A raster tokenizer: one code per cell of the grid, rows first."""

    config: Config
    image: ImageSpec
    spec: TokenSpec

    @property
    def _net(self) -> Autoencoder:
        c = self.config
        return Autoencoder(c.stack, self.image.channels, c.latent_channels, c.code_channels, 1, c.dtype)

    def init(self, key: Key) -> Variables:
        net_key, code_key = jax.random.split(key)
        side, shape = self.config.stack.stride, (self.config.vocab_size, self.config.code_channels)
        params = self._net.init(net_key, jnp.zeros((1, side, side, self.image.channels)))["params"]
        codes = quantize.l2_normalize(jax.random.normal(code_key, shape))
        codebook = logical(lambda: codes, "vocab", "embed_table")()
        return {"params": {**params, "codebook": codebook}, _code_use.COLLECTION: _code_use.create(codes, 1)}

    @typechecked
    def features(self, variables: Variables, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw e"]:
        """Encoder features before normalisation and quantization, one per token."""
        return self._net.apply({"params": variables["params"]}, images, method="encode")

    @typechecked
    def codes(self, variables: Variables) -> Float[Array, "v e"]:
        """The codes, of unit length."""
        return _codebook(variables["params"])

    @typechecked
    def quantized(self, variables: Variables, ids: Int[Array, "b n"]) -> Float[Array, "b gh gw e"]:
        """The unit-length codes of `ids`: what the decoder reads."""
        codes = quantize.lookup(_codebook(variables["params"]), ids)
        return codes.reshape(ids.shape[0], *self.spec.grid, -1)

    @typechecked
    def decode_features(self, variables: Variables, quantized: Float[Array, "b gh gw e"]) -> Float[Array, "b h w c"]:
        """Images of a quantized map, not clipped."""
        return self._net.apply({"params": variables["params"]}, quantized, method="decode")

    @typechecked
    def encode(self, variables: Variables, images: Float[Array, "b h w c"], key: Key | None = None) -> Tokens:
        normalized = quantize.l2_normalize(self.features(variables, images))
        ids = quantize.nearest(normalized, _codebook(variables["params"]))
        return Tokens(ids=ids.reshape(images.shape[0], -1))

    @typechecked
    def decode(self, variables: Variables, tokens: Tokens) -> Float[Array, "b h w c"]:
        return jnp.clip(self.decode_features(variables, self.quantized(variables, tokens.ids)), -1, 1)

    @typechecked
    def reconstruct(
        self, variables: Variables, images: Float[Array, "b h w c"], key: Key | None, train: bool
    ) -> Reconstruction:
        c, coded = self.config, self.code(variables, self.features(variables, images))
        reconstruction = self.decode_features(variables, quantize.straight_through(coded.features, coded.codes))
        flat, seen = (images.shape[0], -1), jax.lax.stop_gradient(coded.features)
        use = _code_use.observe(
            variables, coded.ids.reshape(flat), seen.reshape(*flat, c.code_channels), self.spec, c.guard, train
        )
        return Reconstruction(reconstruction, sum(coded.terms.values()), coded.terms | use.metrics, use.collections)

    @typechecked
    def code(self, variables: Variables, features: Float[Array, "b gh gw e"]) -> Coded:
        """Quantizes the encoder's features, with the loss terms of the code space."""
        c, codebook, stop = self.config, _codebook(variables["params"]), jax.lax.stop_gradient
        features = quantize.l2_normalize(features)
        ids = quantize.nearest(features, codebook)
        codes = quantize.lookup(codebook, ids)
        terms = {
            "codebook_loss": jnp.mean((codes - stop(features)) ** 2),
            "commitment_loss": c.beta * jnp.mean((stop(codes) - features) ** 2),
        }
        if c.entropy_weight:
            terms["entropy_loss"] = c.entropy_weight * quantize.entropy_loss(features, codebook)
        return Coded(features, ids, codes, terms)

    def project(self, params: Params, collections: dict[str, Any], key: Key) -> tuple[Params, dict[str, Any]]:
        return _code_use.project(params, collections, self.spec, self.config.guard, key)


def _codebook(params: Params) -> Float[Array, "v e"]:
    return quantize.l2_normalize(params["codebook"])


def build(config: Config, image: ImageSpec) -> VQ:
    """The tokenizer of images of this size.

    Raises:
      ConfigError: the stride does not divide the image.
    """
    side = grid_side(config.stack, image)
    return VQ(config, image, TokenSpec("discrete", ((side, side),), config.code_channels, config.vocab_size))
