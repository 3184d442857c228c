"""The convolutional network of MaskGIT's tokenizer, which differs from the VQGAN stack of `nn.convnet` in its details.

No attention; residual convolutions without bias; pooling in place of strided convolutions; as many residual blocks per
level in the decoder as in the encoder; and a shortcut that reads the transformed branch, see `ResidualBlock`.

`magvit2` is its descendant in open re-implementations of MAGVIT-v2, which SimVQ uses: the shortcut reads the block's
input, strided 3x3 convolutions shrink, a convolution to four times the channels enlarges, pixels stay in [-1, 1].

Reference: Chang et al., MaskGIT: Masked Generative Image Transformer, 2022; Luo et al., Open-MAGVIT2: An Open-Source
Project Toward Democratizing Auto-regressive Visual Generation, 2024; published code of both.
"""

import flax.linen as nn
import jax.numpy as jnp

from jaxar.nn.convnet import ConvStack, Upsample, conv, group_norm
from jaxar.partition import constrain
from jaxar.typing import Array, Float


class ResidualBlock(nn.Module):
    """Skip + conv(silu(norm(conv(silu(norm(x)))))).

    Where the width changes the skip is a 1x1 convolution of the branch's own output, not of x: so MaskGIT's published
    weights were trained.
    """

    features: int
    groups: int
    dtype: jnp.dtype = jnp.float32
    magvit2: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        options = {"use_bias": False, "dtype": self.dtype}
        h = nn.silu(group_norm(self.groups, "norm_1")(x))
        h = conv(self.features, 3, "conv_1", **options)(h)
        h = nn.silu(group_norm(self.groups, "norm_2")(h))
        h = conv(self.features, 3, "conv_2", **options)(h)
        skip = x
        if x.shape[-1] != self.features:
            skip = conv(self.features, 1, "shortcut", **options)(x if self.magvit2 else h)
        return constrain(skip + h, "batch", None, None, None)


class Level(nn.Module):
    """Residual blocks at one resolution."""

    features: int
    num_blocks: int
    groups: int
    dtype: jnp.dtype = jnp.float32
    magvit2: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        for i in range(self.num_blocks):
            x = ResidualBlock(self.features, self.groups, self.dtype, self.magvit2, name=f"block_{i}")(x)
        return x


class DepthToSpaceUpsample(nn.Module):
    """Doubles the resolution by a 3x3 convolution to the four pixels of each square, ordered (row, column, channel)."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
        b, h, w, c = x.shape
        squares = conv(4 * c, 3, "conv", dtype=self.dtype)(x).reshape(b, h, w, 2, 2, c)
        return squares.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c)


class Encoder(nn.Module):
    """Images to features of `features` channels, smaller by `stack.stride` a side.

    Attributes:
      conv_downsample: strided 4x4 convolutions in place of the mean over 2x2 pixels.
    """

    stack: ConvStack
    features: int
    conv_downsample: bool = False
    dtype: jnp.dtype = jnp.float32
    magvit2: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw e"]:
        stack, last, kind = self.stack, len(self.stack.widths) - 1, (self.dtype, self.magvit2)
        x = conv(stack.channels, 3, "conv_in", use_bias=False, dtype=self.dtype)(images)
        for i, width in enumerate(stack.widths):
            x = Level(width, stack.num_res_blocks, stack.groups, *kind, name=f"level_{i}")(x)
            if i < last and self.magvit2:
                x = conv(width, 3, f"downsample_{i}", strides=(2, 2), padding=1, dtype=self.dtype)(x)
            elif i < last and self.conv_downsample:
                x = conv(width, 4, f"downsample_{i}", strides=(2, 2), dtype=self.dtype)(x)
            elif i < last:
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = Level(stack.widths[-1], stack.num_res_blocks, stack.groups, *kind, name="middle")(x)
        x = nn.silu(group_norm(stack.groups, "norm_out")(x))
        return conv(self.features, 1, "conv_out", out_axis=None, dtype=self.dtype)(x)


class Decoder(nn.Module):
    """Features back to images of `channels` channels, larger by `stack.stride` a side; values are not clipped."""

    stack: ConvStack
    channels: int
    dtype: jnp.dtype = jnp.float32
    magvit2: bool = False

    @nn.compact
    def __call__(self, features: Float[Array, "b gh gw e"]) -> Float[Array, "b h w c"]:
        stack, kind = self.stack, (self.dtype, self.magvit2)
        upsample = DepthToSpaceUpsample if self.magvit2 else Upsample
        x = conv(stack.widths[-1], 3, "conv_in", dtype=self.dtype)(features)
        x = Level(stack.widths[-1], stack.num_res_blocks, stack.groups, *kind, name="middle")(x)
        for i in reversed(range(len(stack.widths))):
            x = Level(stack.widths[i], stack.num_res_blocks, stack.groups, *kind, name=f"level_{i}")(x)
            if i > 0:
                x = upsample(self.dtype, name=f"upsample_{i}")(x)
        x = nn.silu(group_norm(stack.groups, "norm_out")(x))
        return conv(self.channels, 3, "conv_out", out_axis=None, dtype=self.dtype)(x)


class Autoencoder(nn.Module):
    """Images in [-1, 1] to features in code space and back; MaskGIT's layers see pixels in [0, 1]. Both are float32."""

    stack: ConvStack
    image_channels: int
    code_channels: int
    conv_downsample: bool = False
    dtype: str = "float32"
    magvit2: bool = False

    def setup(self):
        kind = jnp.dtype(self.dtype), self.magvit2
        self.encoder = Encoder(self.stack, self.code_channels, self.conv_downsample, *kind)
        self.decoder = Decoder(self.stack, self.image_channels, *kind)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.decode(self.encode(images))

    def encode(self, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw e"]:
        return self.encoder(images if self.magvit2 else (images + 1) / 2).astype(jnp.float32)

    def decode(self, features: Float[Array, "b gh gw e"]) -> Float[Array, "b h w c"]:
        images = self.decoder(features).astype(jnp.float32)
        return images if self.magvit2 else 2 * images - 1
