"""Vector-quantized autoencoder of one token map; by default with codes of unit length (the tokenizer of LlamaGen).

`quantizer` names how features become codes: "l2_vq", "vq", "simvq", "fsq", "lfq" or "bsq" (`tokenizers/_quantizers`).

Reference: Esser et al., Taming Transformers for High-Resolution Image Synthesis, 2021; Sun et al., Autoregressive Model
Beats Diffusion: Llama for Scalable Image Generation, 2024, section 3.1.

Golden: llamagen_vq16, simvq
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.nn import quantize
from jaxar.nn.convnet import ConvStack
from jaxar.tokenizers import _code_use, _maskgit_autoencoder
from jaxar.tokenizers._autoencoder import Autoencoder, Dtype, grid_side
from jaxar.tokenizers._quantizers import L2VQ, AnyQuantizer
from jaxar.tokenizers._quantizers.base import distances
from jaxar.tokenizers.base import ImageSpec, Reconstruction, Tokens, TokenSpec
from jaxar.typing import Array, Float, Int, Key, Metrics, Params, Variables, typechecked

OFFICIAL_STACK = ConvStack(128, (1, 1, 2, 2, 4))


@dataclasses.dataclass(frozen=True)
class Config:
    """The `tokenizer` section; defaults are LlamaGen's stride-16 tokenizer of 256-pixel images.

    Attributes:
      quantizer: how features become codes.
      network: "vqgan", or "magvit2" as SimVQ has it: no attention, no convolutions around the quantizer.
      stack: sizes of encoder and decoder.
      latent_channels: width before the 1x1 convolution into code space of "vqgan".
      dtype: the convolutions compute in it; quantization is float32 always.
    """

    quantizer: AnyQuantizer = L2VQ()  # noqa: RUF009 - frozen
    network: Literal["vqgan", "magvit2"] = "vqgan"
    stack: ConvStack = OFFICIAL_STACK
    latent_channels: int = 256
    dtype: Dtype = "float32"

    def __post_init__(self):
        if self.latent_channels < 1:
            raise ConfigError(f"tokenizer.latent_channels={self.latent_channels} must be at least 1")
        if self.network == "magvit2" and (self.stack.level_attention or self.stack.mid_attention):
            raise ConfigError(
                "tokenizer.network='magvit2' has no attention; set tokenizer.stack.level_attention=False and "
                "tokenizer.stack.mid_attention=False"
            )


class Coded(NamedTuple):
    """Quantized features.

    Attributes:
      features: bounded, see `Quantizer.bound`.
      ids, codes: the chosen codes, and what they are.
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
    def _net(self) -> nn.Module:
        c, channels, width = self.config, self.image.channels, self.config.quantizer.channels
        if c.network == "magvit2":
            return _maskgit_autoencoder.Autoencoder(c.stack, channels, width, dtype=c.dtype, magvit2=True)
        return Autoencoder(c.stack, channels, c.latent_channels, width, 1, c.dtype)

    def init(self, key: Key) -> Variables:
        net_key, code_key = jax.random.split(key)
        side = self.config.stack.stride
        params = self._net.init(net_key, jnp.zeros((1, side, side, self.image.channels)))["params"]
        own = self.config.quantizer.init(code_key)
        statistics = _code_use.initial(own["params"], self.spec)
        return {**own, "params": {**params, **own["params"]}, _code_use.COLLECTION: statistics}

    @typechecked
    def features(self, variables: Variables, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw e"]:
        """Encoder features before normalisation and quantization, one per token."""
        return self._net.apply({"params": variables["params"]}, images, method="encode")

    @typechecked
    def codes(self, variables: Variables) -> Float[Array, "v e"]:
        return self.config.quantizer.codes(variables, jnp.arange(self.spec.vocab_size))

    @typechecked
    def quantized(self, variables: Variables, ids: Int[Array, "b n"]) -> Float[Array, "b gh gw e"]:
        """The codes of `ids`: what the decoder reads."""
        return self.config.quantizer.codes(variables, ids).reshape(ids.shape[0], *self.spec.grid, -1)

    @typechecked
    def decode_features(self, variables: Variables, quantized: Float[Array, "b gh gw e"]) -> Float[Array, "b h w c"]:
        """Images of a quantized map, not clipped."""
        return self._net.apply({"params": variables["params"]}, quantized, method="decode")

    @typechecked
    def encode(self, variables: Variables, images: Float[Array, "b h w c"], key: Key | None = None) -> Tokens:
        quantizer = self.config.quantizer
        ids = quantizer.choose(variables, quantizer.bound(self.features(variables, images)))
        return Tokens(ids=ids.reshape(images.shape[0], -1))

    @typechecked
    def decode(self, variables: Variables, tokens: Tokens) -> Float[Array, "b h w c"]:
        if tokens.latents is None:
            quantized = self.quantized(variables, tokens.ids)
        else:
            quantized = tokens.latents.reshape(len(tokens.latents), *self.spec.grid, -1)
        return jnp.clip(self.decode_features(variables, quantized), -1, 1)

    @typechecked
    def reconstruct(
        self, variables: Variables, images: Float[Array, "b h w c"], key: Key | None, train: bool
    ) -> Reconstruction:
        quantizer, coded = self.config.quantizer, self.code(variables, self.features(variables, images))
        reconstruction = self.decode_features(variables, quantize.straight_through(coded.features, coded.codes))
        ids = coded.ids.reshape(images.shape[0], -1)
        seen = jax.lax.stop_gradient(coded.features).reshape(*ids.shape, -1)
        use = _code_use.observe(variables, ids, seen, self.spec, quantizer.guard, train)
        loss = sum(coded.terms.values(), jnp.zeros(()))
        return Reconstruction(reconstruction, loss, coded.terms | use.metrics, use.collections)

    @typechecked
    def code(self, variables: Variables, features: Float[Array, "b gh gw e"]) -> Coded:
        """Quantizes the encoder's features, with the loss terms of the code space."""
        quantizer = self.config.quantizer
        features = quantizer.bound(features)
        ids = quantizer.choose(variables, features)
        codes = quantizer.codes(variables, ids)
        terms = distances(quantizer, features, codes) | quantizer.entropy_terms(variables, features)
        return Coded(features, ids, codes, terms)

    def project(self, params: Params, collections: dict[str, Any], key: Key) -> tuple[Params, dict[str, Any]]:
        return _code_use.project(params, collections, self.spec, self.config.quantizer.guard, key)


def build(config: Config, image: ImageSpec) -> VQ:
    """The tokenizer of images of this size.

    Raises:
      ConfigError: the stride does not divide the image.
    """
    side = grid_side(config.stack, image)
    quantizer = config.quantizer
    return VQ(config, image, TokenSpec("discrete", ((side, side),), quantizer.channels, quantizer.vocab_size))
