"""Features of the Inception network over many images, sharded over devices, and their running statistics.

What is kept of a set of images is a tuple of arrays: sums, whose size does not grow, and pool features where nearest
neighbours are asked for. It can be stored between batches and gone on with.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxar import partition
from jaxar.config import ConfigError
from jaxar.metrics import frechet, inception_score
from jaxar.metrics.batches import map_batches
from jaxar.metrics.frechet import FeatureSums
from jaxar.metrics.inception_score import SplitSums
from jaxar.models.inception import POOL_DIM, SPATIAL_DIM, Inception, preprocess
from jaxar.typing import Array, Float, Params, UInt8

RESIZE = "bilinear, TensorFlow 1, 299"


@dataclasses.dataclass(frozen=True, eq=False)
class Extractor:
    """The network with weights of the user.

    Attributes:
      params: replicated on `mesh`, over whose devices images are sharded.
      batch_size: images per call of the network, a multiple of the devices that share them.
      sha256: of the weights' values, whatever the file's format.
    """

    params: Params
    mesh: Mesh
    batch_size: int
    sha256: str


class Features(NamedTuple):
    """Of n images, float32: pool [n 2048], spatial [n 2023], logits [n 1008]."""

    pool: np.ndarray
    spatial: np.ndarray
    logits: np.ndarray


class Statistics(NamedTuple):
    """Of the images so far.

    Attributes:
      pool, spatial: sums for the two Frechet distances.
      splits: sums for the inception score.
      neighbours: pool features [b 2048] of each batch, () where precision and recall are not asked for.
    """

    pool: FeatureSums
    spatial: FeatureSums
    splits: tuple[SplitSums, ...]
    neighbours: tuple[np.ndarray, ...]


def extractor(params: Params, mesh: Mesh, batch_size: int, sha256: str) -> Extractor:
    """Places the parameters on the mesh and rounds the batch size up to what its devices share evenly."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    placed = jax.device_put(params, partition.replicated(mesh))
    return Extractor(placed, mesh, -(-batch_size // ways) * ways, sha256)


def extract(net: Extractor, images: UInt8[np.ndarray, "n h w 3"]) -> Features:
    """Features of uint8 RGB images of any size; they do not depend on batch size and devices but for rounding.

    Raises:
      ConfigError: other images.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
        raise ConfigError(
            f"images of type {images.dtype} and shape {images.shape} for the Inception network; it takes uint8 RGB "
            "images (n, h, w, 3) with values 0..255 and n >= 1; for data of another kind leave --inception out"
        )

    def run(batch: np.ndarray) -> Features:
        return _network(net.params, _resized(jax.device_put(batch, partition.batch_sharding(net.mesh))))

    # Accelerators multiply in lower precision by default; a metric must not depend on where it was computed.
    with jax.default_matmul_precision("highest"), jax.set_mesh(net.mesh):
        return map_batches(run, images, batch_size=net.batch_size)


_resized = jax.jit(preprocess)  # apart, because the network's program is the same for all sizes


@jax.jit
def _network(params: Params, images: Float[Array, "b 299 299 3"]) -> Any:
    found = Inception().apply({"params": params}, images)
    return Features(found["pool_3"], found["spatial"].reshape(len(images), SPATIAL_DIM), found["logits"])


def init() -> Statistics:
    """The statistics of no images."""
    return Statistics(frechet.init(POOL_DIM), frechet.init(SPATIAL_DIM), (), ())


def update(statistics: Statistics, features: Features, neighbours: bool) -> Statistics:
    """Adds a batch; `neighbours`: whether to keep its pool features."""
    return Statistics(
        frechet.update(statistics.pool, features.pool),
        frechet.update(statistics.spatial, features.spatial),
        inception_score.update(statistics.splits, features.logits),
        (*statistics.neighbours, features.pool) if neighbours else (),
    )
