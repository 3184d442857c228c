"""Fixed position tables."""

import numpy as np

from jaxar.typing import Float


def sincos_2d(grid: tuple[int, int], width: int) -> Float[np.ndarray, "n d"]:
    """Sines and cosines of the column, then of the row, of each position of a grid, rows first; float32.

    Args:
      grid: height and width.
      width: a multiple of 4; frequency i of the d/4 of each axis is 10000^(-4 i / d).
    Reference: Peebles & Xie, Scalable Diffusion Models with Transformers, 2023, published code.
    """
    rows, columns = (axis.reshape(-1, 1) for axis in np.indices(grid))
    frequencies = 1 / 10_000 ** (np.arange(width // 4) / (width / 4))
    halves = [(np.sin(axis * frequencies), np.cos(axis * frequencies)) for axis in (columns, rows)]
    return np.concatenate([*halves[0], *halves[1]], axis=1).astype(np.float32)
