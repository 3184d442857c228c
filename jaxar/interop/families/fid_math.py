"""The arithmetic of the evaluators: Fréchet and kernel distance, inception score, precision and recall. No network.

Reference: https://github.com/openai/guided-diffusion, evaluations/evaluator.py, and
https://github.com/toshas/torch-fidelity.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxar.interop.base import Models, Official, require
from jaxar.metrics import frechet, kernel
from jaxar.metrics import inception_score as scores
from jaxar.metrics import precision_recall as manifolds

NETWORKS = ()
PUBLISHED = {}
_Parts = dict[str, Any]


def describe(models: Models) -> Official:
    return Official(None, ())


def _fit(x: Any) -> frechet.Gaussian:
    x = np.asarray(x)
    return frechet.fit(x.reshape(len(x), -1))


def statistics(official: Official, variables: Any, x: Any, ddof: int) -> _Parts:
    require("statistics", "ddof", ddof, 1)
    return _fit(x)._asdict()


def fid(official: Official, variables: Any, a: Any, b: Any) -> _Parts:
    return {"fid": frechet.distance(_fit(a), _fit(b))}


def inception_score(
    official: Official, variables: Any, logits: Any, split_size: int | None, num_splits: int | None
) -> _Parts:
    rows = np.concatenate(logits) if isinstance(logits, Sequence) else np.asarray(logits)
    count = len(rows)
    splits = scores.splits_of_size(count, split_size) if split_size else scores.even_splits(count, num_splits)
    found = scores.inception_score(rows, splits)
    return {"split_scores": found, "mean": found.mean(), "std": found.std()}


def precision_recall(official: Official, variables: Any, reference: Any, sample: Any, k: int) -> _Parts:
    reference, sample = np.asarray(reference), np.asarray(sample)
    radii_reference, radii_sample = (manifolds.squared_radii(x, k) for x in (reference, sample))
    return {
        **manifolds.precision_recall(reference, sample, k)._asdict(),
        "radii_reference": radii_reference,
        "radii_sample": radii_sample,
        "sample_inside": manifolds.inside(sample, reference, radii_reference),
        "reference_inside": manifolds.inside(reference, sample, radii_sample),
    }


def kid(
    official: Official,
    variables: Any,
    a: Any,
    b: Any,
    index_a: Any,
    index_b: Any,
    degree: int,
    gamma: float | None,
    coef: float,
) -> _Parts:
    for name, value, allowed in (("degree", degree, 3), ("gamma", gamma, None), ("coef", coef, 1.0)):
        require("kid", name, value, allowed)
    a, b = np.asarray(a), np.asarray(b)
    if index_a is None:
        values = np.array([kernel.distance(a, b)])
    else:
        values = kernel.subset_distances(a, b, np.asarray(index_a), np.asarray(index_b))
    return {"subset_values": values, "mean": values.mean(), "std": values.std()}


CALLS = {call.__name__: call for call in (statistics, fid, inception_score, precision_recall, kid)}
