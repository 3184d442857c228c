"""Applies a jitted function to host arrays, batch by batch."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def map_batches(fn: Callable[..., Any], *arrays: np.ndarray, batch_size: int = 512) -> Any:
    """`fn` of consecutive batches of `arrays`, joined on the host.

    The last batch is filled up with copies of its last row and cut again: one program is compiled, and the result of a
    row does not depend on how many rows there are.

    Args:
      fn: maps arrays with `batch_size` rows to a tree of arrays with as many rows.
      arrays: at least one row each, equally many.
    Returns:
      The tree of `fn` with numpy leaves.
    """
    parts = []
    for start in range(0, len(arrays[0]), batch_size):
        batch = [a[start : start + batch_size] for a in arrays]
        rows = len(batch[0])
        full = [np.concatenate([a, np.repeat(a[-1:], batch_size - rows, axis=0)]) for a in batch]
        parts.append(jax.tree.map(lambda x, rows=rows: np.asarray(x)[:rows], fn(*full)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
