"""Convolutional encoder and decoder of image tokenizers (the VQGAN stack), and the blocks they are made of.

One parameter layout serves every family: attention keeps separate `query`, `key`, `value` kernels, and levels are
numbered from the highest resolution (`level_0`) in encoder and decoder alike. Converters map official names onto it.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.partition import constrain, logical
from jaxar.typing import Array, Float, typechecked

EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class ConvStack:
    """Sizes of an encoder or a decoder.

    Attributes:
      channels: width at the highest resolution.
      multipliers: width of each level, as a multiple of `channels`, from high to low resolution; each level but the
        last halves the resolution, so the stride is 2**(levels - 1).
      num_res_blocks: residual blocks per level of an encoder; a decoder has one more.
      groups: of every group norm.
      level_attention: attention after each residual block of the lowest resolution.
      mid_attention: attention between the two middle blocks.
    """

    channels: int
    multipliers: tuple[int, ...]
    num_res_blocks: int = 2
    groups: int = 32
    level_attention: bool = True
    mid_attention: bool = True

    def __post_init__(self):
        if not self.multipliers:
            raise ConfigError("tokenizer.multipliers=() must hold one multiplier per level, at least one")
        if self.num_res_blocks < 1:
            raise ConfigError(f"tokenizer.num_res_blocks={self.num_res_blocks} must be at least 1")
        for width in (self.channels, *self.widths):
            if width < 1 or width % self.groups:
                raise ConfigError(
                    f"tokenizer.groups={self.groups} must divide channels={self.channels} and every level's width "
                    f"{self.widths}; use a common divisor of them"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.channels * m for m in self.multipliers)

    @property
    def stride(self) -> int:
        return 2 ** (len(self.multipliers) - 1)


def conv(
    features: int, kernel: int, name: str, *, out_axis: str | None = "conv_out", init=None, dtype=jnp.float32, **kwargs
) -> nn.Conv:
    """A square convolution whose parameters carry logical axis names.

    Args:
      features: output channels.
      kernel: side of the window; stride 1 and "same" zero padding unless `kwargs` (of `nn.Conv`) say otherwise.
      out_axis: logical name of the output channels; None for narrow outputs (pixels, codes) that no mesh should split.
      init: kernel initializer, the variance-scaling default of Linen if None.
    """
    return nn.Conv(
        features,
        (kernel, kernel),
        kernel_init=logical(init or nn.initializers.lecun_normal(), "conv_window", "conv_window", "conv_in", out_axis),
        bias_init=logical(nn.initializers.zeros, out_axis),
        dtype=dtype,
        name=name,
        **kwargs,
    )


def group_norm(groups: int, name: str) -> nn.GroupNorm:
    """Group normalisation with eps 1e-6, in float32 over two passes; the convolution that follows casts."""
    return nn.GroupNorm(
        groups,
        epsilon=EPS,
        use_fast_variance=False,
        dtype=jnp.float32,
        scale_init=logical(nn.initializers.ones, "norm"),
        bias_init=logical(nn.initializers.zeros, "norm"),
        name=name,
    )


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution on the skip where the width changes."""

    features: int
    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        h = nn.silu(group_norm(self.groups, "norm_1")(x))
        h = conv(self.features, 3, "conv_1", dtype=self.dtype)(h)
        h = nn.silu(group_norm(self.groups, "norm_2")(h))
        h = conv(self.features, 3, "conv_2", dtype=self.dtype)(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, "shortcut", dtype=self.dtype)(x)
        return constrain(x + h, "batch", None, None, None)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions of the map, added to the input."""

    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        normed = group_norm(self.groups, "norm")(x)
        query, key, value = (
            conv(c, 1, name, dtype=self.dtype)(normed).reshape(b, h * w, c) for name in ("query", "key", "value")
        )
        logits = jnp.einsum("btc,bsc->bts", query, key, preferred_element_type=jnp.float32) * c**-0.5
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        mixed = jnp.einsum("bts,bsc->btc", weights, value).reshape(b, h, w, c)
        return x + conv(c, 1, "out", dtype=self.dtype)(mixed)


class Downsample(nn.Module):
    """Halves the resolution by a strided 3x3 convolution, padded on the right and the bottom alone."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 c"]:
        return conv(x.shape[-1], 3, "conv", strides=(2, 2), padding=((0, 1), (0, 1)), dtype=self.dtype)(x)


class Upsample(nn.Module):
    """Doubles the resolution by repeating pixels, then a 3x3 convolution."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
        return conv(x.shape[-1], 3, "conv", dtype=self.dtype)(x.repeat(2, axis=1).repeat(2, axis=2))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention if asked for."""

    features: int
    num_blocks: int
    groups: int
    attention: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        for i in range(self.num_blocks):
            x = ResidualBlock(self.features, self.groups, self.dtype, name=f"block_{i}")(x)
            if self.attention:
                x = AttentionBlock(self.groups, self.dtype, name=f"attention_{i}")(x)
        return x


class Middle(nn.Module):
    """Two residual blocks around attention, at the lowest resolution."""

    groups: int
    attention: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = ResidualBlock(x.shape[-1], self.groups, self.dtype, name="block_0")(x)
        if self.attention:
            x = AttentionBlock(self.groups, self.dtype, name="attention")(x)
        return ResidualBlock(x.shape[-1], self.groups, self.dtype, name="block_1")(x)


class Encoder(nn.Module):
    """Images to features of `features` channels, smaller by `stack.stride` a side."""

    stack: ConvStack
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b ho wo o"]:
        stack, last = self.stack, len(self.stack.widths) - 1
        x = conv(stack.channels, 3, "conv_in", dtype=self.dtype)(images)
        for i, width in enumerate(stack.widths):
            attention = stack.level_attention and i == last
            x = Level(width, stack.num_res_blocks, stack.groups, attention, self.dtype, name=f"level_{i}")(x)
            if i < last:
                x = Downsample(self.dtype, name=f"downsample_{i}")(x)
        x = Middle(stack.groups, stack.mid_attention, self.dtype, name="middle")(x)
        x = nn.silu(group_norm(stack.groups, "norm_out")(x))
        return conv(self.features, 3, "conv_out", out_axis=None, dtype=self.dtype)(x)


class Decoder(nn.Module):
    """Features back to images of `channels` channels, larger by `stack.stride` a side; values are not clipped."""

    stack: ConvStack
    channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, features: Float[Array, "b h w c"]) -> Float[Array, "b ho wo o"]:
        stack, last = self.stack, len(self.stack.widths) - 1
        x = conv(stack.widths[-1], 3, "conv_in", dtype=self.dtype)(features)
        x = Middle(stack.groups, stack.mid_attention, self.dtype, name="middle")(x)
        for i in reversed(range(last + 1)):
            attention = stack.level_attention and i == last
            x = Level(
                stack.widths[i], stack.num_res_blocks + 1, stack.groups, attention, self.dtype, name=f"level_{i}"
            )(x)
            if i > 0:
                x = Upsample(self.dtype, name=f"upsample_{i}")(x)
        x = nn.silu(group_norm(stack.groups, "norm_out")(x))
        return conv(self.channels, 3, "conv_out", out_axis=None, dtype=self.dtype)(x)
