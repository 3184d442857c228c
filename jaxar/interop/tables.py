"""Declared correspondences between official arrays and ours, read in both directions.

A `Table` lists every array of one official network. Nothing is guessed: names that a file lacks, names that the table
lacks and other shapes are one error that lists them all. Every correspondence is a bijection, so that official -> ours
-> official gives the same bits.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxar.config import ConfigError

_LISTED = 50  # names per kind in an error


class Layout(NamedTuple):
    """How one array changes between the official layout and ours; both directions use methods of arrays alone."""

    to_ours: Callable[[Any], Any]
    to_official: Callable[[Any], Any]

    def then(self, other: "Layout") -> "Layout":
        """This layout first on the way in, last on the way out."""
        return Layout(
            lambda x: other.to_ours(self.to_ours(x)),
            lambda x: self.to_official(other.to_official(x)),
        )


SAME = Layout(lambda x: x, lambda x: x)
LINEAR = Layout(lambda x: x.T, lambda x: x.T)  # [out in] <-> [in out]
CONV = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # [out in h w] <-> [h w in out]
FIRST_ROW = Layout(lambda x: x[0], lambda x: x[None])  # a leading axis of size 1 goes away
NEW_AXIS = Layout(lambda x: x[None], lambda x: x[0])  # a leading axis of size 1 comes in


def reshaped(official: tuple[int, ...], ours: tuple[int, ...]) -> Layout:
    """The same numbers in the same order under another shape."""
    return Layout(lambda x: x.reshape(ours), lambda x: x.reshape(official))


def split_heads(num_heads: int, bias: bool = False) -> Layout:
    """[heads*e in] <-> [in heads e], the weights of a query, key or value projection; of a bias, [heads*e]."""
    if bias:
        return Layout(lambda x: x.reshape(num_heads, -1), lambda x: x.reshape(-1))
    return Layout(
        lambda x: x.T.reshape(x.shape[1], num_heads, -1),
        lambda x: x.reshape(x.shape[0], -1).T,
    )


def merge_heads(num_heads: int) -> Layout:
    """[out heads*e] <-> [heads e out], the weights of an output projection."""
    return Layout(
        lambda x: x.T.reshape(num_heads, -1, x.shape[0]),
        lambda x: x.reshape(-1, x.shape[-1]).T,
    )


def chunks(order: tuple[int, ...]) -> Layout:
    """Equal chunks along axis 0 in another order: ours number i is the official number order[i]."""
    there, back = np.array(order), np.argsort(order)
    return Layout(
        lambda x: x.reshape(len(order), -1, *x.shape[1:])[there].reshape(x.shape),
        lambda x: x.reshape(len(order), -1, *x.shape[1:])[back].reshape(x.shape),
    )


@dataclasses.dataclass(frozen=True)
class Entry:
    """One correspondence.

    Attributes:
      ours: path of our array ("a/b/kernel"); several where one official array holds ours one after another.
      official: name of the official array; several where ours stacks them on a new axis 0.
      layouts: of each of `ours`.
      rows: what each of `ours` takes of the official array's axis `axis`; () if there is only one.
      stacked: whether ours has the new axis; without it `official` is one name.
    """

    ours: tuple[str, ...]
    official: tuple[str, ...]
    layouts: tuple[Layout, ...]
    rows: tuple[int, ...] = ()
    stacked: bool = False
    axis: int = 0

    def to_ours(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = {}
        cut = [self._cut(arrays[name]) for name in self.official]
        for path, layout, parts in zip(self.ours, self.layouts, zip(*cut)):
            converted = [layout.to_ours(part) for part in parts]
            found[path] = np.stack(converted) if self.stacked else converted[0]
        return found

    def to_official(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = {}
        for index, name in enumerate(self.official):
            parts = [arrays[path][index] if self.stacked else arrays[path] for path in self.ours]
            parts = [layout.to_official(part) for layout, part in zip(self.layouts, parts)]
            found[name] = np.concatenate(parts, self.axis) if self.rows else parts[0]
        return found

    def _cut(self, array: np.ndarray) -> list[np.ndarray]:
        return np.split(array, np.cumsum(self.rows)[:-1], self.axis) if self.rows else [array]

    def official_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Shape of each official array by name, from the shapes of ours; they all have the same."""
        parts = []
        for path, layout in zip(self.ours, self.layouts):
            shape = shapes[path][1:] if self.stacked else shapes[path]
            parts.append(jax.eval_shape(layout.to_official, jax.ShapeDtypeStruct(shape, np.float32)).shape)
        before, after = parts[0][: self.axis], parts[0][self.axis + 1 :]
        shape = (*before, sum(self.rows), *after) if self.rows else parts[0]
        return dict.fromkeys(self.official, shape)


