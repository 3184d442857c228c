"""ImageNet-1k from a copy on this machine (`--root=FOLDER`): official tar files, read in place, or class folders."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import tarfile
from collections.abc import Iterator

import numpy as np

from jaxar.config import ConfigError
from jaxar.data import images
from jaxar.data.base import DataConfig, DataInfo, Example, Source, make_folder
from jaxar.data.sources import folder
from jaxar.tokenizers.base import ImageSpec

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
VAL_LABELS = "imagenet_2012_validation_synset_labels.txt"
_NAMES = ("LOC_synset_mapping.txt", "synset_words.txt")
_SYNSET_TAR = re.compile(r"n\d{8}\.tar")
_TRAIN_MEMBER, _VAL_MEMBER = re.compile(r"n\d{8}_\d+\.JPEG"), re.compile(r"ILSVRC2012_val_\d{8}\.JPEG")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
    """ImageNet-1k.

    Attributes:
      root: holds either ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
        imagenet_2012_validation_synset_labels.txt (the synset of each validation image, one a line), or train/ and val/
        with a folder per synset. LOC_synset_mapping.txt or synset_words.txt, if there, gives the classes their names.
    """

    name: str = "imagenet"
    image_size: int = 256
    flip: bool = True
    num_threads: int = 16
    root: str


def info(config: Config) -> DataInfo:
    root = _root(config)
    synsets, train = _split(root, "train", config.directory)
    splits = {"train": len(train)}
    if (root / "val").is_dir() or (root / VAL_TAR).is_file():
        splits["test"] = len(open(config, "test"))
    return DataInfo(
        name="imagenet",
        image=ImageSpec(config.image_size, 3),
        num_classes=len(synsets),
        class_names=_class_names(root, synsets),
        splits=splits,
    )


def open(config: Config, split: str) -> Source:
    root = _root(config)
    synsets, source = _split(root, split, config.directory)
    if split == "test" and synsets != _split(root, "train", config.directory)[0]:
        raise ConfigError(f"data.root={config.root!r} has other classes for training than for validation")
    return source


@dataclasses.dataclass(frozen=True, eq=False)
class TarPictures:
    """Images inside an uncompressed tar file, read where they lie.

    Attributes:
      path: the tar file.
      entries: offset, size and label of each image, int64 [n 3].
    """

    path: pathlib.Path
    entries: np.ndarray

    @functools.cached_property
    def _file(self) -> int:
        return os.open(self.path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Example:
        offset, size, label = self.entries[index].tolist()
        data = os.pread(self._file, size, offset)  # has no file position that threads could fight over
        return {"image": images.decode(data, 3, f"{self.path} at byte {offset}"), "label": label}


def _root(config: Config) -> pathlib.Path:
    return pathlib.Path(config.root).expanduser()


@functools.lru_cache(maxsize=4)
def _split(root: pathlib.Path, split: str, directory: pathlib.Path) -> tuple[tuple[str, ...], Source]:
    """Sorted synsets and the examples of a split."""
    class_folder, tar = (root / "train", root / TRAIN_TAR) if split == "train" else (root / "val", root / VAL_TAR)
    if class_folder.is_dir():
        classes = folder.read_classes(class_folder)
        labels = {synset: label for label, synset in enumerate(classes)}
        return tuple(classes), folder.Pictures(folder.label_files(classes, labels))
    if not tar.is_file():
        raise ConfigError(
            f"data.root={str(root)!r} has neither {class_folder.name}/ nor {tar.name}; point it at a copy of ImageNet"
        )
    labels_file = root / VAL_LABELS
    if split == "test" and not labels_file.is_file():
        raise ConfigError(f"{labels_file} is missing; it lists the synset of each image of {tar.name}, one a line")
    names = _cached_listing(tar, split, directory)
    synsets_of = labels_file.read_text().split() if split == "test" else [n.split("_")[0] for n in names["name"]]
    if len(synsets_of) != len(names):
        raise ConfigError(f"{labels_file} has {len(synsets_of)} lines for {len(names)} images; one synset a line")
    synsets, labels = np.unique(synsets_of, return_inverse=True)
    return tuple(synsets.tolist()), TarPictures(tar, np.stack([names["offset"], names["size"], labels], axis=1))


def _cached_listing(tar: pathlib.Path, split: str, directory: pathlib.Path) -> np.ndarray:
    """Name, offset and size of the images in a tar file, sorted by name; listed once and kept in `directory`.

    Listing reads every header of a file of 138 GB, which takes minutes.
    """
    stat = tar.stat()
    state = f"{tar.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    path = directory / "index" / f"{tar.stem}-{hashlib.sha256(state.encode()).hexdigest()[:16]}.npy"
    if path.is_file():
        return np.load(path, allow_pickle=False)
    members = _train_members(tar) if split == "train" else _val_members(tar)
    listing = np.array(sorted(members), [("name", "U32"), ("offset", np.int64), ("size", np.int64)])
    make_folder(path.parent, "data.data_dir")
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("wb") as file:
        np.save(file, listing)
    os.replace(scratch, path)
    return listing


def _train_members(tar: pathlib.Path) -> Iterator[tuple[str, int, int]]:
    with tarfile.open(tar, "r:") as outer:
        for synset in outer:
            _check(synset, _SYNSET_TAR, tar)
            with tarfile.open(fileobj=outer.extractfile(synset), mode="r:") as inner:
                for image in inner:
                    _check(image, _TRAIN_MEMBER, tar)
                    yield image.name, synset.offset_data + image.offset_data, image.size


def _val_members(tar: pathlib.Path) -> Iterator[tuple[str, int, int]]:
    with tarfile.open(tar, "r:") as outer:
        for image in outer:
            _check(image, _VAL_MEMBER, tar)
            yield image.name, image.offset_data, image.size


def _check(member: tarfile.TarInfo, pattern: re.Pattern, tar: pathlib.Path) -> None:
    if not member.isreg() or not pattern.fullmatch(member.name):
        raise ConfigError(
            f"{tar} holds {member.name!r}, which is not a file named {pattern.pattern}; use the official tar"
        )


def _class_names(root: pathlib.Path, synsets: tuple[str, ...]) -> tuple[str, ...]:
    """English names if a list of them lies in `root`, else the synsets."""
    listed = next((root / name for name in _NAMES if (root / name).is_file()), None)
    if listed is None:
        return synsets
    words = dict(line.split(" ", 1) for line in listed.read_text().splitlines() if " " in line)
    return tuple(words.get(synset, synset) for synset in synsets)
