"""Weights of one network out of a workdir's checkpoints."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from jaxar import checkpoints, partition
from jaxar.checkpoints import Retention
from jaxar.config import ConfigError, parse
from jaxar.methods.base import Method
from jaxar.typing import Key, Variables

RAW = "raw"  # the name that asks for weights without averaging


def abstract_variables(init: Callable[[Key], Any], mesh: Mesh) -> Any:
    """Shapes and shardings of what `init(key)` returns."""
    boxed = jax.eval_shape(init, jax.random.key(0))
    shardings = partition.shardings_of(boxed, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.meta.unbox(boxed), shardings
    )


def choose_step(folder: pathlib.Path, config: Mapping[str, Any], step: int | None, role: str) -> int:
    """The checkpoint to read from a workdir: the one asked for, else the best by metric, else the newest.

    Raises:
      ConfigError: no checkpoint, or not the one asked for.
    """
    saved = checkpoints.list_saved(folder / "checkpoints")
    if not saved:
        raise ConfigError(f"{role}={str(folder)!r} has no checkpoint yet; run python -m jaxar.train --workdir={folder}")
    steps = [c.step for c in saved]
    if step is not None:
        if step not in steps:
            raise ConfigError(f"{role}={str(folder)!r} has no checkpoint of step {step}; it has {steps}")
        return step
    keep = parse(Retention, (config.get("train") or {}).get("keep") or {}, "train.keep")
    scored = [c for c in saved if keep.metric in c.metrics]
    return min(scored, key=lambda c: keep.value(c.metrics)).step if scored else steps[-1]


def load_weights(
    folder: pathlib.Path, method: Method, player: str, step: int, ema: str | None, mesh: Mesh
) -> Variables:
    """Variables of one player of a workdir, averaged weights in place of the raw ones if `ema` names an average.

    Raises:
      ConfigError: the run keeps no such average, or the shapes differ.
      DamagedCheckpointError: the checkpoint cannot be read.
    """
    abstract = abstract_variables(method.init, mesh)[player]
    aux = {k: v for k, v in abstract.items() if k != "params"}
    where = {"params": abstract["params"]} if ema in (None, RAW) else {"emas": {ema: abstract["params"]}}
    loaded = checkpoints.load_player(folder / "checkpoints", step, player, {**where, "aux": aux})
    params = loaded["params"] if ema in (None, RAW) else loaded["emas"][ema]
    return {"params": params, **loaded["aux"]}
