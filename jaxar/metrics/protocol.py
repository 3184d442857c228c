"""The evaluation: numbers for samples and reconstructions, the floor beside them, and the record that makes them
comparable.

A number is only comparable with numbers of the same protocol record, apart from the seed: same reference, same feature
network, same count. The floor is what real training images score with the same count; no model that has learned the
training distribution is expected below it.
"""

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

import jaxar
from jaxar.config import ConfigError
from jaxar.data import datasets
from jaxar.metrics import classifier, frechet, kernel, reconstruction
from jaxar.metrics.batches import map_batches
from jaxar.metrics.classifier import Description, FeatureNet
from jaxar.metrics.precision_recall import precision_recall
from jaxar.metrics.reference import Reference, check_count, read_split

NEIGHBOURS = 3  # of precision and recall
_LIBRARIES = ("jax", "numpy", "scikit-learn", "dm-pix")


def evaluate_samples(
    images: np.ndarray, labels: np.ndarray | None, reference: Reference, seed: int
) -> dict[str, dict[str, Any]]:
    """Scores generated images.

    Args:
      images: uint8 [n h w c] in the size of the reference's feature network.
      labels: the classes [n] that were asked for; None for unconditional samples.
      seed: of the samples; recorded, and it draws the training images of the floor if there are more than n.
    Returns:
      "metrics": `fd_<name>` (Frechet) and `kid_<name>` (kernel distance) on features of the classifier <name>,
        `precision`, `recall`, and `class_consistency`, the share of images that the classifier gives their label. A
        reference of statistics alone gives no kernel distance, precision and recall; no labels, no consistency.
      "floor": the same of as many real training images (all, if there are fewer); empty without a training split.
      "protocol": what was compared with what.
    Raises:
      ConfigError: images or labels of a wrong shape, type or number.
    """
    check_count("the sample", len(images), NEIGHBOURS + 1)
    _check_labels(labels, len(images), reference.net)
    described = classifier.describe(reference.net, images)
    return {
        "metrics": _compare(described, labels, reference),
        "floor": floor(reference, len(images), seed),
        "protocol": {
            **_record(f"samples of {reference.name}", reference.net, len(images), seed),
            "reference": reference.name,
            "reference_sha256": reference.sha256,
            "reference_n": reference.num_images,
            "neighbours": NEIGHBOURS,
        },
    }


def floor(reference: Reference, num_images: int, seed: int) -> dict[str, float]:
    """Scores of real training images against the reference, {} if it has none; `n` says how many there were."""
    if reference.train is None:
        return {}
    available = len(datasets.open_split(reference.train, "train"))
    rows = np.random.default_rng(seed).permutation(available)[:num_images]
    images, labels = read_split(reference.train, "train", rows)
    return _compare(classifier.describe(reference.net, images), labels, reference) | {"n": len(images)}


def evaluate_reconstruction(
    images: np.ndarray, reconstructions: np.ndarray, net: FeatureNet | None
) -> dict[str, dict[str, Any]]:
    """Scores a tokenizer's reconstructions of validation images.

    Args:
      images, reconstructions: uint8 [n h w c], row by row the same picture.
      net: feature network for `rfd_<name>`; None for images that have none.
    Returns:
      "metrics": `psnr` in dB and `ssim`, means over images, and `rfd_<name>`, the Frechet distance between the features
        of `images` and of `reconstructions`; "protocol".
    Raises:
      ConfigError: images of a wrong shape, type or number.
    """
    if images.dtype != np.uint8 or reconstructions.dtype != np.uint8 or images.shape != reconstructions.shape:
        raise ConfigError(
            f"images are {images.dtype} {images.shape}, reconstructions {reconstructions.dtype} "
            f"{reconstructions.shape}; both must be uint8 of one shape"
        )
    check_count("the reconstruction set", len(images), 2)
    metrics = {name: float(values.mean()) for name, values in fidelity(images, reconstructions).items()}
    if net is not None:
        before, after = (frechet.fit(classifier.describe(net, x).features) for x in (images, reconstructions))
        metrics[f"rfd_{net.name}"] = frechet.distance(before, after)
    return {"metrics": metrics, "protocol": _record("reconstruction", net, len(images), seed=None)}


def fidelity(images: np.ndarray, reconstructions: np.ndarray) -> dict[str, np.ndarray]:
    """`psnr` in dB and `ssim` of each pair of uint8 images [n h w c]."""
    before, after = classifier.to_float(images), classifier.to_float(reconstructions)
    return {
        name: map_batches(fn, before, after)
        for name, fn in (("psnr", reconstruction.psnr), ("ssim", reconstruction.ssim))
    }


def summarize(results: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Mean, min and max of each number over results of several seeds.

    Returns:
      As each result, with {"mean", "min", "max"} in place of each number and `seeds` in place of `seed`.
    Raises:
      ConfigError: no results, or results of different protocols.
    """
    if not results:
        raise ConfigError("no results to summarize; give one per seed")
    protocols = [{k: v for k, v in r["protocol"].items() if k != "seed"} for r in results]
    for key in protocols[0]:
        values = [p.get(key) for p in protocols]
        if any(v != values[0] for v in values):
            raise ConfigError(f"results differ in protocol.{key}: {values}; summarize runs of one protocol")
    groups = {group: _spread([r[group] for r in results]) for group in results[0] if group != "protocol"}
    return groups | {"protocol": {**protocols[0], "seeds": [r["protocol"]["seed"] for r in results]}}


def _compare(described: Description, labels: np.ndarray | None, reference: Reference) -> dict[str, float]:
    name, features = reference.net.name, described.features
    scores = {f"fd_{name}": frechet.distance(frechet.fit(features), reference.gaussian)}
    if reference.features is not None:
        scores[f"kid_{name}"] = kernel.distance(features, reference.features)
        scores |= precision_recall(reference.features, features, NEIGHBOURS)._asdict()
    if labels is not None:
        scores["class_consistency"] = float((described.predicted == labels).mean())
    return scores


def _check_labels(labels: np.ndarray | None, count: int, net: FeatureNet) -> None:
    if labels is None:
        return
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(f"labels are {labels.dtype} {labels.shape}; {count} images need integers of shape ({count},)")
    classes = net.module.num_classes
    if labels.min() < 0 or labels.max() >= classes:
        raise ConfigError(
            f"labels reach from {labels.min()} to {labels.max()}; the feature network {net.name!r} knows classes "
            f"0..{classes - 1}"
        )


def _record(name: str, net: FeatureNet | None, count: int, seed: int | None) -> dict[str, Any]:
    return {
        "name": name,
        "n": count,
        "features": net.name if net else None,
        "features_sha256": net.sha256 if net else None,
        "versions": versions(),
        "seed": seed,
    }


def versions() -> dict[str, str]:
    """Of the libraries that a number may depend on."""
    return {"jaxar": jaxar.__version__} | {library: metadata.version(library) for library in _LIBRARIES}


def _spread(scores: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    columns = {name: [s[name] for s in scores] for name in scores[0]}
    return {
        name: {"mean": float(np.mean(values)), "min": min(values), "max": max(values)}
        for name, values in columns.items()
    }
