"""Weights out of files of any of the formats that official repositories publish, without the training code around them.

`.safetensors`; `.pth`, `.pt`, `.ckpt` as written by torch; Flax's msgpack. The format is recognised by content.
"""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxar.config import ConfigError
from jaxar.interop import msgpack_file, safetensors_file, torch_file

# Where checkpoints of training keep weights: averaged ones first, since those are what papers evaluate.
WRAPPERS = ("model_ema", "ema", "ema_params", "model", "state_dict", "module", "params")
PREFIXES = ("module.", "_orig_mod.")  # of data parallelism and of compiled modules
_ZIP = b"PK\x03\x04"


def read(path: str | pathlib.Path, entry: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of one network by official name; levels of nested Flax parameters are joined by "/".

    Args:
      path: the file.
      entry: where in a nested file the weights are ("trainer/var_wo_ddp"); None looks for the usual places.
    Raises:
      ConfigError: missing, damaged or unknown file, no such entry, or values that are no arrays.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ConfigError(f"{path} is no file; give the path of downloaded weights")
    tree, where = unwrapped(_load(path), path, entry)
    flat = dict(_flat(tree))
    others = sorted(name for name, value in flat.items() if not isinstance(value, np.ndarray))
    if others or not flat:
        what = f"{', '.join(others[:5])} are no arrays" if others else "there are no arrays"
        raise ConfigError(f"{path}{where}: {what}; name the entry that holds the weights, one of {_keys(tree)}")
    arrays = {_without_prefixes(name): value for name, value in flat.items()}
    if len(arrays) < len(flat):
        raise ConfigError(f"{path}{where} has names that differ only in the prefixes {', '.join(PREFIXES)}; remove one")
    return arrays


def fingerprint(arrays: Mapping[str, np.ndarray]) -> str:
    """A sha256 of weights that no file format changes: of their float32 values, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name], "<f4").tobytes())
    return digest.hexdigest()


def _load(path: pathlib.Path) -> Any:
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith((_ZIP, torch_file.OLD)):
        return torch_file.read(path)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return safetensors_file.read(path)
    if start and (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):  # MessagePack: a map with entries comes first
        return msgpack_file.read(path)
    raise ConfigError(f"{path} is neither safetensors, nor torch's, nor Flax msgpack; convert it before")


def unwrapped(tree: Any, path: pathlib.Path, entry: str | None) -> tuple[Any, str]:
    """The part of a checkpoint that holds weights, and where it was found ("[model]")."""
    where = ""
    if entry is not None:
        for key in entry.split("/"):
            if not isinstance(tree, Mapping) or key not in tree:
                raise ConfigError(f"{path} has no entry {entry!r}; at {key!r} there are {_keys(tree)}")
            tree, where = tree[key], f"{where}[{key}]"
        return tree, where
    while isinstance(tree, Mapping):
        key = next((k for k in WRAPPERS if isinstance(tree.get(k), Mapping)), None)
        if key is None:
            break
        tree, where = tree[key], f"{where}[{key}]"
    return tree, where


def _flat(tree: Any, prefix: str = "") -> Any:
    if not isinstance(tree, Mapping):
        yield prefix, tree
        return
    for key, value in tree.items():
        yield from _flat(value, f"{prefix}/{key}" if prefix else str(key))


def _without_prefixes(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _keys(tree: Any) -> str:
    return ", ".join(list(map(str, tree))[:10]) if isinstance(tree, Mapping) else "no entries"