@dataclasses.dataclass(frozen=True)
class Joined:
    """A correspondence where one array of ours holds several official ones, one after another on axis 0.

    Attributes:
      ours: path of our array, alone in a tuple.
      official: names of the official arrays.
      rows: what each of them gives to axis 0 of ours.
    """

    ours: tuple[str]
    official: tuple[str, ...]
    rows: tuple[int, ...]

    def to_ours(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {self.ours[0]: np.concatenate([arrays[name] for name in self.official])}

    def to_official(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.official, np.split(arrays[self.ours[0]], np.cumsum(self.rows)[:-1])))

    def official_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {name: (rows, *shapes[self.ours[0]][1:]) for name, rows in zip(self.official, self.rows)}


def one(ours: str, official: str, layout: Layout = SAME) -> Entry:
    """One official array is one of ours."""
    return Entry((ours,), (official,), (layout,))


def stack(ours: str, official: Iterable[str], layout: Layout = SAME) -> Entry:
    """Several official arrays are the entries of one of ours along its first axis."""
    return Entry((ours,), tuple(official), (layout,), stacked=True)


def layers(ours: str, official: str, count: int, layout: Layout = SAME) -> Entry:
    """`stack` over the layers of a network; "{}" in the official name is the layer's number."""
    return stack(ours, [official.format(i) for i in range(count)], layout)


def fused(
    ours: Iterable[str], official: Iterable[str] | str, rows: Iterable[int], layouts: Iterable[Layout], axis: int = 0
) -> Entry:
    """One official array holds several of ours along an axis; with a list of names ours are also stacks over them."""
    stacked = not isinstance(official, str)
    names = tuple(official) if stacked else (official,)
    return Entry(tuple(ours), names, tuple(layouts), tuple(rows), stacked, axis)


def joined(ours: str, official: Mapping[str, int]) -> Joined:
    """Several official arrays, by name with their number of rows, follow one another in one of ours."""
    return Joined((ours,), tuple(official), tuple(official.values()))


@dataclasses.dataclass(frozen=True)
class Table:
    """All arrays of an official network.

    Attributes:
      entries: the parameters.
      derived: official buffers that follow from the configuration. A file may lack them; if it has them they must be
        these.
      kept: official arrays without counterpart in ours (usage counters), by shape. A file may lack them; they are
        handed through.
    """

    entries: tuple[Entry | Joined, ...]
    derived: Mapping[str, Callable[[], np.ndarray]] = dataclasses.field(default_factory=dict)
    kept: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    @property
    def paths(self) -> frozenset[str]:
        return frozenset(path for entry in self.entries for path in entry.ours)

    def to_ours(
        self, official: Mapping[str, np.ndarray], ours: Mapping[str, jax.ShapeDtypeStruct], what: str
    ) -> dict[str, np.ndarray]:
        """Our arrays by path, in our dtypes.

        Args:
          official: by name, as read from a file.
          ours: shape and dtype of each of our arrays.
          what: the file and the network, for messages.
        Raises:
          ConfigError: missing, unknown or wrongly shaped names; a buffer with other values than those that follow from
            the configuration; numbers that our dtype cannot hold.
        """
        self._check_names(official, {path: x.shape for path, x in ours.items()}, what)
        self._check_derived(official, what)
        converted = {}
        for entry in self.entries:
            for path, array in entry.to_ours(official).items():
                converted[path] = _cast(array, ours[path].dtype, f"{what}: {', '.join(entry.official)}")
        return converted

    def to_official(self, ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Official arrays by name, buffers that follow from the configuration among them, kept ones not."""
        found = {name: array for entry in self.entries for name, array in entry.to_official(ours).items()}
        return found | {name: make() for name, make in self.derived.items()}

    def _check_names(self, official: Mapping[str, np.ndarray], ours: Mapping[str, Any], what: str) -> None:
        wanted = {name: shape for entry in self.entries for name, shape in entry.official_shapes(ours).items()}
        optional = {name: make().shape for name, make in self.derived.items()} | dict(self.kept)
        shapes = wanted | optional
        wrong = [
            f"{name} {list(array.shape)} in place of {list(shapes[name])}"
            for name, array in official.items()
            if name in shapes and array.shape != shapes[name]
        ]
        problems = {
            "missing": sorted(wanted.keys() - official.keys()),
            "unknown": sorted(official.keys() - shapes.keys()),
            "wrongly shaped": sorted(wrong),
        }
        found = "; ".join(f"{kind}: {_listed(names)}" for kind, names in problems.items() if names)
        if found:
            raise ConfigError(f"{what} does not fit its architecture: {found}; correct the architecture or the file")

    def _check_derived(self, official: Mapping[str, np.ndarray], what: str) -> None:
        wrong = [n for n, make in self.derived.items() if n in official and not np.array_equal(official[n], make())]
        if wrong:
            raise ConfigError(
                f"{what}: {_listed(wrong)} differ from what the architecture gives; correct the architecture"
            )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _cast(array: np.ndarray, dtype: Any, what: str) -> np.ndarray:
    """The array in another dtype, which must be able to hold it."""
    if array.dtype == dtype:
        return array
    cast = array.astype(dtype)
    if not np.array_equal(cast.astype(array.dtype), array, equal_nan=True):
        raise ConfigError(f"{what} is {array.dtype} and does not fit into {np.dtype(dtype)}; convert the file before")
    return cast
