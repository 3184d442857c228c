"""Kernel distance: the unbiased squared maximum mean discrepancy under a cubic polynomial kernel, in float64."""

import numpy as np

from jaxar.typing import Float, Int, typechecked

CHUNK = 1024  # rows of the kernel matrix in memory at a time


@typechecked
def distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3; near 0, possibly negative, for equal distributions.

    Pairs of a feature with itself are left out of the two sums within a set, all pairs enter the sum across.

    Raises:
      ValueError: fewer than two features in a set.
    Reference: Binkowski et al., Demystifying MMD GANs, 2018, Eq. 4 and Sec. 4 (KID, without the factor 1000).
    """
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise ValueError(f"the unbiased estimate needs at least 2 features in each set, not {n} and {m}")
    a, b = a.astype(np.float64), b.astype(np.float64)
    across = _kernel_sum(a, b) / (n * m)
    return _sum_of_pairs(a) / (n * (n - 1)) + _sum_of_pairs(b) / (m * (m - 1)) - 2 * across


@typechecked
def subset_distances(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m d"],
    index_a: Int[np.ndarray, "subsets size"],
    index_b: Int[np.ndarray, "subsets size"],
) -> Float[np.ndarray, "subsets"]:
    """`distance` between the rows of each pair of subsets: large sets stay affordable, the spread gives error bars."""
    return np.array([distance(a[i], b[j]) for i, j in zip(index_a, index_b)])


def _kernel(dot: np.ndarray, dim: int) -> np.ndarray:
    return (dot / dim + 1.0) ** 3


def _kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
    starts = range(0, len(a), CHUNK)
    return float(sum(_kernel(a[i : i + CHUNK] @ b.T, a.shape[1]).sum() for i in starts))


def _sum_of_pairs(a: np.ndarray) -> float:
    """Sum of the kernel over ordered pairs of different rows."""
    return _kernel_sum(a, a) - float(_kernel(np.square(a).sum(1), a.shape[1]).sum())
