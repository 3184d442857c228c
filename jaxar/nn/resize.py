"""Bicubic and area resizing of NHWC arrays, equal to the kernels that published multi-scale tokenizers learned with,
and the bilinear one of published evaluations.

The first two are one fixed matrix per axis, computed in float64 and applied as a matrix product.
`jax.image.resize` differs: its cubic kernel has a = -0.5, renormalises at the border and smooths when it shrinks.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.typing import Array, Float, typechecked

_CUBIC_A = -0.75


@functools.cache
def bicubic_matrix(size: int, new_size: int) -> np.ndarray:
    """Weights [new_size, size] of cubic interpolation.

    Pixel centres are at half integers, indices are clamped at the border, and shrinking does not smooth.

    Reference: Keys, Cubic convolution interpolation for digital image processing, 1981, with a = -0.75 (PyTorch's
    choice) in place of -0.5.
    """
    centres = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    left = np.floor(centres).astype(int)
    matrix = np.zeros((new_size, size))
    for tap in range(-1, 3):
        weights = _cubic(np.abs(centres - (left + tap)))
        # Taps outside repeat the border pixel and keep their weight.
        np.add.at(matrix, (np.arange(new_size), np.clip(left + tap, 0, size - 1)), weights)
    return matrix


def _cubic(distance: np.ndarray) -> np.ndarray:
    a, x = _CUBIC_A, distance
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.cache
def area_matrix(size: int, new_size: int) -> np.ndarray:
    """Weights [new_size, size] of adaptive average pooling.

    Window i is [floor(i size / new_size), ceil((i + 1) size / new_size)), so windows overlap where `new_size` does not
    divide `size`.
    """
    matrix = np.zeros((new_size, size))
    for i in range(new_size):
        start, stop = i * size // new_size, -(-(i + 1) * size // new_size)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


@typechecked
def bicubic(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b ho wo c"]:
    """Resizes `x` to (height, width) = `size` by cubic interpolation with `bicubic_matrix`."""
    return _apply(x, bicubic_matrix(x.shape[1], size[0]), bicubic_matrix(x.shape[2], size[1]))


@typechecked
def area(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b ho wo c"]:
    """Resizes `x` to (height, width) = `size` by averaging windows with `area_matrix`."""
    return _apply(x, area_matrix(x.shape[1], size[0]), area_matrix(x.shape[2], size[1]))


@typechecked
def bilinear_tf1(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b ho wo c"]:
    """Resizes `x` to (height, width) = `size` as TensorFlow 1 did, in float32.

    Pixel i of the result is read at i * old / new: corners, not centres, are aligned at the top left, and shrinking
    does not smooth. Published evaluations see images through it.
    """
    x = _lerp(x, x.shape[2], size[1], axis=2)
    return _lerp(x, x.shape[1], size[0], axis=1)


def _lerp(x: Array, size: int, new_size: int, axis: int) -> Array:
    places = np.arange(new_size, dtype=np.float32) * np.float32(size / new_size)
    low = np.floor(places).astype(int)
    below, above = (jnp.take(x, np.minimum(i, size - 1), axis=axis) for i in (low, low + 1))
    share = (places - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return below + (above - below) * share


def _apply(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    if rows.shape[0] == rows.shape[1] and columns.shape[0] == columns.shape[1]:
        return x  # both kernels are the identity between equal sizes
    # Full precision: what is resized here decides between nearest codes.
    return jnp.einsum(
        "ih,jw,bhwc->bijc",
        jnp.asarray(rows, x.dtype),
        jnp.asarray(columns, x.dtype),
        x,
        precision=jax.lax.Precision.HIGHEST,
    )
