"""From the `data` section of a configuration to a dataset's config, facts and examples."""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from jaxar import lookup
from jaxar.config import ConfigError, parse, unknown
from jaxar.data import cache
from jaxar.data.base import DataConfig, DataInfo, Source

SPLITS = ("train", "test")
_NUM_CAPTIONS = 16


def names() -> tuple[str, ...]:
    """The datasets there are."""
    return lookup.names("jaxar.data.sources")


def configure(values: Mapping[str, Any], path: str = "data") -> DataConfig:
    """The config of the dataset called `values["name"]`.

    Raises:
      ConfigError: unknown dataset or key, ill-typed value.
    """
    if "name" not in values:
        raise ConfigError(f"{path}.name is missing; known datasets: {', '.join(names())}")
    return parse(_module(values["name"]).Config, values, path)


def info(config: DataConfig) -> DataInfo:
    """Facts about the dataset; prepares it if it can be prepared without the user.

    Raises:
      ConfigError: the data is missing, or a cache was made for another dataset or image size.
    """
    if config.cache is not None:
        return cache.info(config)
    found = _module(config.name).info(config)
    if config.text is None:
        return found
    source = _module(config.name).open(config, "test")
    examples = [source[index] for index in range(min(len(source), _NUM_CAPTIONS))]
    if "caption" not in examples[0]:
        raise ConfigError(f"data.text={config.text} needs captions and {config.name!r} has none; remove data.text")
    return dataclasses.replace(found, text=config.text, captions=tuple(e["caption"] for e in examples))


def open_split(config: DataConfig, split: str) -> Source:
    """The examples of "train" or "test": pre-encoded ones if `config.cache` is set.

    Raises:
      ConfigError: as `info`, and an unknown split.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if config.cache is not None:
        return cache.open_split(config, split)
    return _module(config.name).open(config, split)


def _module(name: str) -> ModuleType:
    return lookup.module("jaxar.data.sources", name, "dataset")
