"""The vector-quantized autoencoder of MaskGIT: wide codes of any length, and an entropy loss against dead ones.

Reference: Chang et al., MaskGIT: Masked Generative Image Transformer, 2022, Sec. 3.1 and published code.

Golden: maskgit_vqgan
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.nn import quantize
from jaxar.nn.convnet import ConvStack
from jaxar.partition import logical
from jaxar.tokenizers import _code_use
from jaxar.tokenizers._autoencoder import Dtype, grid_side
from jaxar.tokenizers._code_use import DEFAULT_GUARD, CodeGuard
from jaxar.tokenizers._maskgit_autoencoder import Autoencoder
from jaxar.tokenizers.base import ImageSpec, Reconstruction, Tokens, TokenSpec
from jaxar.typing import Array, Float, Int, Key, Params, Variables, typechecked


@dataclasses.dataclass(frozen=True)
class Config:
    """The `tokenizer` section; defaults are MaskGIT's stride-16 tokenizer of 256-pixel images.

    Attributes:
      vocab_size: number of codes.
      code_channels: width of a code.
      channels, multipliers, num_res_blocks, groups: as in `ConvStack`; the decoder has as many blocks as the encoder.
      conv_downsample: strided convolutions in place of pooling.
      beta: weight of the commitment loss against the codebook loss.
      entropy_weight: of the entropy loss, 0 for none; it costs a softmax over all codes per token.
      entropy_temperature: of that softmax, in units of squared distance.
      guard: against dead codes; the published recipe has none.
      dtype: the convolutions compute in it; quantization is float32 always.
    """

    vocab_size: int = 1024
    code_channels: int = 256
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    groups: int = 32
    conv_downsample: bool = False
    beta: float = 0.25
    entropy_weight: float = 0.1
    entropy_temperature: float = 0.01
    guard: CodeGuard = DEFAULT_GUARD
    dtype: Dtype = "float32"

    def __post_init__(self):
        for name in ("vocab_size", "code_channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"tokenizer.{name}={getattr(self, name)} must be at least 1")
        if self.entropy_temperature <= 0:
            raise ConfigError(f"tokenizer.entropy_temperature={self.entropy_temperature} must be positive")
        _ = self.stack  # refuses sizes that do not fit

    @property
    def stack(self) -> ConvStack:
        return ConvStack(self.channels, self.multipliers, self.num_res_blocks, self.groups, False, False)


@dataclasses.dataclass(frozen=True)
class MaskGITVQ:
    """A raster tokenizer: one code per cell of the grid, rows first."""

    config: Config
    image: ImageSpec
    spec: TokenSpec

    @property
    def _net(self) -> Autoencoder:
        c = self.config
        return Autoencoder(c.stack, self.image.channels, c.code_channels, c.conv_downsample, c.dtype)

    def init(self, key: Key) -> Variables:
        net_key, code_key = jax.random.split(key)
        side, shape = self.config.stack.stride, (self.config.vocab_size, self.config.code_channels)
        params = self._net.init(net_key, jnp.zeros((1, side, side, self.image.channels)))["params"]
        codes = jax.nn.initializers.variance_scaling(1.0, "fan_in", "uniform")(code_key, shape)
        codebook = logical(lambda: codes, "vocab", "embed_table")()
        return {"params": {**params, "codebook": codebook}, _code_use.COLLECTION: _code_use.create(codes, 1)}

    @typechecked
    def features(self, variables: Variables, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw e"]:
        """Encoder features before quantization, one per token."""
        return self._net.apply({"params": variables["params"]}, images, method="encode")

    @typechecked
    def codes(self, variables: Variables) -> Float[Array, "v e"]:
        return variables["params"]["codebook"]

    @typechecked
    def quantized(self, variables: Variables, ids: Int[Array, "b n"]) -> Float[Array, "b gh gw e"]:
        """The codes of `ids`: what the decoder reads."""
        return quantize.lookup(variables["params"]["codebook"], ids).reshape(ids.shape[0], *self.spec.grid, -1)

    @typechecked
    def decode_features(self, variables: Variables, quantized: Float[Array, "b gh gw e"]) -> Float[Array, "b h w c"]:
        """Images of a quantized map, not clipped."""
        return self._net.apply({"params": variables["params"]}, quantized, method="decode")

    @typechecked
    def encode(self, variables: Variables, images: Float[Array, "b h w c"], key: Key | None = None) -> Tokens:
        ids = quantize.nearest(self.features(variables, images), variables["params"]["codebook"])
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
        c, codebook, stop = self.config, variables["params"]["codebook"], jax.lax.stop_gradient
        features = self.features(variables, images)
        ids = quantize.nearest(features, codebook)
        codes = quantize.lookup(codebook, ids)
        terms = {
            "codebook_loss": jnp.mean((codes - stop(features)) ** 2),
            "commitment_loss": c.beta * jnp.mean((stop(codes) - features) ** 2),
        }
        if c.entropy_weight:
            entropy = quantize.entropy_loss(features, codebook, c.entropy_temperature)
            terms["entropy_loss"] = c.entropy_weight * entropy
        reconstruction = self.decode_features(variables, quantize.straight_through(features, codes))
        flat = (features.shape[0], -1)
        use = _code_use.observe(
            variables, ids.reshape(flat), stop(features).reshape(*flat, c.code_channels), self.spec, c.guard, train
        )
        return Reconstruction(reconstruction, sum(terms.values()), terms | use.metrics, use.collections)

    def project(self, params: Params, collections: dict[str, Any], key: Key) -> tuple[Params, dict[str, Any]]:
        return _code_use.project(params, collections, self.spec, self.config.guard, key)


def build(config: Config, image: ImageSpec) -> MaskGITVQ:
    """The tokenizer of images of this size.

    Raises:
      ConfigError: the stride does not divide the image.
    """
    side = grid_side(config.stack, image)
    return MaskGITVQ(config, image, TokenSpec("discrete", ((side, side),), config.code_channels, config.vocab_size))
