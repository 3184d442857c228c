"""Reads what `torch.save` writes, without torch and without executing anything that the file says.

Such a file is a zip of a pickle and of raw storages, or as torch wrote it before version 1.6, pickles followed by the
storages; the weights of FID's network are of that age. A pickle is a program; this reader runs it with three functions
(rebuild a tensor, rebuild a parameter, an ordered dictionary). Everything else that it names (argument namespaces,
optimizers, or something hostile) becomes an inert object that accepts any call and does nothing. No attribute of any
object is ever set.
"""

import abc
import collections
import io
import math
import pathlib
import pickle
import zipfile
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from jaxar.config import ConfigError

OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first pickle of old files, a magic number
_OLD_VERSION = 1001
_MAX_PICKLE = 256 << 20
_COPIES = 4  # arrays may share storages; together they may be so many times as large as the file
_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _StorageType(NamedTuple):
    dtype: Any


class _Inert:
    """Stands for everything that is not an array: takes any arguments, items and calls, and keeps none."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __new__(cls, *args: Any, **kwargs: Any):
        return object.__new__(cls)

    def __call__(self, *args: Any, **kwargs: Any) -> "_Inert":
        return self

    append = extend = add = __setitem__ = __call__


def read(path: pathlib.Path) -> Any:
    """The pickled object with its tensors as read-only NumPy arrays.

    Raises:
      ConfigError: not a whole file of this format, or one whose tensors do not lie within their storages.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(OLD)) == OLD:
                return _read_old(path)
        with zipfile.ZipFile(path) as archive:
            return _Archive(path, archive).load()
    except ConfigError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise ConfigError(
            f"{path} cannot be read as a file of torch.save ({type(error).__name__}: {error}); if it is not damaged, "
            "save it again, best as .safetensors"
        ) from error


