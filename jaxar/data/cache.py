"""Token caches: a split encoded once, in a few large files that are read by memory mapping.

A cache is a folder with one folder per split:

    CACHE/train/metadata.json      written last; without it the cache is not complete
                ids-00000.npy      [examples variants n], or mean-, std- [examples variants n c]
                label-00000.npy    [examples]; with text also text- [examples t e] and text_mask- [examples t]
                noise_key-00000.npy  [examples 2] of pairs of noise and a teacher's tokens, see `jaxar.pairs`

While it is written, `plan.json` says what will be in it and `shard-00000.json` marks finished shards, so that an
interrupted encode goes on where it stopped and one with other settings is refused.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import BinaryIO, Literal

import numpy as np

from jaxar.config import ConfigError, parse
from jaxar.data.base import DataConfig, DataInfo, Example, PairOrigin, Source, Variants, make_folder
from jaxar.methods.base import TextSpec
from jaxar.tokenizers.base import ImageSpec, TokenSpec

_FINISH = "run the command that began it (python -m jaxar.encode or jaxar.pairs) again to finish it"


@dataclasses.dataclass(frozen=True)
class File:
    """One file of a cache, with the checksum of its contents."""

    name: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a cache holds; `files` is empty in the plan of an unfinished one.

    Attributes:
      source: name of the data source, `data.name`.
      dataset: name of the dataset, as `DataInfo.name`.
      variants: what is stored of each image, and thereby the crop rule; see `augment.variants`.
      tokenizer: fingerprint of the tokenizer.
      pairs: what made the tokens if they are a teacher's, not those of images.
    """

    source: str
    dataset: str
    split: str
    num_examples: int
    image: ImageSpec
    class_names: tuple[str, ...]
    variants: Variants
    tokens: TokenSpec
    tokenizer: str
    text: TextSpec | None
    captions: tuple[str, ...]
    shard_size: int
    pairs: PairOrigin | None = None
    files: tuple[File, ...] = ()
    version: Literal[1] = 1

    @property
    def num_shards(self) -> int:
        return -(-self.num_examples // self.shard_size)

    def shard(self, index: int) -> range:
        """Examples of a shard."""
        return range(index * self.shard_size, min((index + 1) * self.shard_size, self.num_examples))


def info(config: DataConfig) -> DataInfo:
    """Facts about the cache `config.cache`; its dataset need not be on this machine.

    Raises:
      ConfigError: no complete split, or one of another dataset or image size.
    """
    begun = [split for split in ("train", "test") if _folder(config, split).is_dir()]
    complete = [split for split in begun if (_folder(config, split) / "metadata.json").is_file()]
    # Without a complete split, reading any says what is missing.
    splits = {split: _matching(config, split) for split in complete or begun or ["train"]}
    first = next(iter(splits.values()))
    return DataInfo(
        name=first.dataset,
        image=first.image,
        num_classes=len(first.class_names),
        class_names=first.class_names,
        splits={split: metadata.num_examples for split, metadata in splits.items()},
        text=first.text,
        captions=first.captions,
        tokens=first.tokens,
        tokenizer=first.tokenizer,
        pairs=first.pairs,
    )


def open_split(config: DataConfig, split: str) -> Source:
    """Pre-encoded examples: "label", and "ids" [variants n] or "mean" and "std" [variants n c]; perhaps text."""
    _matching(config, split)
    return TokenCache(_folder(config, split))


class TokenCache:
    """The examples of one complete cache folder."""

    def __init__(self, folder: pathlib.Path):
        self.metadata = read_metadata(folder)
        self._shards = [_load_shard(folder, self.metadata, index) for index in range(self.metadata.num_shards)]

    def __len__(self) -> int:
        return self.metadata.num_examples

    def __getitem__(self, index: int) -> Example:
        shard, row = divmod(int(index), self.metadata.shard_size)
        example = {name: values[row] for name, values in self._shards[shard].items()}
        if "text" in example:
            example["text"] = example["text"].astype(np.float32)
        return {**example, "label": int(example["label"])}


def write(folder: pathlib.Path, plan: Metadata, arrays: Mapping[str, np.ndarray]) -> Metadata:
    """Writes a whole cache from arrays in memory, leading axis `plan.num_examples`; names as in the module's head."""
    start(folder, plan)
    for index in range(plan.num_shards):
        part = plan.shard(index)
        write_shard(folder, plan, index, {name: values[part.start : part.stop] for name, values in arrays.items()})
    return finish(folder)


def start(folder: pathlib.Path, plan: Metadata) -> list[int]:
    """Begins a cache or goes on with one; returns the shards that are missing.

    Raises:
      ConfigError: the folder holds a cache with other settings.
    """
    make_folder(folder, "token cache")
    for name in ("metadata.json", "plan.json"):
        if (folder / name).is_file():
            found = dataclasses.replace(_parse(folder / name), files=())
            for field in dataclasses.fields(Metadata):
                old, new = getattr(found, field.name), getattr(plan, field.name)
                if old != new:
                    raise ConfigError(
                        f"{folder} holds a cache with {field.name}={old!r}, not {new!r}; remove it or write elsewhere"
                    )
            break
    if (folder / "metadata.json").is_file():
        return []
    _write_json(folder / "plan.json", dataclasses.asdict(plan))
    return [index for index in range(plan.num_shards) if not _marker(folder, index).is_file()]


def write_shard(folder: pathlib.Path, plan: Metadata, index: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Stores one shard; it counts as written only once all its files are."""
    files = []
    for name, values in arrays.items():
        if len(values) != len(plan.shard(index)):
            raise ValueError(f"shard {index} has {len(values)} rows of {name!r}, expected {len(plan.shard(index))}")
        path = folder / _file_name(name, index)
        _write(path, lambda file, values=values: np.save(file, values, allow_pickle=False))
        files.append(_describe(path))
    _write_json(_marker(folder, index), [dataclasses.asdict(file) for file in files])


def finish(folder: pathlib.Path) -> Metadata:
    """Declares a cache complete.

    Raises:
      ConfigError: shards are missing.
    """
    if (folder / "metadata.json").is_file():
        return read_metadata(folder)
    plan = _parse(folder / "plan.json")
    markers = [_marker(folder, index) for index in range(plan.num_shards)]
    missing = [marker.stem for marker in markers if not marker.is_file()]
    if missing:
        raise ConfigError(f"cache {folder} lacks {len(missing)} of {plan.num_shards} shards ({missing[0]}); {_FINISH}")
    files = tuple(File(**entry) for marker in markers for entry in json.loads(marker.read_text()))
    metadata = dataclasses.replace(plan, files=files)
    _write_json(folder / "metadata.json", dataclasses.asdict(metadata))
    for leftover in (*markers, folder / "plan.json"):
        leftover.unlink()
    return metadata


def read_metadata(folder: pathlib.Path) -> Metadata:
    """What a complete cache holds.

    Raises:
      ConfigError: the cache is missing or not complete, or a file has another size than was written.
    """
    if not (folder / "metadata.json").is_file():
        begun = (folder / "plan.json").is_file()
        way_out = _FINISH if begun else "write it with `python -m jaxar.encode` or set data.cache to its folder"
        raise ConfigError(f"cache {folder} {'is not complete' if begun else 'does not exist'}; {way_out}")
    metadata = _parse(folder / "metadata.json")
    for file in metadata.files:
        path = folder / file.name
        size = path.stat().st_size if path.is_file() else None
        if size != file.size:
            raise ConfigError(f"cache file {path} has {size} bytes, {file.size} were written; encode again")
    return metadata


def check_files(folder: pathlib.Path) -> Metadata:
    """Compares the contents of every file with its checksum.

    Raises:
      ConfigError: as `read_metadata`, and a file whose contents have changed.
    """
    metadata = read_metadata(folder)
    for file in metadata.files:
        if _describe(folder / file.name) != file:
            raise ConfigError(f"cache file {folder / file.name} has changed since it was written; encode again")
    return metadata


def _folder(config: DataConfig, split: str) -> pathlib.Path:
    return pathlib.Path(config.cache).expanduser() / split


def _matching(config: DataConfig, split: str) -> Metadata:
    metadata = read_metadata(_folder(config, split))
    for field, given, stored in (
        ("name", config.name, metadata.source),
        ("image_size", config.image_size, metadata.image.size),
    ):
        if given != stored:
            raise ConfigError(f"data.{field}={given!r}, but data.cache={config.cache!r} was made with {stored!r}")
    return metadata


def _load_shard(folder: pathlib.Path, metadata: Metadata, index: int) -> dict[str, np.ndarray]:
    suffix = _file_name("", index)
    names = [file.name.removesuffix(suffix) for file in metadata.files if file.name.endswith(suffix)]
    # A plain view: indexing a memmap object itself is several times slower.
    return {
        name: np.load(folder / _file_name(name, index), mmap_mode="r", allow_pickle=False).view(np.ndarray)
        for name in names
    }


def _file_name(array: str, shard: int) -> str:
    return f"{array}-{shard:05d}.npy"


def _marker(folder: pathlib.Path, shard: int) -> pathlib.Path:
    return folder / f"shard-{shard:05d}.json"


def _describe(path: pathlib.Path) -> File:
    with path.open("rb") as file:
        return File(path.name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _parse(path: pathlib.Path) -> Metadata:
    try:
        return parse(Metadata, json.loads(path.read_text()), str(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is damaged ({error}); encode again into an empty folder") from error


def _write_json(path: pathlib.Path, value: object) -> None:
    _write(path, lambda file: file.write(json.dumps(value, indent=1).encode()))


def _write(path: pathlib.Path, fill: Callable[[BinaryIO], object]) -> None:
    """Writes beside `path` and moves into place, so that `path` is never half a file."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("wb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)
