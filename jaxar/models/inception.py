"""The Inception network behind published FIDs: TensorFlow's of 2015-12-05, as exported to PyTorch.

It differs from the common Inception v3: 1008 logits, batch norm with epsilon 1e-3, average pools that leave the padding
out, and a last block that pools by maximum. Layers have their official names. It is only ever evaluated, so batch norm
uses stored statistics, which are parameters like all others.

Reference: Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2016, Sec. 6.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxar.nn.resize import bilinear_tf1
from jaxar.partition import constrain, logical
from jaxar.typing import Array, Float, UInt8, typechecked

SIZE = 299  # side of the images that it sees
POOL_DIM = 2048
SPATIAL_CHANNELS = 7  # of layer mixed_6/conv, which sFID looks at
SPATIAL_DIM = 17 * 17 * SPATIAL_CHANNELS
NUM_LOGITS = 1008
_EPS = 1e-3


@typechecked
def preprocess(images: UInt8[Array, "b h w 3"], size: int = SIZE) -> Float[Array, "b {size} {size} 3"]:
    """What the network sees of RGB images: resized as TensorFlow 1 did, then (x - 128) / 128."""
    return (bilinear_tf1(images.astype(jnp.float32), (size, size)) - 128) / 128


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm with stored statistics, ReLU."""

    features: int
    kernel: tuple[int, int]
    stride: int
    padding: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b ho wo o"]:
        x = nn.Conv(
            self.features,
            self.kernel,
            strides=self.stride,
            padding=self.padding,
            use_bias=False,
            kernel_init=logical(nn.initializers.he_normal(), "conv_window", "conv_window", "conv_in", "conv_out"),
            name="conv",
        )(x)
        ones, zeros = (logical(init, "conv_out") for init in (nn.initializers.ones, nn.initializers.zeros))
        scale, bias, mean, variance = (
            self.param(name, init, (self.features,))
            for name, init in (("scale", ones), ("bias", zeros), ("mean", zeros), ("variance", ones))
        )
        return nn.relu((x - mean) * (scale * jax.lax.rsqrt(variance + _EPS)) + bias)


def _conv(
    x: Array, name: str, features: int, kernel: tuple[int, int] = (1, 1), stride: int = 1, padding: str = "SAME"
) -> Array:
    return ConvNorm(features, kernel, stride, padding, name=name)(x)


_shrink = functools.partial(_conv, kernel=(3, 3), stride=2, padding="VALID")
_max_pool = functools.partial(nn.max_pool, window_shape=(3, 3))
_average = functools.partial(nn.avg_pool, window_shape=(3, 3), padding="SAME", count_include_pad=False)


def _join(*branches: Array) -> Array:
    return constrain(jnp.concatenate(branches, axis=-1), "batch", None, None, None)


class Mixed5(nn.Module):
    """Branches of 1x1, 5x5 and two 3x3 windows."""

    pool_features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        window = _conv(_conv(x, "branch5x5_1", 48), "branch5x5_2", 64, (5, 5))
        double = _conv(_conv(x, "branch3x3dbl_1", 64), "branch3x3dbl_2", 96, (3, 3))
        double = _conv(double, "branch3x3dbl_3", 96, (3, 3))
        pooled = _conv(_average(x), "branch_pool", self.pool_features)
        return _join(_conv(x, "branch1x1", 64), window, double, pooled)


class Mixed6Shrink(nn.Module):
    """Halves the side from 35 to 17."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b ho wo o"]:
        double = _conv(_conv(x, "branch3x3dbl_1", 64), "branch3x3dbl_2", 96, (3, 3))
        pooled = _max_pool(x, strides=(2, 2))
        return _join(_shrink(x, "branch3x3", 384), _shrink(double, "branch3x3dbl_3", 96), pooled)


class Mixed6(nn.Module):
    """Branches whose 7x7 windows are split into rows and columns of `inner` channels."""

    inner: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        row, column, inner = (1, 7), (7, 1), self.inner
        single = _conv(_conv(x, "branch7x7_1", inner), "branch7x7_2", inner, row)
        single = _conv(single, "branch7x7_3", 192, column)
        double = _conv(_conv(x, "branch7x7dbl_1", inner), "branch7x7dbl_2", inner, column)
        double = _conv(_conv(double, "branch7x7dbl_3", inner, row), "branch7x7dbl_4", inner, column)
        double = _conv(double, "branch7x7dbl_5", 192, row)
        pooled = _conv(_average(x), "branch_pool", 192)
        return _join(_conv(x, "branch1x1", 192), single, double, pooled)


class Mixed7Shrink(nn.Module):
    """Halves the side from 17 to 8."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b ho wo o"]:
        small = _shrink(_conv(x, "branch3x3_1", 192), "branch3x3_2", 320)
        large = _conv(_conv(x, "branch7x7x3_1", 192), "branch7x7x3_2", 192, (1, 7))
        large = _shrink(_conv(large, "branch7x7x3_3", 192, (7, 1)), "branch7x7x3_4", 192)
        return _join(small, large, _max_pool(x, strides=(2, 2)))


