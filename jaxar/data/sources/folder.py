"""Your own pictures: a folder with one folder per class (`--root=FOLDER`), whole or split into train and test."""

import dataclasses
import functools
import hashlib
import os
import pathlib

from jaxar.config import ConfigError
from jaxar.data import images
from jaxar.data.base import DataConfig, DataInfo, Example, Source
from jaxar.tokenizers.base import ImageSpec

Classes = dict[str, list[pathlib.Path]]  # files by class name
Files = list[tuple[pathlib.Path, int]]  # files with their labels

_TEST_FOLDERS = ("test", "val", "validation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
    """A folder of class folders.

    Attributes:
      root: holds a folder per class, or "train" and "test" (or "val") that hold them; class names are folder names.
      test_fraction: share of each class that is held out where `root` has no folder for testing; which files these are
        depends on their names alone.
      channels: 3 for colour, 1 for grey.
    """

    name: str = "folder"
    image_size: int = 64
    root: str
    test_fraction: float = 0.1
    channels: int = 3

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.test_fraction < 1:
            raise ConfigError(f"data.test_fraction={self.test_fraction} must lie in (0, 1)")
        if self.channels not in (1, 3):
            raise ConfigError(f"data.channels={self.channels} must be 3 (colour) or 1 (grey)")


def info(config: Config) -> DataInfo:
    classes, splits = _index(pathlib.Path(config.root).expanduser(), config.test_fraction)
    return DataInfo(
        name=pathlib.Path(config.root).expanduser().resolve().name,
        image=ImageSpec(config.image_size, config.channels),
        num_classes=len(classes),
        class_names=classes,
        splits={split: len(files) for split, files in splits.items()},
    )


def open(config: Config, split: str) -> Source:
    _, splits = _index(pathlib.Path(config.root).expanduser(), config.test_fraction)
    return Pictures(splits[split], config.channels)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Image files with their labels, decoded as they are read."""

    files: Files
    channels: int = 3

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        path, label = self.files[index]
        return {"image": images.decode(path.read_bytes(), self.channels, str(path)), "label": label}


def read_classes(root: pathlib.Path) -> Classes:
    """Image files of each class folder, both sorted by name.

    Raises:
      ConfigError: no folder, or no images in it.
    """
    if not root.is_dir():
        raise ConfigError(f"data.root={str(root)!r} is not a folder; give one with a folder of images per class")
    classes = {}
    for folder in sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != "."):
        names = sorted(
            entry.name for entry in os.scandir(root / folder) if entry.name.lower().endswith(images.SUFFIXES)
        )
        if names:
            classes[folder] = [root / folder / name for name in names]
    if not classes:
        raise ConfigError(
            f"data.root={str(root)!r} has no class folders with images ({', '.join(images.SUFFIXES)}); "
            "put each class into a folder of its own"
        )
    return classes


@functools.lru_cache(maxsize=4)
def _index(root: pathlib.Path, test_fraction: float) -> tuple[tuple[str, ...], dict[str, Files]]:
    """Class names, and the labelled files of each split."""
    train_folder = root / "train"
    if not train_folder.is_dir() or not any(entry.is_dir() for entry in os.scandir(train_folder)):
        train, test = _hold_out(read_classes(root), test_fraction)
    else:
        train = read_classes(train_folder)
        given = next((root / name for name in _TEST_FOLDERS if (root / name).is_dir()), None)
        train, test = _hold_out(train, test_fraction) if given is None else (train, read_classes(given))
    unseen = sorted(set(test) - set(train))
    if unseen:
        raise ConfigError(f"data.root={str(root)!r} has test images of class {unseen[0]!r}, but none for training")
    labels = {name: label for label, name in enumerate(train)}
    return tuple(train), {"train": label_files(train, labels), "test": label_files(test, labels)}


def label_files(classes: Classes, labels: dict[str, int]) -> Files:
    return [(path, labels[name]) for name, paths in classes.items() for path in paths]


def _hold_out(classes: Classes, fraction: float) -> tuple[Classes, Classes]:
    """Moves a share of each class, chosen by hashing the names, into a second set; one image at least stays behind."""
    train, test = {}, {}
    for name, paths in classes.items():
        by_hash = sorted(paths, key=lambda path: hashlib.sha256(f"{path.parent.name}/{path.name}".encode()).digest())
        held = set(by_hash[: min(max(round(fraction * len(paths)), 1), len(paths) - 1)])
        train[name] = [path for path in paths if path not in held]
        test[name] = [path for path in paths if path in held]
    return train, test