class _Storages(abc.ABC):
    """What tensors of one file are views of."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._size = path.stat().st_size
        self._left = _COPIES * self._size

    @abc.abstractmethod
    def storage(self, kind: Any, key: Any, numel: Any) -> np.ndarray:
        """The storage that a pickle refers to."""

    def _check_reference(self, kind: Any, key: Any) -> None:
        if not (isinstance(kind, _StorageType) and isinstance(key, str) and key.isdecimal()):
            raise self._refused(f"storage {key!r} has an unknown type or name")

    def view(self, storage: Any, offset: Any, shape: Any, strides: Any) -> np.ndarray:
        """An array inside a storage, from its offset and strides in elements."""
        numbers = [offset, *shape, *strides]
        if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
            raise self._refused(f"a tensor has shape {shape!r}, strides {strides!r}, offset {offset!r}")
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
        if math.prod(shape) and last >= storage.size:
            raise self._refused(f"a tensor of shape {shape!r} ends beyond its storage")
        self._left -= math.prod(shape) * storage.itemsize
        if self._left < 0:
            raise self._refused("its tensors are larger than its storages")
        if not math.prod(shape):
            return np.zeros(shape, storage.dtype)
        bytes_ = tuple(stride * storage.itemsize for stride in strides)
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, bytes_, writeable=False)

    def _refused(self, why: str) -> ConfigError:
        return ConfigError(f"{self._path} is refused: {why}; get it again, or as .safetensors")


class _Archive(_Storages):
    """The members of a zip file, each storage read once."""

    def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile):
        super().__init__(path)
        self._archive = archive
        self._storages: dict[str, np.ndarray] = {}
        if sum(info.file_size for info in archive.infolist()) > self._size:
            raise self._refused("its members are compressed or overlap, which torch.save never does")
        pickles = [name for name in archive.namelist() if name.endswith("data.pkl") and name.count("/") <= 1]
        if len(pickles) != 1:
            raise self._refused("it holds no data.pkl")
        self._folder = pickles[0].removesuffix("data.pkl")

    def load(self) -> Any:
        order = f"{self._folder}byteorder"
        if order in self._archive.namelist() and self._archive.read(order) != b"little":
            raise self._refused("it was written on a big-endian machine")
        name = f"{self._folder}data.pkl"
        if self._archive.getinfo(name).file_size > _MAX_PICKLE:
            raise self._refused(f"its pickle is larger than {_MAX_PICKLE >> 20} MiB")
        return _Unpickler(io.BytesIO(self._archive.read(name)), self).load()

    def storage(self, kind: Any, key: Any, numel: Any) -> np.ndarray:
        self._check_reference(kind, key)
        if key not in self._storages:
            self._storages[key] = np.frombuffer(self._archive.read(f"{self._folder}data/{key}"), kind.dtype)
        found = self._storages[key]
        if found.dtype != kind.dtype or found.size != numel:
            raise self._refused(f"storage {key!r} holds {found.size} values in place of {numel!r}")
        return found


def _read_old(path: pathlib.Path) -> Any:
    """The object of a file in which the storages follow the pickle: it is run to learn of them, and once more."""
    with path.open("rb") as file:
        start = io.BytesIO(file.read(_MAX_PICKLE))
    storages = _Sequence(path)
    _, version, system = (_Unpickler(start, storages).load() for _ in range(3))
    if version != _OLD_VERSION or system["little_endian"] is not True:
        raise storages._refused(f"its version is {version!r} and its system {system!r}")
    position = start.tell()
    _Unpickler(start, storages).load()
    keys = _Unpickler(start, storages).load()
    storages.place(keys, start.tell())
    start.seek(position)
    return _Unpickler(start, storages).load()


class _Sequence(_Storages):
    """Storages one after another, each behind its length; until they are placed, only sizes are collected."""

    def __init__(self, path: pathlib.Path):
        super().__init__(path)
        self._sizes: dict[str, tuple[np.dtype, int]] = {}
        self._placed: dict[str, np.ndarray] = {}

    def place(self, keys: Any, offset: int) -> None:
        """Maps the storages that lie from `offset` on in the order of `keys`."""
        if not isinstance(keys, list) or set(keys) != self._sizes.keys() or len(keys) != len(self._sizes):
            raise self._refused("it lists other storages than its tensors use")
        data = np.memmap(self._path, np.uint8, "r")
        for key in keys:
            dtype, numel = self._sizes[key]
            stop = offset + 8 + numel * dtype.itemsize
            if stop > self._size or int.from_bytes(data[offset : offset + 8].tobytes(), "little") != numel:
                raise self._refused(f"storage {key!r} does not hold {numel} values")
            self._placed[key] = np.frombuffer(data[offset + 8 : stop].tobytes(), dtype)
            offset = stop

    def storage(self, kind: Any, key: Any, numel: Any) -> np.ndarray | None:
        self._check_reference(kind, key)
        if type(numel) is not int or not 0 <= numel <= self._size:
            raise self._refused(f"storage {key!r} has {numel!r} values")
        if self._sizes.setdefault(key, (kind.dtype, numel)) != (kind.dtype, numel):
            raise self._refused(f"storage {key!r} is described in two ways")
        return self._placed.get(key)

    def view(self, storage: Any, offset: Any, shape: Any, strides: Any) -> np.ndarray | None:
        return super().view(storage, offset, shape, strides) if self._placed else None


# The implementation in Python: its memory is bounded by the file, where the one in C trusts lengths that it reads.
class _Unpickler(pickle._Unpickler):
    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: io.BytesIO, storages: _Storages):
        super().__init__(file)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: self._storages.view(storage, offset, shape, strides)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in _STORAGES:
            return _StorageType(np.dtype(_STORAGES[name]))
        return _Inert

    def persistent_load(self, reference: Any) -> Any:
        kind, storage_type, key, _, numel, *of_old_files = reference
        if kind != "storage" or of_old_files not in ([], [None]):
            raise pickle.UnpicklingError(f"unknown reference {kind!r}")
        return self._storages.storage(storage_type, key, numel)

    def load_build(self) -> None:
        """Drops the state of an object: nothing that weights need is kept there."""
        self.stack.pop()

    dispatch[pickle.BUILD[0]] = load_build
