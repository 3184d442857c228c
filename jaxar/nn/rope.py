"""Rotary position tables, and the rotation of adjacent pairs of channels.

A table row holds the cosines and sines of one position; row i of a table belongs to token i. Pairs are interleaved
(channels 2i and 2i+1), as in all image models implemented here.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxar.typing import Array, Float, Int, Shaped, typechecked


class Rotary(NamedTuple):
    """Cosines and sines, each [n, e/2], or [b, n, e/2] with positions per sample."""

    cos: Float[Array, "*b n p"]
    sin: Float[Array, "*b n p"]


@typechecked
def rotary_1d(positions: Shaped[np.ndarray, "n"], head_dim: int, base: float = 10_000.0) -> Rotary:
    """The table of 1-D positions: pair i turns by position * base^(-2i / head_dim).

    Reference: Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021, Eq. 15.
    """
    assert head_dim % 2 == 0, head_dim
    frequencies = base ** -(np.arange(0, head_dim, 2) / head_dim)
    angles = np.asarray(positions, np.float64)[:, None] * frequencies
    return Rotary(jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32))


@typechecked
def rotary_2d(
    rows: Shaped[np.ndarray, "n"], columns: Shaped[np.ndarray, "n"], head_dim: int, base: float = 10_000.0
) -> Rotary:
    """The table of points on a grid: the first half of the pairs turns by row, the second by column.

    Args:
      rows, columns: coordinates of each token; fractions are allowed (positions normalised over scales).
      head_dim: divisible by 4; the frequencies of each half are those of a 1-D table over head_dim / 2.
    """
    assert head_dim % 4 == 0, head_dim
    row, column = rotary_1d(rows, head_dim // 2, base), rotary_1d(columns, head_dim // 2, base)
    return Rotary(jnp.concatenate([row.cos, column.cos], 1), jnp.concatenate([row.sin, column.sin], 1))


def rotary_raster(
    grid: tuple[int, int],
    head_dim: int,
    base: float = 10_000.0,
    prefix: int = 0,
    prefix_rows: Literal["zero", "identity"] = "zero",
) -> Rotary:
    """The table of `prefix` conditioning tokens followed by a raster grid, [prefix + h w, head_dim / 2].

    Args:
      prefix_rows: "zero" wipes queries and keys of the prefix out (cosine 0 too), as LlamaGen's weights expect: image
        tokens see the prefix with logit 0. "identity" leaves them unrotated.
    """
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    table = rotary_2d(rows, columns, head_dim, base)
    cos = jnp.full((prefix, head_dim // 2), 0.0 if prefix_rows == "zero" else 1.0)
    return Rotary(jnp.concatenate([cos, table.cos]), jnp.concatenate([jnp.zeros_like(cos), table.sin]))


@typechecked
def take(table: Rotary, positions: Int[Array, "*b t"]) -> Rotary:
    """Rows of a table at traced positions."""
    return Rotary(jnp.take(table.cos, positions, axis=0), jnp.take(table.sin, positions, axis=0))


@typechecked
def rotate(x: Float[Array, "b t h e"], rows: Rotary) -> Float[Array, "b t h e"]:
    """Turns each pair of channels by the angle of its token, in float32.

    Args:
      x: queries or keys.
      rows: of the t tokens, shared ([t, e/2]) or per sample ([b, t, e/2]).
    """
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = rows.cos[..., None, :], rows.sin[..., None, :]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
