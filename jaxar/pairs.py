"""Stores pairs of noise and what a teacher makes of it: python -m jaxar.pairs --config=FILE[:ARG] --out=STORE --num=N

The configuration is a student's (`dd1`, say). Trained with --config.data.cache=STORE it reads the pairs and need not
roll its teacher out in every step. Labels and text are those of the data's examples in turn; a token cache gives them
faster than images. An interrupted command goes on where it stopped.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxar import backend, cli, experiment, partition, sampling, settings, workdir
from jaxar.config import ConfigError
from jaxar.data import cache, datasets, encoding, loader
from jaxar.data.base import PairOrigin, Source
from jaxar.data.loader import LocalBatch
from jaxar.experiment import Setup
from jaxar.methods.base import Batch, Cond, Method
from jaxar.typing import Array, Int, Key, Variables

_CONDITIONS = ("label", "text", "text_mask")


def make(
    config: dict[str, Any],
    store: pathlib.Path,
    num: dict[str, int],
    *,
    seed: int = 0,
    batch_size: int = 512,
    shard_size: int = 16384,
) -> dict[str, cache.Metadata]:
    """Fills a store, or goes on with one; with several processes `store` must be shared.

    Args:
      config: of the student. A `data.cache` that is the store itself is not read.
      store: keeps copies of the parents beside the pairs.
      num: pairs of each split, "train" or "test".
      seed: of the noise, which is none that sampling with any seed draws.
      batch_size: pairs that are made at once.
      shard_size: pairs per file.
    Returns:
      The metadata of each split.
    Raises:
      ConfigError: as `experiment.prepare`; a method that learns from no pairs; a store of other or damaged pairs.
    """
    setup = experiment.prepare(_without(config, store), store)
    law = setup.method.pair_law()
    if law is None:
        raise ConfigError(f"method.name={config['method']['name']!r} learns from no pairs; train it as it is")
    if setup.task.tokens is None:
        raise ConfigError("pairs hold tokens, and this method sees pixels; name a tokenizer in tokenizer.from_")
    origin = PairOrigin(teacher=_digest(store, "teacher"), law=law, seed=seed)
    for split, count in num.items():
        _write_split(
            store / split,
            setup,
            _plan(setup, split, count, _digest(store, "tokenizer"), origin, shard_size),
            batch_size,
        )
    return {split: cache.check_files(store / split) for split in num}


def _without(config: dict[str, Any], store: pathlib.Path) -> dict[str, Any]:
    data = config.get("data") or {}
    named = data.get("cache")
    own = named is not None and pathlib.Path(named).expanduser().resolve() == store.resolve()
    return {**config, "data": {k: v for k, v in data.items() if k != "cache"}} if own else config


def _digest(store: pathlib.Path, parent: str) -> str:
    return workdir.read_json(store / "parents" / parent / "parent.json")["digest"]


def _plan(setup: Setup, split: str, count: int, tokenizer: str, origin: PairOrigin, shard_size: int) -> cache.Metadata:
    info = setup.info
    return cache.Metadata(
        source=setup.data.name,
        dataset=info.name,
        split=split,
        num_examples=count,
        image=info.image,
        class_names=info.class_names,
        variants="image",
        tokens=setup.task.tokens,
        tokenizer=tokenizer,
        text=info.text,
        captions=info.captions,
        shard_size=shard_size,
        pairs=origin,
    )


def _write_split(folder: pathlib.Path, setup: Setup, plan: cache.Metadata, batch_size: int) -> None:
    """Every process takes part in every batch, and writes every so-manieth shard."""
    source = datasets.open_split(setup.data, plan.split)
    root = jax.random.fold_in(jax.random.key(plan.pairs.seed), 1 + datasets.SPLITS.index(plan.split))
    missing = cache.start(folder, plan)
    if jax.process_count() > 1:  # nobody writes a shard before all have seen which are missing
        multihost_utils.sync_global_devices("missing shards are known")
    for shard in missing:
        arrays = _make_shard(setup, source, plan, plan.shard(shard), root, batch_size)
        if shard % jax.process_count() == jax.process_index():
            cache.write_shard(folder, plan, shard, arrays)
    encoding.finish(folder)


def _make_shard(
    setup: Setup, source: Source, plan: cache.Metadata, numbers: range, root: Key, batch_size: int
) -> LocalBatch:
    """The arrays of the pairs `numbers`; the last batch repeats one, so that all batches have one shape."""
    ways = partition.batch_ways(setup.mesh)
    size = -(-batch_size // ways) * ways
    parts = []
    for start in numbers[::size]:
        batch = np.minimum(np.arange(start, start + size), numbers[-1]).astype(np.int32)
        cond = loader.stack([_condition(setup, source[int(number) % len(source)]) for number in batch])
        with jax.set_mesh(setup.mesh):
            placed = jax.device_put((cond, batch), partition.batch_sharding(setup.mesh))
            made = {name: sampling.to_host(x) for name, x in _draw(setup.method, setup.frozen, *placed, root).items()}
        tokens = {
            "ids" if name == "ids" else "mean": made.pop(name)[:, None] for name in ("ids", "latents") if name in made
        }
        parts.append({**cond, **made, **encoding.compact(tokens, plan.tokens)})
    return {name: values[: len(numbers)] for name, values in encoding.concatenate(parts).items()}


def _condition(setup: Setup, example: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in loader.with_text(setup.data, example).items() if k in _CONDITIONS}


@functools.partial(jax.jit, static_argnums=0)
def _draw(method: Method, frozen: dict[str, Variables], cond: Cond, numbers: Int[Array, "b"], root: Key) -> Batch:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(root, numbers)
    return {**method.pairs(frozen, cond, keys), "noise_key": jax.random.key_data(keys)}


def command(argv: list[str]) -> None:
    parser = cli.Parser(__doc__, prog="python -m jaxar.pairs")
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="the student's configuration")
    parser.add_argument("--out", required=True, metavar="STORE", help="folder to write")
    parser.add_argument("--num", required=True, type=cli.integer(1), metavar="N", help="pairs to train on")
    parser.add_argument("--num_test", type=cli.integer(1), default=512, metavar="N", help="pairs to validate on (512)")
    parser.add_argument("--seed", type=cli.integer(0, settings.MAX_SEED), default=0, help="of the noise (default 0)")
    parser.add_argument("--batch_size", type=cli.integer(1), default=512, help="pairs made at once (default 512)")
    parser.add_json()
    args, overrides = parser.parse_known(argv, ["--config."])
    config = cli.load_config(args.config, overrides)
    backend.initialize()
    num = {"train": args.num, "test": args.num_test}
    made = make(config, pathlib.Path(args.out), num, seed=args.seed, batch_size=args.batch_size)
    origin = dataclasses.asdict(made["train"].pairs)
    lines = [f"{args.out}/{split}: {m.num_examples} pairs in {len(m.files)} files" for split, m in made.items()]
    cli.emit(
        {"out": args.out, "splits": {s: m.num_examples for s, m in made.items()}, **origin}, "\n".join(lines), args.json
    )


if __name__ == "__main__":
    cli.main(command)
