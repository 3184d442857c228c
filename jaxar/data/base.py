"""What every dataset is: a source of examples with random access, described by a static `DataInfo`.

A file in `jaxar/data/sources/` is a dataset; its name is the name used in configurations. It holds

* `Config`, a subclass of `DataConfig` with the keys and defaults of this dataset;
* `info(config) -> DataInfo`;
* `open(config, split) -> Source`.

Split names are "train" and "test" everywhere.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from jaxar.config import ConfigError
from jaxar.methods.base import TextSpec
from jaxar.tokenizers.base import ImageSpec, TokenSpec

Example = dict[str, Any]
Variants = Literal["image", "flip", "ten_crop"]  # what a token cache stores of each image, see `augment.variants`


class Source(Protocol):
    """Random access to the examples of one split; safe to read from several threads.

    An example holds "label" (int) and either "image" (uint8 [h w c], any size) with an optional "caption" (str), or
    pre-encoded tokens as `jaxar.data.cache` stores them. "micro" (float32 [m]), micro-conditions, reaches batches too.
    An image may also be float32, of the size that batches have; its values are used as they are.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The `data` section; a dataset's own `Config` adds keys and changes defaults.

    Attributes:
      image_size: side of the images that batches hold; the centre crop brings every image to it.
      crop: how training images are cut: "center"; "random" scales the shorter side so that the crop is a share of it
        drawn from `crop_scale` and cuts anywhere (ADM's augmentation); "resized" cuts a share of the area drawn from
        `crop_scale` with an aspect ratio in [3/4, 4/3]. Evaluation always takes the centre.
      crop_scale: smallest and largest share that a random crop keeps.
      flip: mirror half of the training images.
      shift: largest shift of training images in pixels, vacated pixels are black.
      text: hashed features of the captions, for datasets that have captions; None for no text.
      cache: folder that `python -m jaxar.encode` or `python -m jaxar.pairs` wrote; batches then hold its tokens instead
        of images.
      data_dir: where prepared data and indices are kept; default: $JAXAR_DATA_DIR, else ~/.cache/jaxar.
      num_threads: batches that are prepared in parallel.
    """

    name: str
    image_size: int
    crop: Literal["center", "random", "resized"] = "center"
    crop_scale: tuple[float, float] = (0.8, 1.0)
    flip: bool = False
    shift: int = 0
    text: TextSpec | None = None
    cache: str | None = None
    data_dir: str | None = None
    num_threads: int = 4

    def __post_init__(self):
        if self.image_size < 1:
            raise ConfigError(f"data.image_size={self.image_size} must be at least 1")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ConfigError(f"data.crop_scale={self.crop_scale} must be (smallest, largest) with 0 < both <= 1")
        if not 0 <= self.shift < self.image_size:
            raise ConfigError(f"data.shift={self.shift} must be in [0, image_size={self.image_size})")
        if self.num_threads < 1:
            raise ConfigError(f"data.num_threads={self.num_threads} must be at least 1")
        if self.cache is not None and (self.text is not None or self.shift or self.crop != "center"):
            raise ConfigError(
                f"data.cache={self.cache!r} fixes crop, shift and text when it is written; remove data.crop, "
                "data.shift and data.text, or the cache"
            )

    @property
    def directory(self) -> pathlib.Path:
        """`data_dir` with its default, absolute."""
        path = self.data_dir or os.environ.get("JAXAR_DATA_DIR") or "~/.cache/jaxar"
        return pathlib.Path(path).expanduser().absolute()


def make_folder(path: pathlib.Path, field: str) -> pathlib.Path:
    """Makes a folder with its parents; `field` is what the user set to choose it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{field}: {path} cannot be made ({error.strerror}); choose a folder you can write"
        ) from error
    return path


@dataclasses.dataclass(frozen=True)
class PairOrigin:
    """What made stored pairs: the teacher's fingerprint, the options (`Method.pair_law`) and the seed of the noise."""

    teacher: str
    law: str
    seed: int


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What models and samplers need to know about a dataset.

    Attributes:
      image: size and channels of the images.
      num_classes: labels are 0..num_classes-1.
      class_names: one per label.
      splits: number of examples of "train" and "test".
      text: shape of the text features in the batches, None without text.
      captions: a few captions as examples, () without text.
      tokens: the tokens in the batches if the data is pre-encoded, else None.
      tokenizer: fingerprint of the tokenizer that encoded them, else None.
      pairs: what made the pairs if the tokens are a teacher's, else None.
    """

    name: str
    image: ImageSpec
    num_classes: int
    class_names: tuple[str, ...]
    splits: Mapping[str, int]
    text: TextSpec | None = None
    captions: tuple[str, ...] = ()
    tokens: TokenSpec | None = None
    tokenizer: str | None = None
    pairs: PairOrigin | None = None
