"""Inception score of class logits: exp of the mutual information between image and predicted class, per split."""

import numpy as np
from scipy.special import log_softmax, logsumexp

from jaxar.typing import Float, typechecked


def splits_of_size(num_images: int, size: int = 5000) -> list[slice]:
    """Consecutive splits of `size` images; a short last one counts fully (the rule of Dhariwal and Nichol, 2021)."""
    return [slice(i, min(i + size, num_images)) for i in range(0, num_images, size)]


def even_splits(num_images: int, count: int = 10) -> list[slice]:
    """`count` consecutive splits of nearly equal size (the rule of Salimans et al., 2016)."""
    return [slice(i * num_images // count, (i + 1) * num_images // count) for i in range(count)]


@typechecked
def inception_score(logits: Float[np.ndarray, "n v"], splits: list[slice]) -> Float[np.ndarray, "splits"]:
    """Score of each split, in [1, v]; the published number is the mean.

    Everything stays in the log domain, so a probability that underflows contributes 0 and not NaN.

    Reference: Salimans et al., Improved Techniques for Training GANs, 2016, Sec. 4.
    """
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    return np.array([_score(log_p[rows]) for rows in splits])


def _score(log_p: np.ndarray) -> float:
    log_marginal = logsumexp(log_p, axis=0) - np.log(len(log_p))
    return float(np.exp((np.exp(log_p) * (log_p - log_marginal)).sum(1).mean()))
