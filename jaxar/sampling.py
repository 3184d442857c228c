"""Sampling at any scale: batches over the mesh, one compilation, every sample a function of (seed, id, condition)."""

import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxar import editing, partition
from jaxar.config import ConfigError
from jaxar.data import text
from jaxar.methods.base import Cond, Method, Task
from jaxar.tokenizers.base import Tokenizer
from jaxar.typing import Array, Float, Int, Keys, UInt8, Variables, typechecked


@typechecked
def to_uint8(images: Float[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
    """Images in [-1, 1] to 0..255, rounded."""
    return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)


def to_host(array: Array) -> np.ndarray:
    """The whole array in the memory of every process, wherever its shards live. All processes must call it."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


@typechecked
def sample_keys(seed: int | Int[Array, ""], ids: Int[Array, "b"]) -> Keys:
    """One key per sample, from the seed and the sample's global id."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(ids)


def balanced_labels(count: int, num_classes: int) -> np.ndarray:
    """Labels 0, 1, ..., num_classes-1, 0, 1, ...: classes as equal as `count` allows, and sample i always the same."""
    return (np.arange(count) % num_classes).astype(np.int32)


def conditions(task: Task, labels: np.ndarray, captions: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """What a sampler is conditioned on: the labels, and for a text-conditional task the features of captions.

    Args:
      captions: repeated as often as needed; required for a text-conditional task.
    Raises:
      ConfigError: no captions for a text-conditional task.
    """
    cond = {"label": labels}
    if task.text is not None:
        if not captions:
            raise ConfigError("this model is conditioned on text; give --caption='...'")
        features = [text.features(captions[i % len(captions)], task.text) for i in range(len(labels))]
        cond["text"], cond["text_mask"] = (np.stack(part) for part in zip(*features))
    return cond


@functools.partial(jax.jit, static_argnums=0)
def reconstruct(tokenizer: Tokenizer, variables: Variables, images: Float[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
    """Images in [-1, 1] through the tokenizer and back."""
    return to_uint8(tokenizer.decode(variables, tokenizer.encode(variables, images, None)))


class Sampler:
    """A compiled sampler for fixed options: `sampler(variables, cond, ids, seed) -> uint8 images`.

    Calls of any size run in batches of `batch_size`; the last one is padded, so that one program serves them all. JAX
    keeps the program: another sampler of the same method and options traces and compiles nothing.
    """

    def __init__(
        self, method: Method, tokenizer: Tokenizer | None, options: Any, mesh: Mesh, batch_size: int | None = None
    ):
        self._mesh, self.batch_size = mesh, batch_size
        self._static = (method, tokenizer, options)
        self.compile_seconds = self.run_seconds = 0.0

    def __call__(self, variables: dict[str, Variables], cond: dict[str, np.ndarray], ids: np.ndarray, seed: int):
        """Images of the samples `ids` with conditions `cond` (leading axis as `ids`), uint8 [b h w c].

        With the entries of `editing.request`, `cond` asks for completions of a given image.
        """
        return np.concatenate([images for _, images in self.batches(variables, cond, ids, seed)])

    def batches(
        self, variables: dict[str, Variables], cond: dict[str, np.ndarray], ids: np.ndarray, seed: int
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """The same batch by batch: (rows, images)."""
        ways = partition.batch_ways(self._mesh)
        size = min(self.batch_size or len(ids), len(ids))
        size = -(-size // ways) * ways
        for start in range(0, len(ids), size):
            rows = slice(start, min(start + size, len(ids)))
            pad = np.resize(np.arange(rows.start, rows.stop), size)
            batch = {name: values[pad] for name, values in cond.items()}
            images = self._run(variables, batch, ids[pad].astype(np.int32), seed)
            yield rows, images[: rows.stop - rows.start]

    def _run(self, variables: dict[str, Variables], cond: Cond, ids: np.ndarray, seed: int) -> np.ndarray:
        place = partition.batch_sharding(self._mesh)
        with jax.set_mesh(self._mesh):
            cond, ids = jax.device_put((cond, ids), place)
            args = (variables, cond, ids, jnp.int32(seed))
            begun = time.perf_counter()
            program = _draw.lower(*self._static, *args).compile()
            compiled = time.perf_counter()
            images = to_host(program(*args))
            self.compile_seconds += compiled - begun
            self.run_seconds += time.perf_counter() - compiled
        return images


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _draw(
    method: Method,
    tokenizer: Tokenizer | None,
    options: Any,
    variables: dict[str, Variables],
    cond: Cond,
    ids: Int[Array, " b"],
    seed: Int[Array, ""],
) -> UInt8[Array, "b h w c"]:
    keys = sample_keys(seed, ids)
    if "keep" in cond:
        return to_uint8(editing.complete(method, tokenizer, variables, cond, keys, options))
    tokens = method.sample(variables, cond, keys, options)
    images = tokenizer.decode(variables["tokenizer"], tokens) if tokenizer else tokens.latents
    return to_uint8(images)
