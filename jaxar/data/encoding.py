"""Fills token caches and verifies them: the library side of `python -m jaxar.encode`."""

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxar.config import ConfigError
from jaxar.data import augment, cache, datasets, loader, text
from jaxar.data.base import DataConfig, Example, Source, Variants
from jaxar.data.loader import LocalBatch
from jaxar.tokenizers.base import TokenSpec
from jaxar.typing import Array

Encode = Callable[[Array], dict[str, Array]]  # images [b h w c] in [-1, 1] -> "ids" [b n], or "mean", "std" [b n c]
Decode = Callable[[dict[str, Array]], Array]  # "ids" [b n] or "latents" [b n c] -> images [b h w c]

_TOKENS = ("ids", "mean", "std")
_THREADS = 4
_PSNR_EXACT = 48.0  # dB of an error of one grey level; what is better counts as exact
_PSNR_TOLERANCE = 0.5  # dB by which stored tokens may decode worse than fresh ones; half precision costs far less


def encode_split(
    folder: pathlib.Path,
    config: DataConfig,
    split: str,
    encode: Encode,
    *,
    tokens: TokenSpec,
    tokenizer: str,
    variants: Variants | None = None,
    text_folder: pathlib.Path | None = None,
    batch_size: int = 64,
    shard_size: int = 16384,
) -> cache.Metadata:
    """Encodes a split into `folder`; an interrupted call is continued by the same call.

    With several processes each encodes every so-manieth shard; `folder` must then be shared.

    Args:
      folder: CACHE/SPLIT, see `jaxar.data.cache`.
      config: of the dataset, without cache.
      encode: runs on this process's devices; the batch size is constant. Without "std" latents are deterministic.
      tokens: what `encode` returns.
      tokenizer: fingerprint of the tokenizer.
      variants: what to store of each image: the centre crop, it and its mirror image, or ten crops. None: the mirror
        image too where training mirrors images (`config.flip`); a mirrored digit is no digit.
      text_folder: features to store with the examples, see `text.StoredFeatures`; default: those of `config.text`.
      batch_size: examples per call of `encode`, which sees this many times the number of variants.
      shard_size: examples per file.
    Returns:
      The metadata of the complete cache.
    Raises:
      ConfigError: the folder holds another cache, the text does not fit, or `encode` contradicts `tokens`.
    """
    info, source = datasets.info(config), datasets.open_split(config, split)
    stored_text = _open_text(text_folder, len(source))
    variants = variants or ("flip" if config.flip else "image")
    plan = cache.Metadata(
        source=config.name,
        dataset=info.name,
        split=split,
        num_examples=len(source),
        image=info.image,
        class_names=info.class_names,
        variants=variants,
        tokens=tokens,
        tokenizer=tokenizer,
        text=stored_text.spec if stored_text else info.text,
        captions=info.captions,
        shard_size=shard_size,
    )

    def prepare(index: int) -> Example:
        example = _variants(config, source, index, variants)
        return {**example, **(stored_text[index] if stored_text else {})}

    for shard in cache.start(folder, plan):
        if shard % jax.process_count() == jax.process_index():
            cache.write_shard(folder, plan, shard, _encode_shard(plan, plan.shard(shard), prepare, encode, batch_size))
    return finish(folder)


def verify(
    folder: pathlib.Path,
    config: DataConfig,
    encode: Encode,
    decode: Decode,
    *,
    tokenizer: str,
    num_examples: int = 8,
) -> dict[str, Any]:
    """Checks a cache against its checksums, its dataset and its tokenizer.

    A few examples, spread over the split, are decoded and compared with their images. The figure to reach is the one
    of encoding and decoding these images afresh: a cache of other images, crops or of another tokenizer misses it.

    Args:
      folder, config, encode, tokenizer: as given to `encode_split`.
      decode: the tokenizer's decoder.
      num_examples: how many to decode.
    Returns:
      "num_examples" and "files" of the cache, "checked" examples, "psnr" of the stored tokens and "psnr_fresh" in dB.
    Raises:
      ConfigError: what does not agree.
    """
    metadata = cache.check_files(folder)
    if metadata.tokenizer != tokenizer:
        raise ConfigError(
            f"cache {folder} was made by tokenizer {metadata.tokenizer!r}, not {tokenizer!r}; encode again"
        )
    source, stored = datasets.open_split(config, metadata.split), cache.TokenCache(folder)
    if len(source) != len(stored):
        raise ConfigError(f"cache {folder} holds {len(stored)} examples, the dataset {len(source)}; encode again")
    chosen = np.unique(np.linspace(0, len(stored) - 1, num_examples).astype(int))
    examples = [_variants(config, source, int(index), metadata.variants) for index in chosen]
    if [e["label"] for e in examples] != [stored[int(i)]["label"] for i in chosen]:
        raise ConfigError(f"cache {folder} has other labels than the dataset; encode again")
    images = loader.to_float(np.concatenate([e["image"] for e in examples]))
    tokens = concatenate([{k: v for k, v in stored[int(i)].items() if k in _TOKENS} for i in chosen])
    report = {
        "num_examples": len(stored),
        "files": len(metadata.files),
        "checked": len(chosen),
        "psnr": _psnr(images, decode(_decodable(tokens))),
        "psnr_fresh": _psnr(images, decode(_decodable(encode(images)))),
    }
    if not report["psnr"] >= min(report["psnr_fresh"], _PSNR_EXACT) - _PSNR_TOLERANCE:
        raise ConfigError(
            f"cache {folder} decodes to {report['psnr']:.1f} dB, tokens made afresh to {report['psnr_fresh']:.1f} dB; "
            "it belongs to another tokenizer, dataset or crop rule; encode again"
        )
    return report


