"""Runs build on runs: weights of other workdirs are copied once, and the child is complete from then on."""

import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jaxar import checkpoints, settings, weights, workdir
from jaxar.config import ConfigError, parse
from jaxar.methods.base import Method, Task
from jaxar.typing import Key, Variables

NAMES = ("tokenizer", "teacher")


def sections(config: Mapping[str, Any], child: pathlib.Path) -> dict[str, settings.Parent]:
    """The parents of the workdir `child` that are runs. A teacher's tokenizer is the child's unless it names one."""
    named = {}
    for name in NAMES:
        section = config.get(name) or {}
        # A tokenizer may also be trained here, and a teacher in closed form be described here.
        if "from_" in section or (name == "teacher" and section and "method" not in section):
            named[name] = parse(settings.Parent, section, name)
    if "teacher" in named and not config.get("tokenizer"):
        origin = named["teacher"].from_
        # The teacher's workdir may be gone once the child has its copy.
        if any((folder / "parents" / "tokenizer").exists() for folder in (child, pathlib.Path(origin))):
            named["tokenizer"] = settings.Parent(origin)
    return named


def adopt(child: pathlib.Path, name: str, parent: settings.Parent, mesh: Mesh) -> dict[str, Any]:
    """Copies what the child needs of a parent into `child/parents/name`, unless the child has started with its copy.

    Args:
      name: "tokenizer" or "teacher".
    Returns:
      The parent's record: "described" (for `task.json`), "origin", "step", "ema", "digest" of the weights.
    Raises:
      ConfigError: the parent is no run, has no checkpoint, or no tokenizer.
    """
    folder = child / "parents" / name
    # A copy without a started run is left over from a failed start, perhaps with another parent.
    if workdir.started(child) and (folder / "parent.json").is_file():
        return workdir.read_json(folder / "parent.json")
    origin, role = pathlib.Path(parent.from_), f"{name}.from_"
    config = workdir.open_config(origin, role)
    described = workdir.read_json(origin / "task.json")
    if name == "tokenizer" and (origin / "parents" / "tokenizer" / "parent.json").is_file():
        return _copy(origin / "parents" / "tokenizer", folder)
    task = settings.build_task(described)
    method = settings.build_method(config, task)
    player = next(iter(method.players()))
    if name == "tokenizer" and player != "tokenizer":
        raise ConfigError(f"{role}={parent.from_!r} holds no tokenizer; name the workdir of a tokenizer's training")
    step = weights.choose_step(origin, config, parent.step, role)
    ema = weights.choose_average(config, parent.ema)
    variables = weights.load_weights(origin, method, player, step, ema, mesh)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.save_tree(folder / "weights", variables)
    if name == "tokenizer":
        what = described["tokenizer"]
    else:
        what = {"config": {k: config.get(k) or {} for k in ("method", "model")}, "task": described}
    record = {
        "described": what,
        "image": described["image"],
        "origin": str(origin),
        "step": step,
        "ema": ema,
        "digest": weights.digest(variables),
    }
    if jax.process_index() == 0:
        workdir.write_json(folder / "parent.json", record)
    return record


def _copy(source: pathlib.Path, target: pathlib.Path) -> dict[str, Any]:
    if jax.process_index() == 0:
        partial = target.with_suffix(".tmp")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, partial)
        partial.rename(target)
    return workdir.read_json(source / "parent.json")


def load_adopted(child: pathlib.Path, task: Task, mesh: Mesh) -> dict[str, Variables]:
    """Variables of all adopted parents, by name, and of a teacher in closed form, which has no weights to adopt.

    Raises:
      ConfigError: the teacher has weights, and there is no copy of them.
    """
    frozen = {}
    inits = {"tokenizer": task.tokenizer.init if task.tokenizer else None, "teacher": _first_init(task.teacher)}
    for name in NAMES:
        folder = child / "parents" / name
        if (folder / "parent.json").is_file():
            frozen[name] = checkpoints.load_tree(folder / "weights", weights.abstract_variables(inits[name], mesh))
    if task.teacher is not None and "teacher" not in frozen:
        frozen["teacher"] = _without_weights(inits["teacher"], mesh)
    return frozen


def _without_weights(init: Callable[[Key], Variables], mesh: Mesh) -> Variables:
    abstract = weights.abstract_variables(init, mesh)
    if jax.tree.leaves(abstract):
        raise ConfigError(
            "teacher.method names a method with weights; train it, and name its workdir in teacher.from_ instead"
        )
    return abstract


def _first_init(method: Method | None):
    if method is None:
        return None
    first = next(iter(method.players()))
    return lambda key: method.init(key)[first]
