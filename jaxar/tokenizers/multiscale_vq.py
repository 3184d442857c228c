"""Residual multi-scale vector quantization: token maps of growing size whose codes add up to one feature map (VAR).

The codes of scale k are enlarged to the full grid, smoothed by a convolution phi, and added to the running sum `f_hat`;
the next scale codes what is left of the features. `quantizer` names how: "vq", "l2_vq", "simvq", "fsq", "lfq" or "bsq"
(`tokenizers/_quantizers`).

Reference: Tian et al., Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction, 2024,
Algorithms 1 and 2.

Golden: var_vqvae_c6
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.nn import quantize, resize
from jaxar.nn.convnet import ConvStack
from jaxar.partition import logical
from jaxar.tokenizers import _code_use
from jaxar.tokenizers._autoencoder import Autoencoder, Dtype, grid_side
from jaxar.tokenizers._quantizers import VQ, AnyQuantizer
from jaxar.tokenizers._quantizers.base import distances
from jaxar.tokenizers.base import ImageSpec, Reconstruction, Tokens, TokenSpec
from jaxar.typing import Array, Float, Int, Key, Metrics, Params, Variables, typechecked

KERNEL = 3  # window of phi and of the convolutions around the quantizer
OFFICIAL_STACK = ConvStack(160, (1, 1, 2, 2, 4))


@dataclasses.dataclass(frozen=True)
class Config:
    """The `tokenizer` section; defaults are VAR's stride-16 tokenizer of 256-pixel images.

    Attributes:
      quantizer: how features become codes, shared by all scales.
      stack: sizes of encoder and decoder.
      scales: side of each token map, coarse to fine; the last is the grid of the encoder.
      num_phi: convolutions phi; 1 shares one over all scales, as many as scales gives each its own, a number between
        shares each among neighbouring scales. With more of them than scales some serve none, as in published code.
      phi_ratio: r in phi(x) = (1 - r) x + r conv(x).
      dtype: encoder and decoder compute in it; quantization is float32 always.
    """

    quantizer: AnyQuantizer = VQ()  # noqa: RUF009 - frozen
    stack: ConvStack = OFFICIAL_STACK
    scales: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    num_phi: int = 4
    phi_ratio: float = 0.5
    dtype: Dtype = "float32"

    def __post_init__(self):
        if len(self.scales) < 2 or self.scales[0] < 1 or any(a >= b for a, b in zip(self.scales, self.scales[1:])):
            raise ConfigError(
                f"tokenizer.scales={self.scales} must be at least two growing sides; for one scale use tokenizer 'vq'"
            )
        if self.num_phi < 1:
            raise ConfigError(f"tokenizer.num_phi={self.num_phi} must be at least 1; 1 shares one phi over all scales")
        if not 0 < self.phi_ratio <= 1:
            raise ConfigError(f"tokenizer.phi_ratio={self.phi_ratio} must lie in (0, 1]")


def phi_index(scale: int, num_scales: int, num_phi: int) -> int:
    """Which phi serves `scale` (0-based): the one whose tick on [0, 1] is nearest to scale / (num_scales - 1).

    Ties and the special margin of four ticks are those of the published code, on which released weights depend.
    """
    margin = 1 / (3 if num_phi == 4 else 2) / num_phi
    ticks = np.linspace(margin, 1 - margin, num_phi)
    return int(np.argmin(np.abs(ticks - scale / (num_scales - 1))))


@dataclasses.dataclass(frozen=True)
class MultiscaleVQ:
    """A multi-scale tokenizer; ids of all scales are concatenated coarse to fine, each map row by row."""

    config: Config
    image: ImageSpec
    spec: TokenSpec

    @property
    def _net(self) -> Autoencoder:
        c, width = self.config, self.config.quantizer.channels
        return Autoencoder(c.stack, self.image.channels, width, width, KERNEL, c.dtype)

    def init(self, key: Key) -> Variables:
        net_key, code_key, phi_key = jax.random.split(key, 3)
        c, side = self.config, self.config.stack.stride
        params = self._net.init(net_key, jnp.zeros((1, side, side, self.image.channels)))["params"]
        own, phi = c.quantizer.init(code_key), _init_phi(phi_key, c.num_phi, c.quantizer.channels)
        return {
            **own,
            "params": {**params, **own["params"], "phi": phi},
            _code_use.COLLECTION: _code_use.initial(own["params"], self.spec),
        }

    @typechecked
    def features(self, variables: Variables, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw e"]:
        """Encoder features before quantization, on the grid of the last scale."""
        return self._net.apply({"params": variables["params"]}, images, method="encode")

    @typechecked
    def codes(self, variables: Variables) -> Float[Array, "v e"]:
        return self.config.quantizer.codes(variables, jnp.arange(self.spec.vocab_size))

    @typechecked
    def contribution(self, variables: Variables, scale: int, ids: Int[Array, "b s"]) -> Float[Array, "b gh gw e"]:
        """What the token map of `scale` (0-based) adds to the feature map: its codes, enlarged and smoothed by phi."""
        return self.lifted(variables, scale, self.config.quantizer.codes(variables, ids))

    @typechecked
    def lifted(self, variables: Variables, scale: int, values: Float[Array, "b s e"]) -> Float[Array, "b gh gw e"]:
        """As `contribution`, for codes or any values in their place."""
        params = variables["params"]
        enlarged = resize.bicubic(values.reshape(len(values), *self.spec.scales[scale], -1), self.spec.grid)
        index, ratio = phi_index(scale, len(self.spec.scales), self.config.num_phi), self.config.phi_ratio
        smoothed = jax.lax.conv_general_dilated(
            enlarged,
            params["phi"]["kernel"][index],
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=quantize.PRECISION,
        )
        return (1 - ratio) * enlarged + ratio * (smoothed + params["phi"]["bias"][index])

    @typechecked
    def residual(self, variables: Variables, features: Float[Array, "b gh gw e"]) -> quantize.Residual:
        """Codes of all scales for encoder features, and the feature map after each scale."""
        quantizer = self.config.quantizer
        return quantize.quantize_residual(
            features,
            self.spec.scales,
            lambda target: quantizer.choose(variables, quantizer.bound(target)),
            lambda scale, ids: self.contribution(variables, scale, ids),
        )

    @typechecked
    def cumulative_features(self, variables: Variables, ids: Int[Array, "b n"]) -> Float[Array, "s b gh gw e"]:
        """`f_hat` after each scale for given ids."""
        return self._sums(variables, self.config.quantizer.codes(variables, ids))

    def _sums(self, variables: Variables, values: Float[Array, "b n e"]) -> Float[Array, "s b gh gw e"]:
        maps = [self.lifted(variables, k, part) for k, part in enumerate(self._split(values))]
        return jnp.cumsum(jnp.stack(maps), axis=0)

    @typechecked
    def decode_features(self, variables: Variables, f_hat: Float[Array, "b gh gw e"]) -> Float[Array, "b h w c"]:
        """Images of a feature map, not clipped."""
        return self._net.apply({"params": variables["params"]}, f_hat, method="decode")

    @typechecked
    def encode(self, variables: Variables, images: Float[Array, "b h w c"], key: Key | None = None) -> Tokens:
        return Tokens(ids=self.residual(variables, self.features(variables, images)).ids)

    @typechecked
    def decode(self, variables: Variables, tokens: Tokens) -> Float[Array, "b h w c"]:
        values = tokens.latents
        if values is None:
            values = self.config.quantizer.codes(variables, tokens.ids)
        return jnp.clip(self.decode_features(variables, self._sums(variables, values)[-1]), -1, 1)

    @typechecked
    def teacher_input(self, variables: Variables, ids: Int[Array, "b n"]) -> Float[Array, "b m e"]:
        sums = self.cumulative_features(variables, ids)
        inputs = [resize.area(f_hat, size) for f_hat, size in zip(sums, self.spec.scales[1:])]
        return jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[-1]) for x in inputs], axis=1)

    @typechecked
    def next_input(
        self, variables: Variables, scale: int, f_hat: Float[Array, "b gh gw e"], ids: Int[Array, "b s"]
    ) -> tuple[Float[Array, "b gh gw e"], Float[Array, "b m e"] | None]:
        f_hat = f_hat + self.contribution(variables, scale, ids)
        if scale + 1 == len(self.spec.scales):
            return f_hat, None
        resized = resize.area(f_hat, self.spec.scales[scale + 1])
        return f_hat, resized.reshape(f_hat.shape[0], -1, f_hat.shape[-1])

    @typechecked
    def own_features(self, variables: Variables, scale: int, ids: Int[Array, "b s"]) -> Float[Array, "b s e"]:
        resized = resize.area(self.contribution(variables, scale, ids), self.spec.scales[scale])
        return resized.reshape(*ids.shape, -1)

    @typechecked
    def reconstruct(
        self, variables: Variables, images: Float[Array, "b h w c"], key: Key | None, train: bool
    ) -> Reconstruction:
        features, quantizer = self.features(variables, images), self.config.quantizer
        residual = self.residual(variables, features)
        terms = self.terms(features, residual.sums)
        terms |= quantizer.entropy_terms(variables, quantizer.bound(residual.targets))
        reconstruction = self.decode_features(variables, quantize.straight_through(features, residual.sums[-1]))
        seen = jax.lax.stop_gradient(residual.targets)
        use = _code_use.observe(variables, residual.ids, seen, self.spec, quantizer.guard, train)
        loss = sum(terms.values(), jnp.zeros(()))
        return Reconstruction(reconstruction, loss, terms | use.metrics, use.collections)

    @typechecked
    def terms(self, features: Float[Array, "b gh gw e"], sums: Float[Array, "s b gh gw e"]) -> Metrics:
        """Weighted losses of the code space by name: how far `f_hat` is from the features, averaged over scales."""
        return distances(self.config.quantizer, features, sums)

    def project(self, params: Params, collections: dict[str, Any], key: Key) -> tuple[Params, dict[str, Any]]:
        return _code_use.project(params, collections, self.spec, self.config.quantizer.guard, key)

    def _split(self, tokens: Array) -> list[Array]:
        return jnp.split(tokens, np.cumsum(self.spec.scale_lengths)[:-1], axis=1)


def _init_phi(key: Key, num_phi: int, channels: int) -> dict[str, Any]:
    """Kernel [p kh kw e e] and bias [p e]; each phi starts like any other convolution of its size."""
    make = jax.nn.initializers.lecun_normal(batch_axis=0)
    return {
        "kernel": logical(make, "scales", "conv_window", "conv_window", "conv_in", None)(
            key, (num_phi, KERNEL, KERNEL, channels, channels), jnp.float32
        ),
        "bias": logical(jax.nn.initializers.zeros, "scales", None)(key, (num_phi, channels), jnp.float32),
    }


def build(config: Config, image: ImageSpec) -> MultiscaleVQ:
    """The tokenizer of images of this size.

    Raises:
      ConfigError: the stride does not divide the image, or the last scale is not the encoder's grid.
    """
    side = grid_side(config.stack, image)
    if config.scales[-1] != side:
        raise ConfigError(
            f"tokenizer.scales={config.scales} must end at {side}, the grid of {image.size}-pixel images at stride "
            f"{config.stack.stride}; end the scales there or change tokenizer.stack.multipliers"
        )
    scales, quantizer = tuple((s, s) for s in config.scales), config.quantizer
    return MultiscaleVQ(config, image, TokenSpec("discrete", scales, quantizer.channels, quantizer.vocab_size))
