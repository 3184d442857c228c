"""Any TFDS dataset that is prepared on this machine as array_record (`--dataset=mnist`); needs no tensorflow."""

import dataclasses
import pathlib
import re

from jaxar.config import ConfigError
from jaxar.data import images
from jaxar.data.base import DataConfig, DataInfo, Example, Source
from jaxar.tokenizers.base import ImageSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
    """A prepared TFDS dataset.

    Attributes:
      dataset: name below `data_dir`, with configuration or version if there are several: "cifar10",
        "imagenet_resized/64x64", "cifar10/3.0.2".
      train_split, test_split: TFDS splits that serve as "train" and "test"; slices such as "train[95%:]" work.
      image_key, label_key: features to use; the label must be a ClassLabel.
      caption_key: a text feature, None without captions.
      in_memory: decode a split once and keep it in memory, for small images.
    """

    name: str = "tfds"
    image_size: int = 32
    dataset: str
    train_split: str = "train"
    test_split: str = "test"
    image_key: str = "image"
    label_key: str = "label"
    caption_key: str | None = None
    in_memory: bool = False


def info(config: Config) -> DataInfo:
    builder = _builder(config)
    image = _feature(builder, config.image_key, "image_key", "Image")
    label = _feature(builder, config.label_key, "label_key", "ClassLabel")
    return DataInfo(
        name=config.dataset,
        image=ImageSpec(config.image_size, _channels(image)),
        num_classes=label.num_classes,
        class_names=tuple(label.names),
        splits={split: len(_reader(config, split)) for split in ("train", "test")},
    )


def open(config: Config, split: str) -> Source:
    source = _TfdsSource(config, split)
    return InMemory(source) if config.in_memory else source


class _TfdsSource:
    """Decodes examples as they are read."""

    def __init__(self, config: Config, split: str):
        self._config = config
        self._reader = _reader(config, split)
        self._channels = info(config).image.channels

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> Example:
        record = self._reader[int(index)]
        origin = f"example {index} of data.dataset={self._config.dataset!r}"
        image = images.decode(record[self._config.image_key], self._channels, origin)
        example = {"image": image, "label": int(record[self._config.label_key])}
        if self._config.caption_key is not None:
            example["caption"] = record[self._config.caption_key].decode()
        return example


class InMemory:
    """All examples of a source, decoded once."""

    def __init__(self, source: Source):
        self._examples = [source[index] for index in range(len(source))]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]


def _reader(config: Config, split: str):
    import tensorflow_datasets

    name = {"train": config.train_split, "test": config.test_split}[split]
    builder = _builder(config)
    try:
        # TFDS decodes with OpenCV where it is installed, with other results than Pillow.
        skip = tensorflow_datasets.decode.SkipDecoding()
        return builder.as_data_source(split=name, decoders={config.image_key: skip})
    except (ValueError, KeyError) as error:
        known = ", ".join(builder.info.splits)
        raise ConfigError(
            f"data.{split}_split={name!r} is not a split of {config.dataset!r}; it has {known}, or a slice of these"
        ) from error


def _builder(config: Config):
    import tensorflow_datasets

    folder = _version_folder(config.directory, config.dataset)
    builder = tensorflow_datasets.builder_from_directory(folder)
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise ConfigError(
            f"data.dataset={config.dataset!r} in {folder} is stored as {file_format}, which needs tensorflow; prepare "
            'it again with file_format="array_record"'
        )
    return builder


def _version_folder(root: pathlib.Path, dataset: str) -> pathlib.Path:
    """The folder of the newest version of `dataset`, which may name the version itself."""
    base = (root / dataset).resolve()
    if not base.is_relative_to(root.resolve()):
        raise ConfigError(f"data.dataset={dataset!r} leaves data_dir={root}; give a name below it")
    if (base / "dataset_info.json").is_file():
        return base
    versions = [p.parent for p in base.glob("*/dataset_info.json") if re.fullmatch(r"\d+\.\d+\.\d+", p.parent.name)]
    if not versions:
        raise ConfigError(
            f"data.dataset={dataset!r} is not prepared below data_dir={root} (no {dataset}/VERSION/dataset_info.json); "
            "set data.data_dir, or prepare it with TFDS and file_format='array_record'"
        )
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))


def _feature(builder, key: str, field: str, kind: str):
    features = builder.info.features
    if key not in features or type(features[key]).__name__ != kind:
        known = [name for name, feature in features.items() if type(feature).__name__ == kind]
        raise ConfigError(f"data.{field}={key!r} is no {kind} feature of {builder.name!r}; it has {known or 'none'}")
    return features[key]


def _channels(image) -> int:
    channels = image.shape[-1] or 3
    if channels not in (1, 3):
        raise ConfigError(f"images of {channels} channels; only grey and RGB datasets are supported")
    return channels
