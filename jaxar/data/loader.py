"""Batches of examples: what a batch holds is a function of the seed and the step alone.

Training visits the examples in a new random order every epoch. Order and augmentation depend on the seed and on an
example's position (step * batch_size + row), so `training_set(...)[step]` is the batch of that step after any restart
and for any number of hosts: each process prepares the rows that its devices hold.

grain supplies threads, random access and generators. Its own shuffle is slower than a train step on small images (40 us
per example), so an epoch's order is drawn here as a whole.
"""

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxar.config import ConfigError
from jaxar.data import text
from jaxar.data.augment import Augment, Center
from jaxar.data.base import DataConfig, Example
from jaxar.data.datasets import open_split
from jaxar.partition import RULES, batch_sharding, single_device_mesh
from jaxar.typing import Array, Float, UInt8, typechecked

Batch = dict[str, Array]
LocalBatch = dict[str, np.ndarray]


def train_batches(
    config: DataConfig, *, batch_size: int, seed: int, start_step: int = 0, mesh: Mesh | None = None
) -> Iterator[Batch]:
    """The training batches of steps `start_step`, `start_step` + 1, ...; never ends.

    Args:
      config: of the dataset.
      batch_size: examples per step over all processes.
      seed: of order and augmentation.
      start_step: the first step.
      mesh: where batches live, rows over its data and fsdp axes; default: one device.
    Yields:
      Global arrays "label" int32 [b] and "image" float32 [b h w c] in [-1, 1], or "ids" int32 [b n] or "latents"
      float32 [b n c] from a token cache; with text also "text" float32 [b t e] and "text_mask" bool [b t]. The next
      batch is already on its way to the devices.
    Raises:
      ConfigError: the mesh does not divide `batch_size`, or the dataset cannot be opened.
    """
    sharding = batch_sharding(mesh or single_device_mesh())
    rows = addressable_rows(sharding, batch_size)
    batches = training_set(config, batch_size=batch_size, seed=seed, rows=rows)
    return _on_device(batches[start_step:], rows, batch_size, sharding, config.num_threads)


def eval_batches(config: DataConfig, split: str, *, batch_size: int, mesh: Mesh | None = None) -> Iterator[Batch]:
    """All examples of a split once, in fixed order, without augmentation.

    Args:
      config, batch_size, mesh: as in `train_batches`.
      split: "train" or "test".
    Yields:
      Batches as `train_batches`, with "valid" bool [b]: False where the last batch repeats an example to be full.
    """
    sharding = batch_sharding(mesh or single_device_mesh())
    rows = addressable_rows(sharding, batch_size)
    batches = evaluation_set(config, split, batch_size=batch_size, rows=rows)
    return _on_device(batches, rows, batch_size, sharding, config.num_threads)


def training_set(
    config: DataConfig, *, batch_size: int, seed: int, rows: Sequence[int] | None = None
) -> grain.MapDataset:
    """The training batches by step, in host memory: `training_set(...)[step]`.

    Args:
      config, batch_size, seed: as in `train_batches`.
      rows: rows of the global batch to prepare; default: all.
    Returns:
      Batches as `train_batches` describes, images as the source has them.
    """
    source = open_split(config, "train")
    augment, generators = Augment(config), grain.experimental.RngPool(seed)

    def example(position: int) -> Example:
        epoch, offset = divmod(position, len(source))
        generator = generators.acquire_rng(position)
        result = augment.random_map(source[_order(seed, epoch, len(source))[offset]], generator)
        generators.release_rng(generator)
        return result

    return _batches(config, example, sys.maxsize, batch_size, rows)


def evaluation_set(
    config: DataConfig, split: str, *, batch_size: int, rows: Sequence[int] | None = None
) -> grain.MapDataset:
    """The batches of `eval_batches` in host memory, images as the source has them; arguments as in `training_set`."""
    source = open_split(config, split)
    center = Center(config)

    def example(position: int) -> Example:
        result = center.map(source[min(position, len(source) - 1)])
        return {**result, "valid": position < len(source)}

    return _batches(config, example, -(-len(source) // batch_size), batch_size, rows)


def with_text(config: DataConfig, example: Example) -> Example:
    """The example without its caption, with features of it if asked for."""
    arrays = {name: value for name, value in example.items() if name != "caption"}
    if config.text is None:
        return arrays
    features, mask = text.features(example["caption"], config.text)
    return {**arrays, "text": features, "text_mask": mask}


@jax.jit
@typechecked
def to_float(images: UInt8[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
    """Bytes 0..255 as float32 in [-1, 1]."""
    return (2 * images.astype(jnp.float32) - 255) / 255


def addressable_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """Rows of the global batch that devices of this process hold, ascending.

    Rows are not dealt out by process: where the mesh axis `tensor` spans processes, several need the same rows.
    """
    ways = math.prod(sharding.mesh.shape[axis] for axis in RULES["batch"])
    if batch_size % ways:
        raise ConfigError(
            f"batch_size={batch_size} is not divisible by mesh data*fsdp={ways}; use a multiple of {ways}"
        )
    held = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique([row for (rows,) in held for row in range(*rows.indices(batch_size))])


def _batches(
    config: DataConfig,
    example: Callable[[int], Example],
    num_batches: int,
    batch_size: int,
    rows: Sequence[int] | None,
) -> grain.MapDataset:
    chosen = range(batch_size) if rows is None else [int(row) for row in rows]

    def batch(step: int) -> LocalBatch:
        return stack([with_text(config, example(step * batch_size + row)) for row in chosen])

    return grain.MapDataset.range(num_batches).map(batch)


def stack(examples: list[Example]) -> LocalBatch:
    batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    return {**batch, "label": batch["label"].astype(np.int32)}


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, length: int) -> np.ndarray:
    """A random order of the examples, from the raw Philox stream, which numpy guarantees not to change."""
    words = np.random.Philox(key=[seed, 0], counter=[0, 0, 0, epoch]).random_raw(length)
    return np.argsort(words, kind="stable")


def _on_device(
    batches: grain.MapDataset, rows: np.ndarray, batch_size: int, sharding: NamedSharding, num_threads: int
) -> Iterator[Batch]:
    """Global arrays of the batches, sent one ahead of the one that is being used."""
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
    with contextlib.closing(iter(batches.to_iter_dataset(options))) as prepared:
        waiting: Batch | None = None
        for local in prepared:
            sent = _send(local, rows, batch_size, sharding)
            if waiting is not None:
                yield waiting
            waiting = sent
        if waiting is not None:
            yield waiting


def _send(local: LocalBatch, rows: np.ndarray, batch_size: int, sharding: NamedSharding) -> Batch:
    def global_array(values: np.ndarray) -> Array:
        def shard(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            first = np.searchsorted(rows, start)
            return values[first : first + stop - start]

        return jax.make_array_from_callback((batch_size, *values.shape[1:]), sharding, shard)

    batch = {name: global_array(values) for name, values in local.items()}
    if "image" in batch and batch["image"].dtype == jnp.uint8:  # bytes travel, floats are made on the device
        batch["image"] = to_float(batch["image"])
    return batch
