"""FID, sFID, inception score, precision and recall by the conventions of Dhariwal and Nichol's evaluator (ADM).

A number holds for its protocol alone: the kind of reference (generated images are compared with statistics of training
images, "gfid"; reconstructions with those of validation images, "rfid"), the reference, the network's weights, the
resizing and the number of images. All of it is stored beside the number.

Reference: Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, Sec. 2.2; sFID after Nash et al.,
Generating Images with Sparse Representations, 2021. Distances of precision and recall are float64, there float16.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from jaxar.config import ConfigError
from jaxar.metrics import frechet, inception, protocol, reference
from jaxar.metrics.frechet import Gaussian
from jaxar.metrics.inception import Extractor, Statistics
from jaxar.metrics.precision_recall import precision_recall
from jaxar.models.inception import POOL_DIM, SPATIAL_DIM

NUM_SAMPLES = 50_000  # of published numbers
Kind = Literal["gfid", "rfid"]
_PREFIX = {"gfid": "", "rfid": "r"}
_FEATURES = "Inception (2015-12-05)"


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """What images are compared with.

    Attributes:
      sha256: of the arrays that are used.
      num_images: that the means and covariances were made from; None where the file does not tell.
      spatial: None where only statistics of pool features are known.
      neighbours: pool features [m 2048] of the file's images, for precision and recall; None without images.
    """

    name: str
    kind: Kind
    sha256: str
    num_images: int | None
    pool: Gaussian
    spatial: Gaussian | None
    neighbours: np.ndarray | None


def read(path: pathlib.Path, net: Extractor, kind: Kind) -> Reference:
    """The reference in an .npz file.

    Means and covariances are taken as they are (`reference.STATISTICS_KEYS`, and `mu_s`, `sigma_s` for sFID); a file of
    images alone (`arr_0`) is measured. A file that does not say its kind is a published one for generated images.

    Raises:
      ConfigError: unreadable, or made for the other kind, with another network or another resizing.
    """
    arrays = reference.read_npz(path, "reference")
    _check_origin(path, arrays, net, kind)
    images, known = arrays.get("arr_0"), reference.has_statistics(arrays)
    measured = None
    if images is not None and (kind == "gfid" or not known):
        reference.check_count("reference", len(images), protocol.NEIGHBOURS + 1)
        measured = measure([images], net, neighbours=kind == "gfid")
    if known:
        pool = reference.read_gaussian(path, arrays, POOL_DIM, _FEATURES)
        spatial = None
        if "mu_s" in arrays and "sigma_s" in arrays:
            spatial = reference.read_gaussian(
                path, arrays, SPATIAL_DIM, f"{_FEATURES}, spatial", (("mu_s", "sigma_s"),)
            )
    elif measured is not None:
        pool, spatial = frechet.compute(measured.pool), frechet.compute(measured.spatial)
    else:
        raise reference.no_reference(path, arrays)
    count = arrays.get("n", None if known else len(images))
    return Reference(
        name=path.name,
        kind=kind,
        sha256=reference.sha256(*pool, *(spatial or ()), *(() if measured is None else (images,))),
        num_images=None if count is None else int(count),
        pool=pool,
        spatial=spatial,
        neighbours=np.concatenate(measured.neighbours) if measured and measured.neighbours else None,
    )


def write(path: pathlib.Path, statistics: Statistics, images: np.ndarray | None, kind: Kind, net: Extractor) -> None:
    """Stores a reference under ADM's keys, with what `read` compares.

    Args:
      images: uint8 [m h w 3], some of those that were measured, for precision and recall; None for neither.
    """
    pool, spatial = frechet.compute(statistics.pool), frechet.compute(statistics.spatial)
    keys = {"mu": pool.mean, "sigma": pool.covariance, "mu_s": spatial.mean, "sigma_s": spatial.covariance}
    record = {"kind": kind, "n": statistics.pool.count, "inception_sha256": net.sha256, "resize": inception.RESIZE}
    partial = path.with_name(path.name + ".tmp")
    with partial.open("wb") as file:
        np.savez(file, **({} if images is None else {"arr_0": images}), **keys, **record)
    partial.replace(path)


def measure(batches: Iterable[np.ndarray], net: Extractor, *, neighbours: bool) -> Statistics:
    """Statistics of uint8 RGB images that arrive in batches; `neighbours`: whether pool features are kept."""
    statistics = inception.init()
    for images in batches:
        for start in range(0, len(images), net.batch_size):
            part = images[start : start + net.batch_size]
            statistics = inception.update(statistics, inception.extract(net, part), neighbours)
    return statistics


def evaluate(batches: Iterable[np.ndarray], against: Reference, net: Extractor, seed: int | None) -> dict[str, Any]:
    """Scores images that arrive in batches; none of them is kept.

    Args:
      batches: uint8 [b h w 3].
      seed: of the samples, recorded; None for reconstructions.
    Returns:
      "metrics": `fid`, `sfid` (`rfid`, `rsfid` against validation images), `inception_score`, and `precision` and
        `recall` where the reference holds images; "floor": empty; "protocol": what was compared with what.
    Raises:
      ConfigError: images of a wrong shape or type, or too few.
    """
    statistics = measure(batches, net, neighbours=against.neighbours is not None)
    count = statistics.pool.count
    reference.check_count("the sample", count, protocol.NEIGHBOURS + 1)
    return {"metrics": _compare(statistics, against), "floor": {}, "protocol": record(against, net, count, seed)}


def _compare(statistics: Statistics, against: Reference) -> dict[str, float]:
    prefix = _PREFIX[against.kind]
    scores = {f"{prefix}fid": frechet.distance(frechet.compute(statistics.pool), against.pool)}
    if against.spatial is not None:
        scores[f"{prefix}sfid"] = frechet.distance(frechet.compute(statistics.spatial), against.spatial)
    scores["inception_score"] = float(np.mean([split.score for split in statistics.splits]))
    if against.neighbours is not None:
        features = np.concatenate(statistics.neighbours)
        scores |= precision_recall(against.neighbours, features, protocol.NEIGHBOURS)._asdict()
    return scores


def record(against: Reference, net: Extractor, count: int, seed: int | None) -> dict[str, Any]:
    """The protocol of a number."""
    return {
        "name": against.kind,
        "n": count,
        "seed": seed,
        "reference": against.name,
        "reference_sha256": against.sha256,
        "reference_n": against.num_images,
        "features": _FEATURES,
        "features_sha256": net.sha256,
        "resize": inception.RESIZE,
        "dtype": {"features": "float32", "statistics": "float64"},
        "inception_score_split": inception.inception_score.SPLIT_SIZE,
        "neighbours": protocol.NEIGHBOURS,
        "neighbours_n": None if against.neighbours is None else len(against.neighbours),
        "versions": protocol.versions(),
    }


def _check_origin(path: pathlib.Path, arrays: Mapping[str, np.ndarray], net: Extractor, kind: Kind) -> None:
    reference.check_kind(path, arrays, kind)
    for key, ours in (("inception_sha256", net.sha256), ("resize", inception.RESIZE)):
        theirs = str(arrays.get(key, ours))
        if theirs != ours:
            raise ConfigError(
                f"{path} has {key}={theirs!r}, the samples get {ours!r}: numbers of both cannot be compared; use one "
                "file of weights for both, or make the reference again with python -m jaxar.reference"
            )
