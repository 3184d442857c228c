"""Frechet distance between Gaussians fitted to features, accumulated batch by batch in float64 on the host.

Sums and outer products add up over batches and hosts, so no process ever holds all features.
"""

from typing import NamedTuple

import numpy as np

from jaxar.typing import Float, typechecked


class FeatureSums(NamedTuple):
    """Running sums of n features: `count` n, `total` [d] their sum, `outer` [d d] the sum of x x^T; float64."""

    count: int
    total: np.ndarray
    outer: np.ndarray


class Gaussian(NamedTuple):
    """Mean [d] and covariance [d d], float64."""

    mean: np.ndarray
    covariance: np.ndarray


def init(dim: int) -> FeatureSums:
    """The sums of no features of width `dim`."""
    return FeatureSums(0, np.zeros(dim), np.zeros((dim, dim)))


@typechecked
def update(sums: FeatureSums, features: Float[np.ndarray, "b d"]) -> FeatureSums:
    """Adds a batch of features to the sums."""
    x = features.astype(np.float64)
    return FeatureSums(sums.count + len(x), sums.total + x.sum(0), sums.outer + x.T @ x)


def merge(a: FeatureSums, b: FeatureSums) -> FeatureSums:
    """Sums over the union of two sets of features (two hosts, say)."""
    return FeatureSums(a.count + b.count, a.total + b.total, a.outer + b.outer)


def compute(sums: FeatureSums) -> Gaussian:
    """The fitted Gaussian; the covariance divides by n - 1.

    Raises:
      ValueError: fewer than two features.
    """
    if sums.count < 2:
        raise ValueError(f"a covariance needs at least 2 features, not {sums.count}")
    mean = sums.total / sums.count
    return Gaussian(mean, (sums.outer - sums.count * np.outer(mean, mean)) / (sums.count - 1))


@typechecked
def fit(features: Float[np.ndarray, "n d"]) -> Gaussian:
    """The Gaussian of features that are already in memory."""
    return compute(update(init(features.shape[1]), features))


def distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Frechet (2-Wasserstein) distance |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), at least 0.

    With R = S1^(1/2), S1 S2 has the eigenvalues of the symmetric matrix R S2 R. That needs no square root of a
    non-symmetric matrix, which loses digits when a covariance is rank deficient (fewer features than dimensions).

    Reference: Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, 2017,
      Eq. 6; no epsilon is added to the diagonals.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root).clip(0)).sum()
    shift = np.square(a.mean - b.mean).sum()
    return max(float(shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross), 0.0)
