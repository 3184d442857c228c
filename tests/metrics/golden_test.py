"""Frechet and kernel distance, precision, recall and inception score against the stored values of `fid_math`.

tests/golden/fid_math.json names the origin of the conventions and of the numbers. Everything is float64: nothing but
the order of sums may change within the tolerances.
"""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxar.metrics import frechet, kernel
from jaxar.metrics.inception_score import even_splits, inception_score, splits_of_size
from jaxar.metrics.precision_recall import inside, precision_recall, squared_radii

pytestmark = pytest.mark.golden
GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
ENTRIES = json.loads((GOLDEN / "fid_math.json").read_text())["tensors"]
TENSORS = load_file(GOLDEN / "fid_math.safetensors")


def statistics(x, ddof):
    assert ddof == 1
    mean, covariance = frechet.fit(x)
    return {"mean": mean, "covariance": covariance}


def fid(a, b):
    return {"fid": frechet.distance(frechet.fit(a), frechet.fit(b))}


def score(logits, split_size, num_splits):
    splits = splits_of_size(len(logits), split_size) if split_size else even_splits(len(logits), num_splits)
    scores = inception_score(logits, splits)
    return {"split_scores": scores, "mean": scores.mean(), "std": scores.std()}


def manifolds(reference, sample, k):
    radii_reference, radii_sample = squared_radii(reference, k), squared_radii(sample, k)
    return {
        **precision_recall(reference, sample, k)._asdict(),
        "radii_reference": radii_reference,
        "radii_sample": radii_sample,
        "sample_inside": inside(sample, reference, radii_reference),
        "reference_inside": inside(reference, sample, radii_sample),
    }


def kid(a, b, index_a, index_b, degree, gamma, coef):
    assert (degree, gamma, coef) == (3, None, 1.0)
    if index_a is None:
        return {"mean": kernel.distance(a, b)}
    values = kernel.subset_distances(a, b, index_a, index_b)
    return {"subset_values": values, "mean": values.mean(), "std": values.std()}


FUNCTIONS = {
    "statistics": statistics,
    "fid": fid,
    "inception_score": score,
    "precision_recall": manifolds,
    "kid": kid,
}


def resolve(value):
    if not isinstance(value, dict):
        return value
    tensor = TENSORS[value["tensor"]]
    return tensor[slice(*value["slice"])] if "slice" in value else tensor


def allowed_error(stored, tolerance):
    if tolerance["kind"] == "exact":
        return 0
    scale = np.std(stored) if tolerance["kind"] == "max_over_std" else tolerance.get("scale", np.abs(stored))
    return tolerance["value"] * scale + 1e-12


@pytest.mark.parametrize("name", [name for name in ENTRIES if name.startswith("out/")])
def test_equals_the_stored_value(name):
    entry = ENTRIES[name]
    call = entry["call"]
    result = FUNCTIONS[call["fn"]](**{key: resolve(value) for key, value in call["args"].items()})
    stored = TENSORS[name]
    assert np.all(np.abs(result[entry["part"]] - stored) <= allowed_error(stored, entry["tolerance"]))
