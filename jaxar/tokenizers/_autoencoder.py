"""The convolutional network around a quantizer: encoder, convolutions into and out of code space, decoder."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.nn.convnet import ConvStack, Decoder, Encoder, conv
from jaxar.tokenizers.base import ImageSpec
from jaxar.typing import Array, Float

Dtype = Literal["float32", "bfloat16"]


class Autoencoder(nn.Module):
    """Images to features in code space and back; both ends are float32, whatever `dtype` the layers compute in.

    Attributes:
      stack: sizes of encoder and decoder.
      image_channels: of the images.
      latent_channels: width between the encoder and the convolution into code space.
      code_channels: width of a code.
      quant_kernel: window of the two convolutions around the quantizer.
    """

    stack: ConvStack
    image_channels: int
    latent_channels: int
    code_channels: int
    quant_kernel: int
    dtype: Dtype = "float32"

    def setup(self):
        dtype = jnp.dtype(self.dtype)
        narrow = {"out_axis": None, "dtype": dtype}
        self.encoder = Encoder(self.stack, self.latent_channels, dtype)
        self.quant_conv = conv(self.code_channels, self.quant_kernel, "quant_conv", **narrow)
        self.post_quant_conv = conv(self.latent_channels, self.quant_kernel, "post_quant_conv", **narrow)
        self.decoder = Decoder(self.stack, self.image_channels, dtype)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.decode(self.encode(images))

    def encode(self, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw e"]:
        return self.quant_conv(self.encoder(images)).astype(jnp.float32)

    def decode(self, features: Float[Array, "b gh gw e"]) -> Float[Array, "b h w c"]:
        return self.decoder(self.post_quant_conv(features)).astype(jnp.float32)


def grid_side(stack: ConvStack, image: ImageSpec) -> int:
    """Side of the token grid of images of this size.

    Raises:
      ConfigError: the stride does not divide the image.
    """
    if image.size % stack.stride:
        raise ConfigError(
            f"tokenizer.multipliers={stack.multipliers} has stride {stack.stride}, which does not divide "
            f"data.image_size={image.size}; use another number of levels (stride 2**(levels - 1)) or another image size"
        )
    return image.size // stack.stride
