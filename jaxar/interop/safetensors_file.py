"""The safetensors format, with bfloat16: a length, a JSON header, and the bytes of the arrays without gaps.

The library's NumPy side knows no bfloat16, in which large models are published. Arrays are read where the file is
mapped, so a file costs no memory before it is used.

Reference: https://huggingface.co/docs/safetensors, section "Format".
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jaxar.config import ConfigError

_MAX_HEADER = 100_000_000
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Arrays by name, read-only.

    Raises:
      ConfigError: not a whole, well-formed file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER, size - 8):
            raise _damaged(path, f"its header of {length} bytes does not fit into {size} bytes")
        try:
            header = json.loads(file.read(length).decode(), object_pairs_hook=_without_repeats)
        except ValueError as error:
            raise _damaged(path, f"its header cannot be read ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no JSON object")
    header.pop("__metadata__", None)
    _check_extents(path, header, size - 8 - length)
    data = np.memmap(path, np.uint8, "r", offset=8 + length) if header and size > 8 + length else np.zeros(0, np.uint8)
    return {name: _array(data, entry) for name, entry in header.items()}


def _array(data: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    begin, end = entry["data_offsets"]
    # A plain view: subclasses of ndarray would travel through all that is computed from it.
    return np.asarray(data[begin:end]).view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])


def _check_extents(path: pathlib.Path, header: Mapping[str, Any], size: int) -> None:
    """Every array has the bytes that its shape needs, and together they are the file."""
    reached = 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(path, *item)):
        begin, end = entry["data_offsets"]
        shape = entry.get("shape")
        if entry.get("dtype") not in _DTYPES:
            raise _damaged(path, f"{name} has the unknown dtype {entry.get('dtype')!r}")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise _damaged(path, f"{name} has the shape {shape!r}")
        needed = math.prod(shape) * np.dtype(_DTYPES[entry["dtype"]]).itemsize
        if begin != reached or end - begin != needed:
            raise _damaged(
                path, f"{name} lies at bytes {begin} to {end}, its shape needs {reached} to {begin + needed}"
            )
        reached = end
    if reached != size:
        raise _damaged(path, f"it holds {size} bytes of arrays where its header names {reached}")


def _offsets(path: pathlib.Path, name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int for n in offsets)):
        raise _damaged(path, f"{name} has no valid data_offsets")
    return tuple(offsets)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _damaged(path: pathlib.Path, why: str) -> ConfigError:
    return ConfigError(f"{path} is no whole safetensors file: {why}; get it again")


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] = {}) -> None:
    """Writes arrays by name, atomically: larger items first, names in order, as the library does.

    Args:
      metadata: text that readers may show; it does not change what is read.
    """
    arrays = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()}
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header, reached = {"__metadata__": dict(metadata)} if metadata else {}, 0
    for name in order:
        end = reached + arrays[name].nbytes
        dtype = _NAMES[arrays[name].dtype]
        header[name] = {"dtype": dtype, "shape": list(arrays[name].shape), "data_offsets": [reached, end]}
        reached = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # arrays begin at a multiple of 8
    partial = path.with_name(path.name + ".tmp")
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(arrays[name].tobytes())
    partial.replace(path)
