"""Precision and recall of generated features: whose point lies inside whose manifold of nearest-neighbour balls."""

from typing import NamedTuple

import numpy as np

from jaxar.typing import Bool, Float, typechecked

CHUNK = 1024  # rows of the distance matrix in memory at a time


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]: of samples inside the reference manifold, and of references inside the sample manifold."""

    precision: float
    recall: float


def precision_recall(
    reference: Float[np.ndarray, "n d"], samples: Float[np.ndarray, "m d"], k: int = 3
) -> PrecisionRecall:
    """Precision and recall of `samples` against `reference` with balls that reach the k-th nearest neighbour.

    Raises:
      ValueError: a set with no more than k features.
    Reference: Kynkaanniemi et al., Improved Precision and Recall Metric for Assessing Generative Models, 2019, Eq. 1
      and 2. Distances are squared float64 ones; the evaluator of Dhariwal and Nichol (2021) rounds them to float16.
    """
    return PrecisionRecall(
        precision=float(inside(samples, reference, squared_radii(reference, k)).mean()),
        recall=float(inside(reference, samples, squared_radii(samples, k)).mean()),
    )


@typechecked
def squared_radii(features: Float[np.ndarray, "n d"], k: int) -> Float[np.ndarray, "n"]:
    """Squared distance from each feature to its k-th nearest other feature.

    Raises:
      ValueError: no more than k features.
    """
    if len(features) <= k:
        raise ValueError(f"the {k}-th nearest neighbour needs more than {k} features, not {len(features)}")
    # Rank 0 is the point itself (or a duplicate, at the same distance 0), so the k-th other point has rank k.
    rows = (np.partition(block, k, axis=1)[:, k] for block in _squared_distances(features, features))
    return np.concatenate(list(rows))


@typechecked
def inside(
    points: Float[np.ndarray, "m d"], centres: Float[np.ndarray, "n d"], radii: Float[np.ndarray, "n"]
) -> Bool[np.ndarray, "m"]:
    """Whether each point lies in at least one closed ball around a centre; `radii` are squared."""
    return np.concatenate([(block <= radii).any(1) for block in _squared_distances(points, centres)])


def _squared_distances(a: np.ndarray, b: np.ndarray):
    """Yields blocks of rows of the matrix of squared distances."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.square(b).sum(1)
    for start in range(0, len(a), CHUNK):
        x = a[start : start + CHUNK]
        yield np.maximum(np.square(x).sum(1)[:, None] + norms - 2 * (x @ b.T), 0.0)