class Mixed7(nn.Module):
    """Branches whose last 3x3 windows are a row beside a column."""

    max_pool: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        row, column = (1, 3), (3, 1)
        single = _conv(x, "branch3x3_1", 384)
        double = _conv(_conv(x, "branch3x3dbl_1", 448), "branch3x3dbl_2", 384, (3, 3))
        pooled = _max_pool(x, padding="SAME") if self.max_pool else _average(x)
        return _join(
            _conv(x, "branch1x1", 320),
            _conv(single, "branch3x3_2a", 384, row),
            _conv(single, "branch3x3_2b", 384, column),
            _conv(double, "branch3x3dbl_3a", 384, row),
            _conv(double, "branch3x3dbl_3b", 384, column),
            _conv(pooled, "branch_pool", 192),
        )


def _mixed(cls: type[nn.Module], *sizes: int) -> Callable[[Array, str], Array]:
    return lambda x, name: cls(*sizes, name=name)(x)


def _halve(x: Array, name: str) -> Array:
    return _max_pool(x, strides=(2, 2))


_LAYERS: dict[str, Callable[[Array, str], Array]] = {
    "Conv2d_1a_3x3": functools.partial(_shrink, features=32),
    "Conv2d_2a_3x3": functools.partial(_conv, features=32, kernel=(3, 3), padding="VALID"),
    "Conv2d_2b_3x3": functools.partial(_conv, features=64, kernel=(3, 3)),
    "MaxPool_1": _halve,
    "Conv2d_3b_1x1": functools.partial(_conv, features=80),
    "Conv2d_4a_3x3": functools.partial(_conv, features=192, kernel=(3, 3), padding="VALID"),
    "MaxPool_2": _halve,
    "Mixed_5b": _mixed(Mixed5, 32),
    "Mixed_5c": _mixed(Mixed5, 64),
    "Mixed_5d": _mixed(Mixed5, 64),
    "Mixed_6a": _mixed(Mixed6Shrink),
    "Mixed_6b": _mixed(Mixed6, 128),
    "Mixed_6c": _mixed(Mixed6, 160),
    "Mixed_6d": _mixed(Mixed6, 160),
    "Mixed_6e": _mixed(Mixed6, 192),
    "Mixed_7a": _mixed(Mixed7Shrink),
    "Mixed_7b": _mixed(Mixed7, False),
    "Mixed_7c": _mixed(Mixed7, True),
}


class Inception(nn.Module):
    """Class logits and everything on the way to them."""

    @nn.compact
    @typechecked
    def __call__(self, images: Float[Array, "b h w 3"]) -> dict[str, Array]:
        """All layers by official name, after their ReLU; what a jitted caller does not return is never stored.

        Args:
          images: from `preprocess`.
        Returns:
          Beside the layers "pool_3" [b 2048], the mean of the last block; "spatial" [b 17 17 7], the first channels of
          mixed_6/conv; "logits" [b 1008], without bias as in ADM's inception score.
        """
        x = constrain(images, "batch", None, None, None)
        found = {}
        for name, layer in _LAYERS.items():
            x = found[name] = layer(x, name)
        pooled = x.mean((1, 2))
        kernel = self.param("fc_kernel", logical(nn.initializers.lecun_normal(), None, None), (POOL_DIM, NUM_LOGITS))
        self.param("fc_bias", logical(nn.initializers.zeros, None), (NUM_LOGITS,))  # of the file, not of the score
        spatial = found["Mixed_6d"][..., :SPATIAL_CHANNELS]  # its first branch is mixed_6/conv
        return found | {"pool_3": pooled, "spatial": spatial, "logits": pooled @ kernel}
