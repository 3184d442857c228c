import dataclasses
import itertools

import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.metrics import protocol


def clip(images):
    return np.clip(np.round(images), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def distances(digits_train, digits_reference):
    """`fd_digits` of the training images after a change, and of parts of them."""
    images, labels = digits_train
    rng = np.random.default_rng(0)
    blurred = sum(np.roll(images.astype(float), shift, (1, 2)) for shift in ((0, 0), (1, 0), (0, 1), (1, 1))) / 4
    shuffled = rng.permuted(images.reshape(len(images), -1), axis=1).reshape(images.shape)
    first_of_class = [np.flatnonzero(labels == c)[0] for c in range(10)]
    sets = {
        **{f"noise {s}": clip(images + 127.5 * s * rng.normal(size=images.shape)) for s in (0.1, 0.2, 0.3, 0.5)},
        "floor": images,
        "blurred": clip(blurred),
        "uniform": rng.integers(0, 256, images.shape).astype(np.uint8),
        "shuffled": shuffled,
        "one class": images[labels == 3],
        "class missing": images[labels != 3],
        "one image per class": np.repeat(images[first_of_class], 40, axis=0),
    }
    alone = dataclasses.replace(digits_reference, train=None)
    return {name: protocol.evaluate_samples(x, None, alone, 0)["metrics"]["fd_digits"] for name, x in sets.items()}


def test_distance_grows_with_noise(distances):
    levels = [distances[name] for name in ("floor", "noise 0.1", "noise 0.2", "noise 0.3", "noise 0.5", "uniform")]
    assert all(1.4 * low < high for low, high in itertools.pairwise(levels))
    assert levels[0] < 2


@pytest.mark.parametrize(
    ("change", "least"),
    [("class missing", 3), ("one image per class", 15), ("blurred", 25), ("shuffled", 40), ("one class", 60)],
)
def test_distance_sees(distances, change, least):
    assert distances[change] > least * distances["floor"]


def test_samples_of_training_images_score_the_floor(digits_train, digits_reference):
    images, labels = digits_train
    result = protocol.evaluate_samples(images, labels, digits_reference, seed=3)
    # Both are the whole training split, in another order.
    assert set(result["metrics"]) == {"fd_digits", "kid_digits", "precision", "recall", "class_consistency"}
    for name, value in result["metrics"].items():
        assert result["floor"][name] == pytest.approx(value, rel=1e-5, abs=1e-5)
    assert result["floor"]["n"] == len(images)
    assert 0.8 < result["metrics"]["precision"] <= 1 and 0.8 < result["metrics"]["recall"] <= 1
    assert result["metrics"]["class_consistency"] > 0.98


def test_the_record_says_what_was_compared(digits, digits_test, digits_reference):
    record = protocol.evaluate_samples(digits_test.images[:40], None, digits_reference, seed=7)["protocol"]
    assert record["n"] == 40 and record["seed"] == 7 and record["neighbours"] == 3
    assert record["reference"] == "digits" and record["reference_n"] == 360
    assert record["features_sha256"] == digits.sha256
    assert record["reference_sha256"] == digits_reference.sha256
    assert {"jaxar", "jax", "numpy"} <= set(record["versions"])


def test_the_floor_has_the_count_of_the_samples(digits_reference):
    floors = [protocol.floor(digits_reference, 100, seed) for seed in (0, 0, 1)]
    assert floors[0] == floors[1] != floors[2]
    assert all(f["n"] == 100 for f in floors)
    # Fewer images estimate the same distribution worse.
    assert floors[0]["fd_digits"] > protocol.floor(digits_reference, 2000, 0)["fd_digits"]
    assert protocol.floor(digits_reference, 2000, 0)["n"] == 1437


def test_wrong_labels_are_at_chance(digits_train, digits_reference):
    images, labels = digits_train
    labels = np.random.default_rng(0).permutation(labels)
    metrics = protocol.evaluate_samples(images, labels, digits_reference, seed=0)["metrics"]
    assert 0.05 < metrics["class_consistency"] < 0.15


def test_samples_without_labels_or_features(digits_test, digits_reference):
    only_statistics = dataclasses.replace(digits_reference, features=None, train=None)
    result = protocol.evaluate_samples(digits_test.images, None, only_statistics, seed=0)
    assert set(result["metrics"]) == {"fd_digits"} and result["floor"] == {}
    assert result["metrics"]["fd_digits"] < 1e-3


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(7, int), r"labels are int64 \(7,\); 8 images need integers of shape \(8,\)"),
        (np.zeros(8), r"labels are float64 \(8,\)"),
        (np.full(8, 10), r"labels reach from 10 to 10; .*'digits' knows classes 0\.\.9"),
        (np.full(8, -1), "labels reach from -1"),
    ],
)
def test_wrong_labels(digits_test, digits_reference, labels, message):
    with pytest.raises(ConfigError, match=message):
        protocol.evaluate_samples(digits_test.images[:8], labels, digits_reference, seed=0)


def test_too_few_samples(digits_test, digits_reference):
    with pytest.raises(ConfigError, match="the sample has 3 images; the metrics need at least 4"):
        protocol.evaluate_samples(digits_test.images[:3], None, digits_reference, seed=0)


def test_reconstructions(digits, digits_test):
    images = digits_test.images
    exact = protocol.evaluate_reconstruction(images, images, digits)["metrics"]
    assert exact["psnr"] == 100 and exact["ssim"] == pytest.approx(1) and exact["rfd_digits"] < 1e-3
    noise = np.random.default_rng(0).normal(size=images.shape)
    worse = [
        protocol.evaluate_reconstruction(images, clip(images + s * 127.5 * noise), digits)["metrics"]
        for s in (0.05, 0.1, 0.3)
    ]
    for name, sign in (("psnr", -1), ("ssim", -1), ("rfd_digits", 1)):
        values = [sign * m[name] for m in (exact, *worse)]
        assert values == sorted(values) and len(set(values)) == 4


def test_reconstructions_without_a_network(digits_test):
    result = protocol.evaluate_reconstruction(digits_test.images, digits_test.images // 2, None)
    assert set(result["metrics"]) == {"psnr", "ssim"}
    assert result["protocol"]["features"] is None


def test_reconstructions_of_another_shape(digits, digits_test):
    images = digits_test.images
    with pytest.raises(ConfigError, match=r"uint8 \(360, 8, 8, 1\), reconstructions uint8 \(10, 8, 8, 1\)"):
        protocol.evaluate_reconstruction(images, images[:10], digits)
    with pytest.raises(ConfigError, match="reconstructions float32"):
        protocol.evaluate_reconstruction(images, images.astype(np.float32), digits)


def result(seed, distance, **protocol_changes):
    return {
        "metrics": {"fd_digits": distance},
        "floor": {"fd_digits": 1.0},
        "protocol": {"n": 10, "reference": "digits", "seed": seed} | protocol_changes,
    }


def test_summary():
    summary = protocol.summarize([result(0, 1.0), result(1, 2.0), result(2, 6.0)])
    assert summary == {
        "metrics": {"fd_digits": {"mean": 3.0, "min": 1.0, "max": 6.0}},
        "floor": {"fd_digits": {"mean": 1.0, "min": 1.0, "max": 1.0}},
        "protocol": {"n": 10, "reference": "digits", "seeds": [0, 1, 2]},
    }


def test_no_summary_across_protocols():
    with pytest.raises(ConfigError, match=r"results differ in protocol.n: \[10, 20\]"):
        protocol.summarize([result(0, 1.0), result(1, 2.0, n=20)])
    with pytest.raises(ConfigError, match="no results"):
        protocol.summarize([])