def _open_text(folder: pathlib.Path | None, num_examples: int) -> text.StoredFeatures | None:
    if folder is None:
        return None
    stored = text.StoredFeatures(folder)
    if len(stored) != num_examples:
        raise ConfigError(f"{folder} has text features of {len(stored)} examples, the dataset has {num_examples}")
    return stored


def _variants(config: DataConfig, source: Source, index: int, variants: Variants) -> Example:
    example = loader.with_text(config, source[index])
    return {**example, "image": augment.variants(example["image"], config.image_size, variants)}


def _encode_shard(
    plan: cache.Metadata, indices: range, prepare: Callable[[int], Example], encode: Encode, batch_size: int
) -> LocalBatch:
    """The arrays of one shard. The last batch repeats an example, so that `encode` always sees one shape."""
    starts = indices[::batch_size]

    def load(batch: int) -> LocalBatch:
        wanted = np.minimum(np.arange(starts[batch], starts[batch] + batch_size), indices[-1])
        return loader.stack([prepare(int(index)) for index in wanted])

    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_THREADS)
    parts = []
    with contextlib.closing(iter(grain.MapDataset.range(len(starts)).map(load).to_iter_dataset(options))) as batches:
        for batch in batches:
            images = batch.pop("image")
            encoded = encode(loader.to_float(images.reshape(-1, *plan.image.shape)))
            encoded = {name: np.asarray(v).reshape(*images.shape[:2], *v.shape[1:]) for name, v in encoded.items()}
            parts.append({**batch, **compact(encoded, plan.tokens)})
    return {name: values[: len(indices)] for name, values in concatenate(parts).items()}


def compact(encoded: LocalBatch, tokens: TokenSpec) -> LocalBatch:
    """Tokens [examples variants n ...] in the types that caches hold: 16 bits suffice for most ids and for latents."""
    n, c = tokens.num_tokens, tokens.channels
    if tokens.kind == "discrete":
        ids = encoded["ids"]
        if ids.shape[2:] != (n,) or ids.min() < 0 or ids.max() >= tokens.vocab_size:
            raise ConfigError(
                f"the tokenizer gave ids of shape {ids.shape[2:]} in [{ids.min()}, {ids.max()}], its spec says "
                f"({n},) and below {tokens.vocab_size}"
            )
        return {"ids": ids.astype(np.uint16 if tokens.vocab_size <= 1 << 16 else np.int32)}
    with np.errstate(over="ignore"):
        compact = {name: values.astype(np.float16) for name, values in encoded.items()}
    for name, values in compact.items():
        if values.shape[2:] != (n, c) or not np.isfinite(values).all():
            raise ConfigError(
                f"the tokenizer gave {name} of shape {values.shape[2:]} up to {np.abs(encoded[name]).max():.3g}, its "
                f"spec says ({n}, {c}) and half precision holds up to 65504"
            )
    return compact


def _decodable(tokens: dict[str, Array]) -> dict[str, Array]:
    if "ids" in tokens:
        return {"ids": jnp.asarray(tokens["ids"], jnp.int32)}
    return {"latents": jnp.asarray(tokens["mean"], jnp.float32)}


def concatenate(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Batches, one after another, as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _psnr(images: Array, decoded: Array) -> float:
    errors = np.square(np.asarray(images, np.float64) - np.asarray(decoded, np.float64)).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(4 / np.maximum(errors, 1e-12))))


def finish(folder: pathlib.Path) -> cache.Metadata:
    """Declares a cache complete once all processes have written their shards; all of them must call it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("cache shards are written")
    if jax.process_index() == 0:
        cache.finish(folder)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("cache is complete")
    return cache.read_metadata(folder)
