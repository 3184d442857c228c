"""Patch discriminator of adversarial tokenizer training: one logit per patch of the image.

Reference: Isola et al., Image-to-Image Translation with Conditional Adversarial Networks, 2017, section 3.2.2. Group
norm replaces batch norm: it has no state, and neither real and reconstructed images nor devices mix in its statistics.
"""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.nn.convnet import conv, group_norm
from jaxar.typing import Array, Float, typechecked

_KERNEL = 4
_SLOPE = 0.2  # of the leaky rectifier
_WIDEST = 8  # largest width, as a multiple of the first


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The section `model` of tokenizer training.

    Attributes:
      channels: width of the first layer; it doubles from layer to layer, up to eight times.
      num_layers: layers that halve the resolution; 3 gives patches of 70 pixels, images of 8 pixels allow 1.
      groups: of the group norms.
    """

    channels: int = 64
    num_layers: int = 3
    groups: int = 32

    def __post_init__(self):
        if self.num_layers < 1:
            raise ConfigError(f"model.num_layers={self.num_layers} must be at least 1")
        if self.channels % self.groups:
            raise ConfigError(
                f"model.groups={self.groups} must divide model.channels={self.channels}; use a divisor of it"
            )

    def check(self, image_size: int) -> None:
        """Raises ConfigError if images of this side have no patch left at the last layer."""
        if image_size // 2**self.num_layers < 3:
            deepest = max((image_size // 3).bit_length() - 1, 1)
            raise ConfigError(
                f"model.num_layers={self.num_layers} is too deep for data.image_size={image_size}; "
                f"use at most {deepest}, or method.adversarial.weight=0"
            )


class Discriminator(nn.Module):
    """Images in [-1, 1] to one logit per patch, positive for real ones."""

    sizes: Sizes

    @nn.compact
    @typechecked
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b ph pw"]:
        sizes, init = self.sizes, nn.initializers.normal(0.02)
        layer = functools.partial(conv, kernel=_KERNEL, init=init, padding=((1, 1), (1, 1)))
        x = layer(sizes.channels, name="conv_0", strides=(2, 2))(images)
        x = nn.leaky_relu(x, _SLOPE)
        for i in range(1, sizes.num_layers + 1):
            width = sizes.channels * min(2**i, _WIDEST)
            stride = 2 if i < sizes.num_layers else 1
            x = layer(width, name=f"conv_{i}", strides=(stride, stride), use_bias=False)(x)
            x = nn.leaky_relu(group_norm(sizes.groups, f"norm_{i}")(x), _SLOPE)
        return layer(1, name="logits", out_axis=None)(x)[..., 0].astype(jnp.float32)
