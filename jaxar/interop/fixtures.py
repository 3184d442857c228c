"""Reference fixtures: tensors of an official implementation, and JSON that says how each output was computed.

A fixture is a pair NAME.safetensors, NAME.json. `param/NETWORK/NAME` are weights, `in/NAME` inputs and `out/NAME`
outputs. Every output names its call (function and arguments), the part of the result that it is, and its tolerance.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxar.config import ConfigError, unknown
from jaxar.interop import drawn_weights, safetensors_file

_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Output:
    """One stored output: where it comes from and how closely it must be met."""

    name: str
    fn: str
    args: Mapping[str, Any]
    part: str
    select: tuple[Mapping[str, Any], ...]
    tolerance: Mapping[str, Any]

    @property
    def call(self) -> str:
        """The same text for outputs of the same run."""
        return json.dumps([self.fn, self.args], sort_keys=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Fixture:
    """An opened fixture; `models` describes the networks, `tensors` holds everything stored."""

    path: pathlib.Path
    name: str
    family: str
    models: Mapping[str, Mapping[str, Any]]
    outputs: tuple[Output, ...]
    tensors: Mapping[str, np.ndarray]

    def weights(self, model: str) -> dict[str, np.ndarray]:
        """The official arrays of one network."""
        prefix = f"param/{model}/"
        return {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}

    def resolve(self, value: Any) -> Any:
        """An argument with the stored arrays in place of references to them."""
        if isinstance(value, list):
            return [self.resolve(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        if value.get("tensor") not in self.tensors:
            raise ConfigError(f"{self.path} refers to {value.get('tensor')!r}, which is not stored")
        tensor = self.tensors[value["tensor"]]
        if "rows" in value:
            return tensor[value["rows"]]
        if "slice" in value:
            return tensor[slice(*value["slice"])]
        return tensor[value["index"]] if "index" in value else tensor


def read(path: str | pathlib.Path) -> Fixture:
    """Opens NAME.safetensors with the NAME.json beside it.

    Raises:
      ConfigError: a missing or damaged file, or one of another format.
    """
    path = pathlib.Path(path)
    described = path.with_suffix(".json")
    for file in (path, described):
        if not file.is_file():
            raise ConfigError(f"{file} is no file; a fixture is a pair NAME.safetensors, NAME.json")
    try:
        meta = json.loads(described.read_text())
        if meta.get("format", _FORMAT) != _FORMAT:
            raise ConfigError(f"{described} has format {meta['format']!r}; this version reads format {_FORMAT}")
        outputs = tuple(_outputs(meta["tensors"]))
        name, family, models = meta["name"], meta["family"], meta.get("models") or {}
        drawn = _drawn(meta, path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{described} does not describe a fixture ({type(error).__name__}: {error})") from error
    tensors = safetensors_file.read(path)
    absent = [output.name for output in outputs if output.name not in tensors]
    if absent:
        raise ConfigError(f"{path} lacks {', '.join(absent)}")
    return Fixture(path, name, family, models | ({family: {}} if drawn else {}), outputs, tensors | drawn)


def _drawn(meta: Mapping[str, Any], path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of the network that gives the family its name, where the fixture describes them only."""
    weights = meta.get("weights")
    if not isinstance(weights, Mapping) or weights.get("stored", True):  # a text describes stored ones
        return {}
    arrays = drawn_weights.draw(meta["state_dict"]["entries"], weights, str(path))
    return {f"param/{meta['family']}/{name}": array for name, array in arrays.items()}


def _outputs(entries: Mapping[str, Any]) -> Iterator[Output]:
    for name, entry in entries.items():
        if name.startswith("out/"):
            call, select = entry["call"], tuple(entry.get("select") or ())
            yield Output(name, call["fn"], call["args"], entry["part"], select, entry["tolerance"])


def selected(fixture: Fixture, value: np.ndarray, steps: tuple[Mapping[str, Any], ...]) -> np.ndarray:
    """The piece of a result that is stored."""
    for step in steps:
        if step["op"] not in _SELECT:
            raise unknown("selection", step["op"], _SELECT)
        options = {key: fixture.resolve(option) for key, option in step.items() if key != "op"}
        value = _SELECT[step["op"]](value, **options)
    return value


def _slice(x: np.ndarray, axis: int, start: int | None, stop: int | None, step: int = 1) -> np.ndarray:
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, stop, step)
    return x[tuple(index)]


def _points(x: np.ndarray, at: list[tuple[int, int]]) -> np.ndarray:
    rows, columns = np.asarray(at).T
    return x[:, rows, columns]


_SELECT: dict[str, Callable[..., np.ndarray]] = {
    "slice": _slice,
    "take": lambda x, axis, indices: np.take(x, indices, axis),
    "points_yx": _points,
    "mean": lambda x, axes: x.mean(tuple(axes), dtype=np.float64),
    "std": lambda x, axes: x.std(tuple(axes), dtype=np.float64),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """How one output compares.

    Attributes:
      max_error: largest absolute difference; NaN where a value is.
      error_over_std: the same over the standard deviation of the stored values, None if these are all equal.
      equal: share of elements that are equal.
      kind, tolerance: what the fixture demands.
    """

    output: str
    max_error: float
    error_over_std: float | None
    equal: float
    kind: str
    tolerance: float
    passed: bool


def compare(name: str, mine: np.ndarray, stored: np.ndarray, rule: Mapping[str, Any]) -> Row:
    """Compares a recomputed output with the stored one.

    Raises:
      ConfigError: another shape, or an unknown kind of tolerance.
    """
    if rule["kind"] not in _RULES:
        raise unknown("kind of tolerance", rule["kind"], _RULES)
    if mine.shape != stored.shape:
        raise ConfigError(f"{name} is {list(mine.shape)} here and {list(stored.shape)} in the fixture")
    a, b = mine.astype(np.float64), stored.astype(np.float64)
    with np.errstate(invalid="ignore"):  # equal infinities
        error = np.where(a == b, 0.0, np.abs(a - b))
    std = b.std() if np.isfinite(b).all() and b.size else 0.0
    largest = float(error.max()) if error.size else 0.0
    return Row(
        output=name,
        max_error=largest,
        error_over_std=largest / std if std > 0 else None,
        equal=float(np.mean(a == b)) if a.size else 1.0,
        kind=rule["kind"],
        tolerance=rule["value"],
        passed=bool(_RULES[rule["kind"]](error, b, rule)),
    )


def _within_std(error: np.ndarray, stored: np.ndarray, limit: float) -> bool:
    """Constant values have no scale of their own: they must be met exactly."""
    std = stored.std()
    largest = error.max(initial=0.0)
    return largest / std < limit if std > 0 else largest == 0


def _soft(error: np.ndarray, stored: np.ndarray, rule: Mapping[str, Any]) -> bool:
    close = error <= 1e-4 * stored.std()
    return close.mean() >= rule["value"]


def _rtol(error: np.ndarray, stored: np.ndarray, rule: Mapping[str, Any]) -> bool:
    limit = rule["value"] * (rule["scale"] if "scale" in rule else np.abs(stored) + 1e-12 / rule["value"])
    return (error <= limit).all()


_RULES = {
    "max_over_std": lambda error, stored, rule: _within_std(error, stored, rule["value"]),
    "rowwise": lambda error, stored, rule: all(_within_std(e, s, rule["value"]) for e, s in zip(error, stored)),
    "rtol": _rtol,
    "exact": lambda error, stored, rule: (error == 0).all(),
    "soft": _soft,
}
