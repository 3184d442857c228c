"""Committed classifiers as feature networks: `fd_<name>` and `kid_<name>` compare their last hidden layers.

The distances rank models of one dataset and need no download. They are no FID: another network, another scale.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from safetensors import numpy as safetensors
from safetensors import safe_open

from jaxar.config import ConfigError, unknown
from jaxar.metrics.batches import map_batches
from jaxar.models.classifier import Classifier
from jaxar.typing import Array, Params, UInt8, typechecked

WEIGHTS = pathlib.Path(__file__).parent / "weights"
_SUFFIX = "_classifier.safetensors"
_HEADER = "network"  # one metadata key: the order of several is not fixed, and the sha256 of the file would vary


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNet:
    """A trained classifier of one dataset.

    Attributes:
      name: the dataset.
      image_shape: (h, w, c) of the images it was trained on, the only ones it takes.
      test_accuracy: share of the dataset's test split that it classifies correctly; None before it is measured.
      sha256: of the weight file, recorded with each evaluation; None before it is stored.
    """

    name: str
    image_shape: tuple[int, int, int]
    module: Classifier
    params: Params
    test_accuracy: float | None = None
    sha256: str | None = None


class Description(NamedTuple):
    """What the network sees in n images: `features` float32 [n d], and `predicted` int [n], the likeliest class."""

    features: np.ndarray
    predicted: np.ndarray


def names() -> list[str]:
    """Datasets that have a committed feature network."""
    return sorted(path.name.removesuffix(_SUFFIX) for path in WEIGHTS.glob(f"*{_SUFFIX}"))


def load(name: str) -> FeatureNet:
    """The committed feature network of a dataset.

    Raises:
      ConfigError: the dataset has none.
    """
    if name not in names():
        raise unknown("feature network", name, names())
    return read(weight_file(name))


def weight_file(name: str) -> pathlib.Path:
    return WEIGHTS / f"{name}{_SUFFIX}"


def read(path: pathlib.Path) -> FeatureNet:
    """The feature network in a file that `write` made."""
    data = path.read_bytes()
    with safe_open(path, "numpy") as file:
        header = json.loads(file.metadata()[_HEADER])
    return FeatureNet(
        name=header["name"],
        image_shape=tuple(header["image_shape"]),
        module=Classifier(tuple(header["widths"]), header["feature_dim"], header["num_classes"]),
        params=traverse_util.unflatten_dict(safetensors.load(data), sep="/"),
        test_accuracy=header["test_accuracy"],
        sha256=hashlib.sha256(data).hexdigest(),
    )


def write(path: pathlib.Path, net: FeatureNet) -> None:
    """Stores the network with everything `read` needs to rebuild it."""
    header = {
        "name": net.name,
        "image_shape": net.image_shape,
        "widths": net.module.widths,
        "feature_dim": net.module.feature_dim,
        "num_classes": net.module.num_classes,
        "test_accuracy": net.test_accuracy,
    }
    flat = {key: np.asarray(value) for key, value in traverse_util.flatten_dict(net.params, sep="/").items()}
    path.write_bytes(safetensors.save(flat, {_HEADER: json.dumps(header)}))


def describe(net: FeatureNet, images: UInt8[np.ndarray, "n h w c"], batch_size: int = 512) -> Description:
    """Features and predicted classes of uint8 images, the same for any batch size; sharded if a mesh is set.

    Raises:
      ConfigError: other images than the network was trained on.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != net.image_shape or not len(images):
        raise ConfigError(
            f"images of type {images.dtype} and shape {images.shape} for the feature network {net.name!r}; it takes "
            f"uint8 (n, {', '.join(map(str, net.image_shape))}) with values 0..255 and n >= 1"
        )
    # Accelerators multiply in lower precision by default; a metric must not depend on where it was computed.
    with jax.default_matmul_precision("highest"):
        features, logits = map_batches(functools.partial(_apply, net.module, net.params), images, batch_size=batch_size)
    return Description(features, logits.argmax(1))


@functools.partial(jax.jit, static_argnums=0)
@typechecked
def _apply(module: Classifier, params: Any, images: UInt8[Array, "b h w c"]) -> Any:
    return module.apply({"params": params}, to_float(images))


def to_float(images: Any) -> Any:
    """uint8 images in 0..255 as float32 in [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1.0
