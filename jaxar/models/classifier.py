"""A small convolutional classifier whose last hidden layer serves as image features."""

import flax.linen as nn
import jax

from jaxar.partition import constrain, logical
from jaxar.typing import Array, Float, typechecked


class Classifier(nn.Module):
    """Stages of 3x3 convolution, GELU and 2x2 average pooling, then a GELU feature layer and class logits.

    Attributes:
      widths: channels of each stage; each stage halves the side of the image.
      feature_dim: width of the feature layer, the input of the linear classifier.
      num_classes: width of the logits.
    """

    widths: tuple[int, ...]
    feature_dim: int
    num_classes: int

    @nn.compact
    @typechecked
    def __call__(self, images: Float[Array, "b h w c"]) -> tuple[Float[Array, "b d"], Float[Array, "b v"]]:
        """Features and logits of images in [-1, 1]."""
        x = constrain(images, "batch", None, None, None)
        for i, width in enumerate(self.widths):
            x = jax.nn.gelu(self._conv(width, name=f"conv{i}")(x))
            x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        features = jax.nn.gelu(self._dense(self.feature_dim, "act_embed", name="features")(x))
        return features, self._dense(self.num_classes, "classes", name="logits")(features)

    def _conv(self, width: int, name: str) -> nn.Conv:
        kernel = logical(nn.initializers.lecun_normal(), "conv_window", "conv_window", "conv_in", "conv_out")
        bias = logical(nn.initializers.zeros, "conv_out")
        return nn.Conv(width, (3, 3), kernel_init=kernel, bias_init=bias, name=name)

    def _dense(self, width: int, axis: str, name: str) -> nn.Dense:
        kernel = logical(nn.initializers.lecun_normal(), None, axis)
        return nn.Dense(width, kernel_init=kernel, bias_init=logical(nn.initializers.zeros, axis), name=name)
