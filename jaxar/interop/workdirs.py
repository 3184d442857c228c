"""Official weights as a workdir, and the weights of a workdir as files.

A converted workdir holds what a trained one does, so the commands open it as they open any other. Beside it lies what
the way back needs: the architecture, names and dtypes of the official arrays, and those that have no counterpart.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from jaxar import checkpoints, parents, run, weights, workdir
from jaxar.config import ConfigError
from jaxar.data.base import make_folder
from jaxar.interop import base, safetensors_file
from jaxar.state import Guard, PlayerState, TrainState
from jaxar.typing import Variables

RECORD, KEPT = "official.json", "official_kept.safetensors"
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
    """Official arrays of one network and where they were read."""

    file: str
    arrays: Arrays


def write(
    folder: pathlib.Path,
    family: str,
    models: base.Models,
    sources: Mapping[str, Source],
    data: Mapping[str, Any],
) -> dict[str, int]:
    """Writes a workdir that the commands open.

    Args:
      folder: new or empty.
      family: of the weights.
      models: constructor arguments of its networks.
      sources: weights of every network.
      data: the section that `jaxar.evaluate` reads.
    Returns:
      The number of converted values of each network.
    Raises:
      ConfigError: weights that do not fit, a folder that holds a run, a family that no workdir can hold.
    """
    if workdir.started(folder):
        raise ConfigError(f"--workdir={str(folder)!r} holds a run already; choose a new folder")
    official = base.family(family).describe(models)
    variables = {}
    for part in official.parts:
        source = sources[part.model]
        variables[part.player] = part.to_variables(source.arrays, f"{source.file} ({part.model})")
    make_folder(folder, "--workdir")
    _save(folder, official, variables, sources)
    _write_record(folder, family, models, official, sources)
    described = {"class_names": _class_names(official.task), "captions": []} | official.task
    workdir.write_json(folder / "task.json", workdir.normalized(described))
    config = {**official.config, "data": dict(data), "optim": {}, "train": {}, "eval": {}}
    workdir.write_json(folder / "config.json", workdir.normalized(config))  # last: now the folder holds a run
    return {p.model: sum(x.size for x in p.to_official(variables[p.player]).values()) for p in official.parts}


def _save(
    folder: pathlib.Path,
    official: base.Official,
    variables: Mapping[str, Variables],
    sources: Mapping[str, Source],
) -> None:
    """The method's players as a checkpoint of step 0, and the others as adopted parents."""
    method, _ = base.method_of(official.config, official.task)
    players = {name: _player(variables[name]) for name in method.players()}
    saver = checkpoints.Checkpoints(folder / "checkpoints")
    saver.save(TrainState(jnp.zeros((), jnp.int32), players), {})
    saver.close()
    for part in official.parts:
        if part.player in parents.NAMES and part.player not in players:
            _adopt(folder / "parents" / part.player, official, variables[part.player], sources[part.model].file)


def _player(variables: Variables) -> PlayerState:
    """Weights without an optimizer: training that goes on from them starts with `init_from`."""
    zero = jnp.zeros((), jnp.int32)
    aux = {name: value for name, value in variables.items() if name != "params"}
    return PlayerState(variables["params"], aux, (), {}, Guard(zero, zero, jnp.zeros(())), zero)


def _adopt(folder: pathlib.Path, official: base.Official, variables: Variables, origin: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.save_tree(folder / "weights", variables)
    record = {
        "described": official.task["tokenizer"],
        "image": official.task["image"],
        "origin": origin,
        "step": 0,
        "ema": None,
        "digest": weights.digest(variables),
    }
    workdir.write_json(folder / "parent.json", workdir.normalized(record))


def _write_record(
    folder: pathlib.Path,
    family: str,
    models: base.Models,
    official: base.Official,
    sources: Mapping[str, Source],
) -> None:
    kept = {
        f"{part.model}/{name}": sources[part.model].arrays[name]
        for part in official.parts
        for name in part.table.kept
        if name in sources[part.model].arrays
    }
    safetensors_file.write(folder / KEPT, kept)
    dtypes = {model: {name: str(x.dtype) for name, x in source.arrays.items()} for model, source in sources.items()}
    files = {model: source.file for model, source in sources.items()}
    record = {"family": family, "models": models, "files": files, "dtypes": dtypes}
    workdir.write_json(folder / RECORD, workdir.normalized(record))


def _class_names(task: Mapping[str, Any]) -> list[str]:
    return [str(label) for label in range(task["num_classes"])]


def is_converted(folder: pathlib.Path) -> bool:
    return (folder / RECORD).is_file()


def official_files(opened: run.Run) -> dict[str, Arrays]:
    """The arrays of a converted workdir by the option that named their file; the same names, dtypes and bits."""
    record = workdir.read_json(opened.workdir / RECORD)
    kept = safetensors_file.read(opened.workdir / KEPT)
    found = {}
    for option, part in base.family(record["family"]).describe(record["models"]).options.items():
        back = part.to_official(opened.variables[part.player])
        back |= {name: kept[f"{part.model}/{name}"] for name in part.table.kept if f"{part.model}/{name}" in kept}
        dtypes = record["dtypes"][part.model]
        found[option] = {name: back[name].astype(_dtype(dtype)) for name, dtype in dtypes.items()}
    return found


def _dtype(name: str) -> Any:
    return jnp.bfloat16 if name == "bfloat16" else np.dtype(name)


def own_arrays(opened: run.Run, player: str) -> tuple[Arrays, dict[str, str]]:
    """A network under our own names ("params/stack/..."), and text that says how to rebuild it."""
    flat = flax.traverse_util.flatten_dict(dict(opened.variables[player]), sep="/")
    described = {
        "format": "jaxar",
        "player": player,
        "step": str(opened.step),
        "ema": str(opened.ema),
        "config": json.dumps(opened.config),
        "task": (opened.workdir / "task.json").read_text(),
    }
    return {path: np.asarray(array) for path, array in flat.items()}, described
