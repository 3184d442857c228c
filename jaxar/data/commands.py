"""What `python -m jaxar.data` does."""

import pathlib
from typing import Any

import numpy as np

from jaxar.config import ConfigError
from jaxar.data import augment, datasets, pictures
from jaxar.data.base import DataConfig, DataInfo

_PICTURES = 40


def prepare(config: DataConfig) -> dict[str, Any]:
    """Writes what the dataset needs on this machine (digits, an index of tar files) and opens every split.

    Returns:
      "dataset", "data_dir" and "splits", the number of examples of each.
    """
    info = datasets.info(config)
    for split in info.splits:
        datasets.open_split(config, split)[0]  # reading one shows that the files are there
    return {"dataset": info.name, "data_dir": str(config.directory), "splits": dict(info.splits)}


def inspect(config: DataConfig, out: pathlib.Path | None = None, split: str = "train") -> dict[str, Any]:
    """Facts about a dataset, and a grid of its pictures with their class names.

    Args:
      config: of the dataset, without cache if there is to be a picture.
      out: PNG file to write, None for none.
      split: what the grid shows, evenly spaced.
    Returns:
      The facts; "picture" is the file that was written.
    """
    info = datasets.info(config)
    if out is not None:
        _draw(config, info, out, split)
    return {
        "dataset": info.name,
        "splits": dict(info.splits),
        "image_shape": info.image.shape,
        "num_classes": info.num_classes,
        "class_names": info.class_names,
        "text": info.text,
        "captions": info.captions,
        "tokens": info.tokens,
        "picture": str(out) if out is not None else None,
    }


def _draw(config: DataConfig, info: DataInfo, out: pathlib.Path, split: str) -> None:
    if info.tokens is not None:
        raise ConfigError(
            f"--out={out} needs images and data.cache={config.cache!r} holds tokens; leave one of them out"
        )
    source = datasets.open_split(config, split)
    center = augment.Center(config)
    chosen = np.linspace(0, len(source) - 1, min(_PICTURES, len(source))).astype(int)
    examples = [center.map(source[int(index)]) for index in chosen]
    page = pictures.grid(
        np.stack([example["image"] for example in examples]),
        titles=[info.class_names[example["label"]] for example in examples],
        columns=min(8, len(examples)),
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        page.save(out)
    except (OSError, ValueError) as error:  # ValueError: Pillow knows no such suffix
        raise ConfigError(f"--out={out} cannot be written ({error}); give a path that ends in .png") from error
