"""Reads what `flax.serialization.to_bytes` writes: a MessagePack map of maps whose leaves are arrays or plain values.

Nothing is executed and no object of a class that the file names is made. Every length is checked against the bytes that
are left before anything is made of it, and arrays are views of the mapped file, so a file costs no more memory than its
own size. The library's reader trusts lengths: nested headers of a small file can ask for any amount.

Reference: https://github.com/msgpack/msgpack/blob/master/spec.md; flax.serialization for the meaning of its extensions.
"""

import math
import mmap
import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np

from jaxar.config import ConfigError

_MAX_DEPTH = 64
_MAX_ITEMS = 1_000_000  # entries of all maps and lists together
_ARRAY, _SCALAR = 1, 3  # Flax's codes of extensions
_CHUNKED = "__msgpack_chunked_array__"  # Flax cuts arrays that are too large for one item
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_LENGTHS = {1: ">B", 2: ">H", 4: ">I"}
# First byte -> bytes that its length takes.
_STRINGS, _BINARIES = {0xD9: 1, 0xDA: 2, 0xDB: 4}, {0xC4: 1, 0xC5: 2, 0xC6: 4}
_LISTS, _MAPS, _EXTENSIONS = {0xDC: 2, 0xDD: 4}, {0xDE: 2, 0xDF: 4}, {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def read(path: pathlib.Path) -> Any:
    """The stored tree, with read-only arrays.

    Raises:
      ConfigError: not a whole file of this format, or one that asks for more than it holds.
    """
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        reader = _Reader(data)
        tree = reader.item(0)
        if reader.left:
            raise ValueError(f"{reader.left} bytes follow its end")
        return _whole(tree)
    except (ValueError, TypeError, KeyError, OverflowError, struct.error) as error:
        raise ConfigError(f"{path} is no whole msgpack file ({error}); get it again") from error


class _Reader:
    """A position in the bytes of a file, or of one extension in it."""

    def __init__(self, data: memoryview):
        self._data, self._at, self._items = data, 0, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def _take(self, count: int) -> memoryview:
        if count > self.left:
            raise ValueError(f"{count} bytes are wanted where {self.left} are left")
        self._at += count
        return self._data[self._at - count : self._at]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def item(self, depth: int) -> Any:
        """The next item, with all that it holds."""
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        first = self._number(">B")
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 0x100
        if first < 0xC0:
            short = {0x80: self._map, 0x90: self._list}.get(first & 0xF0)
            return short(first & 0x0F, depth) if short else self._string(first & 0x1F)
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in _NUMBERS:
            return self._number(_NUMBERS[first])
        if first in _FIXED_EXTENSIONS:
            return self._extension(_FIXED_EXTENSIONS[first])
        for lengths, read in ((_STRINGS, self._string), (_BINARIES, self._take), (_EXTENSIONS, self._extension)):
            if first in lengths:
                return read(self._number(_LENGTHS[lengths[first]]))
        for lengths, read in ((_LISTS, self._list), (_MAPS, self._map)):
            if first in lengths:
                return read(self._number(_LENGTHS[lengths[first]]), depth)
        raise ValueError(f"{first:#x} begins no item")

    def _count(self, count: int) -> None:
        self._items += count
        if count > self.left or self._items > _MAX_ITEMS:
            raise ValueError(f"{count} entries are wanted where {self.left} bytes are left")

    def _string(self, length: int) -> str:
        return str(self._take(length), "utf-8")

    def _list(self, count: int, depth: int) -> list[Any]:
        self._count(count)
        return [self.item(depth + 1) for _ in range(count)]

    def _map(self, count: int, depth: int) -> dict[str, Any]:
        self._count(count)
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self.item(depth + 1)
            if not isinstance(key, str) or key in found:
                raise ValueError(f"the key {key!r} is no text or occurs twice")
            found[key] = self.item(depth + 1)
        return found

    def _extension(self, length: int) -> Any:
        code, data = self._number(">b"), self._take(length)
        if code not in (_ARRAY, _SCALAR):
            return None  # complex numbers and what others define; no weights are among them
        return _array(data)


def _array(data: memoryview) -> np.ndarray:
    """An array from its extension: a list of shape, name of the dtype, and bytes."""
    shape, name, stored = _Reader(data).item(0)
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array has the shape {shape!r}")
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    if dtype.kind not in "biuf" and dtype != ml_dtypes.bfloat16:
        raise ValueError(f"an array has the dtype {name!r}")
    if math.prod(shape) * dtype.itemsize != len(stored):
        raise ValueError(f"an array of shape {shape!r} has {len(stored)} bytes")
    return np.frombuffer(stored, dtype).reshape(shape)


def _whole(tree: Any) -> Any:
    """The tree with arrays in place of their pieces."""
    if not isinstance(tree, dict):
        return tree
    if _CHUNKED not in tree:
        return {key: _whole(value) for key, value in tree.items()}
    shape, chunks = ([tree[name][str(i)] for i in range(len(tree[name]))] for name in ("shape", "chunks"))
    return np.concatenate(chunks).reshape(shape)
