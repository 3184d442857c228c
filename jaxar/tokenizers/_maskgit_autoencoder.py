"""The convolutional network of MaskGIT's tokenizer, which differs from the VQGAN stack of `nn.convnet` in its details.

No attention; residual convolutions without bias; pooling in place of strided convolutions; as many residual blocks per
level in the decoder as in the encoder; and a shortcut that reads the transformed branch, see `ResidualBlock`.

Reference: Chang et al., MaskGIT: Masked Generative Image Transformer, 2022, published code.
"""

import flax.linen as nn
import jax.numpy as jnp

from jaxar.nn.convnet import ConvStack, Upsample, conv, group_norm
from jaxar.partition import constrain
from jaxar.typing import Array, Float


class ResidualBlock(nn.Module):
    """Skip + conv(silu(norm(conv(silu(norm(x)))))).

    Where the width changes the skip is a 1x1 convolution of the branch's own output, not of x: so the published weights
    were trained.
    """

    features: int
    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        options = {"use_bias": False, "dtype": self.dtype}
        h = nn.silu(group_norm(self.groups, "norm_1")(x))
        h = conv(self.features, 3, "conv_1", **options)(h)
        h = nn.silu(group_norm(self.groups, "norm_2")(h))
        h = conv(self.features, 3, "conv_2", **options)(h)
        skip = x if x.shape[-1] == self.features else conv(self.features, 1, "shortcut", **options)(h)
        return constrain(skip + h, "batch", None, None, None)


class Level(nn.Module):
    """Residual blocks at one resolution."""

    features: int
    num_blocks: int
    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        for i in range(self.num_blocks):
            x = ResidualBlock(self.features, self.groups, self.dtype, name=f"block_{i}")(x)
        return x


class Encoder(nn.Module):
    """Images to features of `features` channels, smaller by `stack.stride` a side.

    Attributes:
      conv_downsample: strided 4x4 convolutions in place of the mean over 2x2 pixels.
    """

    stack: ConvStack
    features: int
    conv_downsample: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw e"]:
        stack, last = self.stack, len(self.stack.widths) - 1
        x = conv(stack.channels, 3, "conv_in", use_bias=False, dtype=self.dtype)(images)
        for i, width in enumerate(stack.widths):
            x = Level(width, stack.num_res_blocks, stack.groups, self.dtype, name=f"level_{i}")(x)
            if i < last and self.conv_downsample:
                x = conv(width, 4, f"downsample_{i}", strides=(2, 2), dtype=self.dtype)(x)
            elif i < last:
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = Level(stack.widths[-1], stack.num_res_blocks, stack.groups, self.dtype, name="middle")(x)
        x = nn.silu(group_norm(stack.groups, "norm_out")(x))
        return conv(self.features, 1, "conv_out", out_axis=None, dtype=self.dtype)(x)


class Decoder(nn.Module):
    """Features back to images of `channels` channels, larger by `stack.stride` a side; values are not clipped."""

    stack: ConvStack
    channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "b gh gw e"]) -> Float[Array, "b h w c"]:
        stack = self.stack
        x = conv(stack.widths[-1], 3, "conv_in", dtype=self.dtype)(features)
        x = Level(stack.widths[-1], stack.num_res_blocks, stack.groups, self.dtype, name="middle")(x)
        for i in reversed(range(len(stack.widths))):
            x = Level(stack.widths[i], stack.num_res_blocks, stack.groups, self.dtype, name=f"level_{i}")(x)
            if i > 0:
                x = Upsample(self.dtype, name=f"upsample_{i}")(x)
        x = nn.silu(group_norm(stack.groups, "norm_out")(x))
        return conv(self.channels, 3, "conv_out", out_axis=None, dtype=self.dtype)(x)


class Autoencoder(nn.Module):
    """Images in [-1, 1] to features in code space and back; the layers see pixels in [0, 1]. Both ends are float32."""

    stack: ConvStack
    image_channels: int
    code_channels: int
    conv_downsample: bool = False
    dtype: str = "float32"

    def setup(self):
        dtype = jnp.dtype(self.dtype)
        self.encoder = Encoder(self.stack, self.code_channels, self.conv_downsample, dtype)
        self.decoder = Decoder(self.stack, self.image_channels, dtype)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.decode(self.encode(images))

    def encode(self, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw e"]:
        return self.encoder((images + 1) / 2).astype(jnp.float32)

    def decode(self, features: Float[Array, "b gh gw e"]) -> Float[Array, "b h w c"]:
        return 2 * self.decoder(features).astype(jnp.float32) - 1
