"""What a family of official networks is to jaxar.

A file in `families/` is a family; its name is that of the family in reference fixtures. It holds

* `NETWORKS`: the official names of its networks, the one that gives its name to the weights first;
* `describe(models) -> Official`: our counterpart of official networks with given constructor arguments;
* `CALLS`: functions of the official code that our code recomputes, by name: `(official, variables, **args) -> parts`;
* `PUBLISHED`: constructor arguments of published weights by the name that `jaxar.convert --arch` takes, {} for none.

`models` maps the official networks' names ("var", "vae") to what describes each: `constructor`, the arguments of its
class, and beside it what the class fixes or a fixture changed.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from jaxar import lookup, settings
from jaxar.config import ConfigError, parse, unknown
from jaxar.interop.tables import Table
from jaxar.methods.base import Task
from jaxar.typing import FIXED, Array, Key, Params, Variables

Models = Mapping[str, Mapping[str, Any]]
Parts = dict[str, Array]
Call = Callable[..., Parts]

PACKAGE = "jaxar.interop.families"
KEPT = "kept"  # collection in which `check` gives a family the official arrays without counterpart
_DESCRIPTIVE = ("class", "num_values", "prefix", "omitted")


@dataclasses.dataclass(frozen=True)
class Part:
    """One official network, usually one file of weights.

    Attributes:
      model: its official name.
      player: where its weights go in our variables: "model", "tokenizer".
      table: its arrays; paths are those of parameters, and "fixed/..." of weights that nothing trains.
      init: (key) -> fresh variables of our counterpart; it is only evaluated for shapes.
      whole: whether the table covers our counterpart; False where only a piece of it is stored.
      collections: untrained collections that belong to converted parameters.
      optional: whether the others are of use without it; then `describe` takes models that lack it.
    """

    model: str
    player: str
    table: Table
    init: Callable[[Key], Variables]
    whole: bool = True
    collections: Callable[[Params], dict[str, Any]] = lambda params: {}
    optional: bool = False

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of our parameters by path.

        Raises:
          ConfigError: the table misses some of them.
        """
        flat = _flat(nn.meta.unbox(jax.eval_shape(self.init, jax.random.key(0))))
        wanted = self.table.paths
        uncovered = sorted(wanted.symmetric_difference(flat) if self.whole else wanted - flat.keys())
        if uncovered:
            raise ConfigError(f"the name table of {self.model!r} and our network differ in {', '.join(uncovered)}")
        return {path: flat[path] for path in wanted}

    def to_variables(self, official: Mapping[str, np.ndarray], what: str) -> Variables:
        """Our variables from official arrays; raises as `Table.to_ours`."""
        flat = self.table.to_ours(official, self.shapes(), what)
        params = jax.tree.map(jax.numpy.asarray, flax.traverse_util.unflatten_dict(flat, sep="/"))
        fixed = {FIXED: params.pop(FIXED)} if FIXED in params else {}
        return {"params": params, **fixed, **self.collections(params)}

    def to_official(self, variables: Variables) -> dict[str, np.ndarray]:
        """Official arrays from our variables, kept ones excepted."""
        return self.table.to_official({path: np.asarray(array) for path, array in _flat(variables).items()})


def _flat(variables: Variables) -> dict[str, Any]:
    """Parameters by path, and fixed weights under "fixed/"."""
    weights = {**variables["params"], **{name: variables[name] for name in (FIXED,) if name in variables}}
    return flax.traverse_util.flatten_dict(weights, sep="/")


@dataclasses.dataclass(frozen=True)
class Official:
    """Our counterpart of official networks.

    Attributes:
      ours: what computes: a method, a tokenizer or a network.
      parts: the official networks, the one that gives its name to the weights first.
      config: the sections "method", "model" and "sample" of a workdir, None for what no workdir can hold.
      task: the contents of its task.json.
    """

    ours: Any
    parts: tuple[Part, ...]
    config: dict[str, Any] | None = None
    task: dict[str, Any] | None = None

    @property
    def options(self) -> dict[str, Part]:
        """The networks by the option of `jaxar.convert` that names their file."""
        first, *others = self.parts
        return {"weights": first, **{part.player: part for part in others}}


def family(name: str) -> ModuleType:
    """The module of a family.

    Raises:
      ConfigError: no such family; the message lists the known ones.
    """
    return lookup.module(PACKAGE, name, "family")


def architectures() -> dict[str, tuple[str, Models]]:
    """Family and constructor arguments by the name of published weights."""
    found = {}
    for name in lookup.names(PACKAGE):
        found |= {arch: (name, models) for arch, models in family(name).PUBLISHED.items()}
    return found


def arguments(cls: type, models: Models, model: str, training: Iterable[str] = ()) -> Any:
    """The official constructor arguments of one network as the frozen dataclass `cls`.

    Args:
      cls: its fields have the official names and defaults.
      models: all networks.
      model: the one to read. Its `constructor` counts first, then `fixed_in_class`, then keys beside them.
      training: official arguments that only training uses.
    Raises:
      ConfigError: an argument that `cls` does not know, or an ill-typed one.
    """
    given = dict(models.get(model, {}))
    constructor, fixed = given.pop("constructor", {}), given.pop("fixed_in_class", {})
    known = {field.name for field in dataclasses.fields(cls)}
    beside = {k: v for k, v in given.items() if k in known or (not constructor and k not in _DESCRIPTIVE)}
    fixed = {k: v for k, v in fixed.items() if k in known}
    values = {k: v for k, v in (beside | fixed | dict(constructor)).items() if k not in training}
    return parse(cls, values, model)


def require(model: str, field: str, value: Any, allowed: Any) -> None:
    """Refuses an official option that no published network uses and ours do not have."""
    if value != allowed:
        raise ConfigError(f"{model}.{field}={value!r} is not supported; it must be {allowed!r}")


def as_models(value: Mapping[str, Any], names: Iterable[str]) -> Models:
    """`models` from what a user wrote: a fixture's description, arguments by network, or those of the only network.

    Raises:
      ConfigError: none of these.
    """
    models = value.get("models", value)
    names = tuple(names)
    if len(names) == 1 and not set(models) & set(names):
        models = {names[0]: models}
    for name, given in models.items():
        if name not in names:
            raise unknown("network", name, names)
        if not isinstance(given, Mapping):
            raise ConfigError(f"{name}={given!r} must hold the constructor arguments of this network")
    return models


def method_of(config: Mapping[str, Any], task: Mapping[str, Any]) -> tuple[Any, Task]:
    """The method and task that a workdir of these contents opens as."""
    built = settings.build_task(task)
    return settings.build_method(config, built), built
