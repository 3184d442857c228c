"""Inception score of class logits: exp of the mutual information between image and predicted class, per split."""

from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax, xlogy

from jaxar.typing import Float, typechecked

SPLIT_SIZE = 5000  # of Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021


class SplitSums(NamedTuple):
    """Running sums over the images of one split: their number, of p [v], and of sum_v p log p; float64."""

    count: int
    probabilities: np.ndarray
    negentropy: float

    @property
    def score(self) -> float:
        """In [1, v]."""
        marginal = self.probabilities / self.count
        return float(np.exp(self.negentropy / self.count - xlogy(marginal, marginal).sum()))


def splits_of_size(num_images: int, size: int = SPLIT_SIZE) -> list[slice]:
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
    return np.array([_sums(logits[rows]).score for rows in splits])


@typechecked
def update(
    splits: tuple[SplitSums, ...], logits: Float[np.ndarray, "b v"], size: int = SPLIT_SIZE
) -> tuple[SplitSums, ...]:
    """Adds a batch of images: fills the last split up to `size`, then begins others.

    After all batches the splits are those of `splits_of_size`, however the images were cut into batches.
    """
    while len(logits):
        open_ = splits[-1] if splits and splits[-1].count < size else None
        room = size - open_.count if open_ else size
        sums = _sums(logits[:room])
        splits = (*splits[:-1], _add(open_, sums)) if open_ else (*splits, sums)
        logits = logits[room:]
    return splits


def _sums(logits: np.ndarray) -> SplitSums:
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    p = np.exp(log_p)
    return SplitSums(len(logits), p.sum(0), float((p * log_p).sum()))


def _add(a: SplitSums, b: SplitSums) -> SplitSums:
    return SplitSums(a.count + b.count, a.probabilities + b.probabilities, a.negentropy + b.negentropy)
