"""Every method, as its own smoke configuration builds it: the suites find a new one by its files alone.

A method `m` is tried through each configuration `configs/*_digits.py` whose method it is. A parent's default workdir is
out/CONFIGURATION, so the parent's configuration, and with it the tokenizer, is found by name; its weights are random.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import pytest

from jaxar import cli, experiment, lookup, optim, partition, settings, state
from jaxar.data import datasets, loader
from jaxar.methods.base import Method, Task
from jaxar.tokenizers.base import Encoder
from jaxar.train_step import Plan

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
BATCH = 8
# What takes long and hardly differs between methods runs for these in every suite, for the others in the slow one.
ALWAYS = ("ar_digits",)
# What trains no network but a few numbers: nothing is learnt by heart with them, and no mesh divides them.
NUMBERS = ("lsd_digits",)
# Teachers without anything to train, and so without a configuration of their own.
CLOSED_FORM = ("analytic", "enumerated")


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A configuration with everything a suite needs: the method, frozen variables, and a batch as its losses see it."""

    name: str
    config: dict[str, Any]
    task: Task
    method: Method
    frozen: dict[str, Any]
    raw: dict[str, jax.Array]
    batch: dict[str, jax.Array]
    prepare: Encoder | None

    def optimizers(self, section=None):
        return optim.build(section or self.config["optim"], self.method, num_steps=100)

    def plan(self, section=None, **options) -> Plan:
        return Plan(self.method, self.optimizers(section), self.prepare, **options)

    def state(self, plan, mesh=None, seed=0):
        return state.create(self.method, plan.optimizers, mesh or partition.single_device_mesh(), jax.random.key(seed))


def smoke(name: str, num_heads: int | None = None) -> dict[str, Any]:
    """A smoke configuration, with so many attention heads in all of its networks; None for its own."""
    config = cli.load_config(f"{CONFIGS / name}.py:smoke")
    return config if num_heads is None else {**config, "model": _with_heads(config["model"], num_heads)}


def _with_heads(section: Mapping[str, Any], num_heads: int) -> dict[str, Any]:
    changed = {k: _with_heads(v, num_heads) if isinstance(v, Mapping) else v for k, v in section.items()}
    return changed | ({"num_heads": num_heads} if "num_heads" in section else {})


def described(name: str, load: Callable[[str], dict[str, Any]] = smoke) -> dict[str, Any]:
    """The `task.json` of a run, parents described by their own configurations; `load` reads one by its name."""
    config = load(name)
    adopted = {}
    for parent in ("tokenizer", "teacher"):
        origin = (config.get(parent) or {}).get("from_")
        if origin is None:
            continue
        of_parent = described(pathlib.Path(origin).name, load)
        if parent == "tokenizer":
            adopted[parent] = {"described": of_parent["tokenizer"]}
        else:
            parts = {k: load(pathlib.Path(origin).name)[k] for k in ("method", "model")}
            adopted[parent] = {"described": {"config": parts, "task": of_parent}}
            adopted.setdefault("tokenizer", {"described": of_parent["tokenizer"]})
    return experiment.describe(config, datasets.info(datasets.configure(config["data"])), adopted)


@functools.cache
def case(name: str, num_heads: int | None = None) -> Case:
    load = functools.partial(smoke, num_heads=num_heads)
    config, task = load(name), settings.build_task(described(name, load))
    method = settings.build_method(config, task)
    frozen, prepare = {}, None
    if task.tokenizer is not None and "tokenizer" not in method.players():
        init = jax.jit(lambda key: nn.meta.unbox(task.tokenizer.init(key)))
        frozen["tokenizer"] = init(jax.random.key(7))
        prepare = Encoder(task.tokenizer)
    if task.teacher is not None:
        first = next(iter(task.teacher.players()))
        fresh = jax.jit(lambda key: nn.meta.unbox(task.teacher.init(key)[first]))(jax.random.key(8))
        frozen["teacher"] = {**fresh, "params": _perturbed(fresh["params"])}
    raw = next(loader.train_batches(datasets.configure(config["data"]), batch_size=BATCH, seed=0))
    batch = jax.jit(lambda f, b: prepare(f, b, None))(frozen, raw) if prepare else raw
    return Case(name, config, task, method, frozen, raw, batch, prepare)


def _perturbed(params: Any) -> Any:
    """Parameters none of which is zero: a teacher whose gates and head are closed has nothing to teach."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    noise = [0.1 * jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, leaves)]
    return jax.tree.unflatten(structure, [x + n for x, n in zip(leaves, noise)])


def digits_configs() -> list[str]:
    return sorted(p.stem for p in CONFIGS.glob("*_digits.py"))


def mostly_slow() -> list[Any]:
    """The same as parameters, all but `ALWAYS` marked slow."""
    return [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in digits_configs()]


def uncovered() -> list[str]:
    """Methods without a configuration on digits: the suites would miss them."""
    tried = {smoke(name)["method"]["name"] for name in digits_configs()}
    return sorted(set(lookup.names("jaxar.methods")) - tried - set(CLOSED_FORM))
