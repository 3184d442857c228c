"""Weights of one network out of a workdir's checkpoints."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxar import checkpoints, optim, partition, settings, workdir
from jaxar.checkpoints import Retention
from jaxar.config import ConfigError, parse, unknown
from jaxar.methods.base import Method
from jaxar.state import TrainState, ema_name
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


def choose_average(config: Mapping[str, Any], ema: str | None) -> str | None:
    """The average to read from a workdir: the one asked for, else the one that its own `eval.ema` names."""
    return ema if ema is not None else parse(settings.EvalConfig, config.get("eval") or {}, "eval").ema


def load_weights(
    folder: pathlib.Path, method: Method, player: str, step: int, ema: str | None, mesh: Mesh
) -> Variables:
    """Variables of one player of a workdir, averaged weights in place of the raw ones if `ema` names an average.

    Raises:
      ConfigError: the run keeps no such average, or the shapes differ.
      DamagedCheckpointError: the checkpoint cannot be read.
    """
    check_average(workdir.open_config(folder, "workdir"), method, player, ema, "average")
    abstract = abstract_variables(method.init, mesh)[player]
    aux = {k: v for k, v in abstract.items() if k != "params"}
    where = {"params": abstract["params"]} if ema in (None, RAW) else {"emas": {ema: abstract["params"]}}
    loaded = checkpoints.load_player(folder / "checkpoints", step, player, {**where, "aux": aux})
    params = loaded["params"] if ema in (None, RAW) else loaded["emas"][ema]
    return {"params": params, **loaded["aux"]}


def averages(config: Mapping[str, Any], method: Method, player: str) -> list[str]:
    """Names of the averages that a configuration keeps of a player."""
    decays = optim.configure(config.get("optim") or {}, player).ema if method.players()[player].ema else ()
    return [ema_name(decay) for decay in decays]


def check_average(config: Mapping[str, Any], method: Method, player: str, ema: str | None, kind: str) -> None:
    """Refuses an average that a configuration does not keep of a player. `kind`: what messages call it."""
    known = [*averages(config, method, player), RAW]
    if ema is not None and ema not in known:
        raise unknown(kind, ema, known)


def digest(variables: Variables) -> str:
    """A short name for a set of weights, from the fingerprints of its arrays."""
    text = json.dumps(checkpoints.fingerprints(variables), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """The run that an `init_from` section names; `step`: the checkpoint to read, `ema`: the average."""

    folder: pathlib.Path
    method: Method
    step: int
    ema: str | None
    state: bool


def open_source(section: Mapping[str, Any]) -> Source:
    """What an `init_from` section asks for.

    Raises:
      ConfigError: unknown keys, no such run or checkpoint.
    """
    asked = parse(settings.InitFrom, section, "init_from")
    folder = pathlib.Path(asked.from_)
    config = workdir.open_config(folder, "init_from.from_")
    return Source(
        folder=folder,
        method=settings.build_method(config, settings.build_task(workdir.read_json(folder / "task.json"))),
        step=choose_step(folder, config, asked.step, "init_from.from_"),
        ema=choose_average(config, asked.ema),
        state=asked.state,
    )


def common_players(source: Source, abstract: TrainState, mesh: Mesh) -> tuple[str, ...]:
    """Players that a run shares with its source.

    Raises:
      ConfigError: there are none, or their parameters have other shapes.
    """
    common = tuple(name for name in source.method.players() if name in abstract.players)
    if not common:
        raise ConfigError(
            f"init_from.from_={str(source.folder)!r} has players {', '.join(source.method.players())}, this method has "
            f"{', '.join(abstract.players)}; they share none"
        )
    theirs = abstract_variables(source.method.init, mesh)
    for name in common:
        shapes = [jax.tree.map(jnp.shape, params) for params in (theirs[name]["params"], abstract.players[name].params)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"init_from.from_={str(source.folder)!r}: its {name!r} has other shapes; use the same model section"
            )
    return common


def initialise(state: TrainState, section: Mapping[str, Any], abstract: TrainState, mesh: Mesh) -> TrainState:
    """A fresh state whose networks start from another run, as the `init_from` section says.

    Players of the same name are taken over; their averages start as copies. With `init_from.state` the whole state is.

    Raises:
      ConfigError: no such run, no common player, other shapes.
    """
    if not section:
        return state
    source = open_source(section)
    if source.state:
        return checkpoints.load_state(source.folder / "checkpoints", source.step, abstract)
    players = dict(state.players)
    for name in common_players(source, abstract, mesh):
        ema = source.ema if source.method.players()[name].ema else None
        loaded = load_weights(source.folder, source.method, name, source.step, ema, mesh)
        emas = {decay: jax.tree.map(jnp.copy, loaded["params"]) for decay in players[name].emas}
        aux = {k: v for k, v in loaded.items() if k != "params"}
        players[name] = players[name].replace(params=loaded["params"], aux=aux, emas=emas)
    return state.replace(players=players)
