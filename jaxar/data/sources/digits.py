"""1,797 handwritten digits, 8x8 grey pixels, 10 classes; ships with scikit-learn."""

import contextlib
import dataclasses
import functools
import io
import os
import pathlib
import tempfile

from jaxar.data.base import DataConfig, DataInfo, Source, make_folder
from jaxar.data.sources import tfds

_FOLDER = "digits/1.0.0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
    """Digits; an `image_size` above 8 enlarges them."""

    name: str = "digits"
    image_size: int = 8


def info(config: Config) -> DataInfo:
    return dataclasses.replace(tfds.info(_stored(config)), name="digits")


def open(config: Config, split: str) -> Source:
    return _in_memory(_stored(config), split)


@functools.lru_cache(maxsize=8)
def _in_memory(stored: tfds.Config, split: str) -> Source:
    return tfds.open(stored, split)


def _stored(config: Config) -> tfds.Config:
    """The TFDS dataset that holds the digits, written on first use."""
    if not (config.directory / _FOLDER / "dataset_info.json").is_file():
        _prepare(config.directory)
    return tfds.Config(dataset=_FOLDER, image_size=config.image_size, data_dir=str(config.directory), in_memory=True)


def _prepare(root: pathlib.Path) -> None:
    """Writes the dataset in a scratch folder and moves it into place: several processes may do so at once."""
    import tensorflow_datasets

    from jaxar.data.sources._digits_builder import Digits

    tensorflow_datasets.disable_progress_bar()
    target = root / _FOLDER
    make_folder(target.parent, "data.data_dir")
    with tempfile.TemporaryDirectory(dir=root, prefix=".digits-") as scratch:
        builder = Digits(data_dir=scratch, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download that does not happen
            builder.download_and_prepare()
        try:
            os.rename(builder.data_dir, target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster
                raise
