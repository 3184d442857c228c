"""What generated images are compared with: a dataset's test split, or the images or statistics in a user's .npz."""

import dataclasses
import hashlib
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxar.config import ConfigError
from jaxar.data import datasets
from jaxar.data.augment import center_crop
from jaxar.data.base import DataConfig
from jaxar.metrics import classifier, frechet
from jaxar.metrics.classifier import FeatureNet
from jaxar.metrics.frechet import Gaussian

STATISTICS_KEYS = (("mu", "sigma"), ("ref_mu", "ref_sigma"), ("mean", "cov"))
# What a file of statistics was made to judge, as it says under `kind`; one that does not say is for samples.
KINDS = {"gfid": "samples, against the training set", "rfid": "reconstructions, against validation images"}


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """A reference distribution, seen through one feature network.

    Attributes:
      name: the dataset or the file.
      sha256: of the reference images, or of mean and covariance where only these are known.
      num_images: None where the file does not tell.
      features: float32 [n d]; None where only statistics are known.
      train: the dataset whose training images give the floor; None for a file.
    """

    name: str
    net: FeatureNet
    sha256: str
    num_images: int | None
    gaussian: Gaussian
    features: np.ndarray | None
    train: DataConfig | None


class Labelled(NamedTuple):
    """uint8 images [n h w c] and int labels [n]."""

    images: np.ndarray
    labels: np.ndarray


def load(name: str, features: str | None = None, data_dir: str | None = None) -> Reference:
    """The reference called `name`.

    Args:
      name: a dataset ("digits": its test split, with its training split for the floor) or the path of an .npz file with
        `arr_0` (uint8 [n h w c] images) or mean and covariance under one of `STATISTICS_KEYS`.
      features: the dataset whose feature network is used; default: the reference itself.
      data_dir: where datasets are stored, see `DataConfig`.
    Raises:
      ConfigError: unknown name, no feature network, or a file that does not hold what it should.
    """
    if name.endswith(".npz"):
        if features is None:
            known = ", ".join(classifier.names())
            raise ConfigError(f"reference={name!r} is a file: say which feature network to use, one of {known}")
        return from_file(pathlib.Path(name), classifier.load(features))
    config = datasets.configure({"name": name, "data_dir": data_dir}, "reference")
    return from_dataset(config, classifier.load(features or name))


def from_dataset(config: DataConfig, net: FeatureNet) -> Reference:
    """The test split of a dataset.

    Raises:
      ConfigError: images of another size than the network's.
    """
    config = dataclasses.replace(config, cache=None)  # a cache holds tokens
    images = read_split(config, "test").images
    return dataclasses.replace(from_images(config.name, images, net), train=config)


def from_images(name: str, images: np.ndarray, net: FeatureNet) -> Reference:
    """A reference of uint8 images [n h w c].

    Raises:
      ConfigError: images of another size or type than the network's, or fewer than two.
    """
    check_count("reference", len(images), 2)
    features = classifier.describe(net, images).features
    return Reference(name, net, sha256(images), len(images), frechet.fit(features), features, train=None)


def from_file(path: pathlib.Path, net: FeatureNet) -> Reference:
    """The reference in an .npz file; images are preferred to statistics, which another network may have made.

    Raises:
      ConfigError: unreadable, wrong keys, shapes or types, or statistics made to judge reconstructions.
    """
    arrays = read_npz(path, "reference")
    check_kind(path, arrays, "gfid")
    if "arr_0" in arrays:
        return from_images(path.name, arrays["arr_0"], net)
    if not has_statistics(arrays):
        raise no_reference(path, arrays)
    gaussian = read_gaussian(path, arrays, net.module.feature_dim, net.name)
    num_images = int(arrays["n"]) if "n" in arrays else None
    return Reference(path.name, net, sha256(*gaussian), num_images, gaussian, features=None, train=None)


def read_split(config: DataConfig, split: str, rows: Sequence[int] | None = None) -> Labelled:
    """Images and labels of a split (or of these `rows` of it) in memory, cropped to `config.image_size`."""
    source = datasets.open_split(config, split)
    examples = [source[int(i)] for i in (range(len(source)) if rows is None else rows)]
    images = np.stack([center_crop(e["image"], config.image_size) for e in examples])
    return Labelled(images, np.array([e["label"] for e in examples]))


def check_count(what: str, count: int, least: int) -> None:
    if count < least:
        raise ConfigError(f"{what} has {count} images; the metrics need at least {least}")


def read_npz(path: pathlib.Path, role: str) -> Mapping[str, np.ndarray]:
    """All arrays of an .npz file.

    Args:
      role: what the file is for, as messages call it.
    Raises:
      ConfigError: missing or unreadable.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        raise ConfigError(f"{role}={str(path)!r} does not exist; give the path of an .npz file") from None
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{role}={str(path)!r} is no readable .npz file ({error}); write it with np.savez") from error


def check_kind(path: pathlib.Path, arrays: Mapping[str, np.ndarray], wanted: str) -> None:
    """Refuses a file that was made to judge something else: of all mistakes, this one looks most like a result."""
    kind = str(arrays["kind"]) if "kind" in arrays else "gfid"
    if kind != wanted:
        said = f"kind={kind!r}" if "kind" in arrays else f"no kind, which means {kind!r}"
        raise ConfigError(
            f"{path} has {said}; needed is {wanted!r} (statistics for {KINDS[wanted]}), the other would give another "
            "number; use such a file, python -m jaxar.reference makes one"
        )


def has_statistics(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether there are mean and covariance under one of `STATISTICS_KEYS`."""
    return any(all(key in arrays for key in keys) for keys in STATISTICS_KEYS)


def no_reference(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> ConfigError:
    """The error for a file without images and statistics."""
    accepted = ", ".join("/".join(keys) for keys in STATISTICS_KEYS)
    return ConfigError(f"{path} has keys {', '.join(arrays) or 'none'}; it needs arr_0 (images) or one of {accepted}")


def read_gaussian(
    path: pathlib.Path,
    arrays: Mapping[str, np.ndarray],
    dim: int,
    network: str,
    spellings: Sequence[tuple[str, str]] = STATISTICS_KEYS,
) -> Gaussian:
    """Mean and covariance of `dim` features of the network called `network`, under the first spelling that is there.

    Raises:
      ConfigError: other shapes.
    """
    keys = next(keys for keys in spellings if all(key in arrays for key in keys))
    mean, covariance = (arrays[key].astype(np.float64) for key in keys)
    if mean.shape != (dim,) or covariance.shape != (dim, dim):
        raise ConfigError(
            f"{path} has {'/'.join(keys)} of shapes {mean.shape} and {covariance.shape}; the feature network "
            f"{network!r} has {(dim,)} and {(dim, dim)}: use statistics of that network, or images (arr_0)"
        )
    return Gaussian(mean, covariance)


def sha256(*arrays: np.ndarray) -> str:
    """A fingerprint of arrays with their types and shapes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
