"""Points drawn from a mixture of Gaussians, as tiny float images: data whose law is known (see `methods.analytic`)."""

import dataclasses

import numpy as np

from jaxar.config import ConfigError
from jaxar.data.base import DataConfig, DataInfo, Example
from jaxar.diffusion import mixtures
from jaxar.tokenizers.base import ImageSpec

_SEEDS = {"train": 0, "test": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
    """Points.

    Attributes:
      law: what is drawn from; a point has image_size * image_size * channels entries.
      num_classes: all are equally frequent.
      count: training examples; a tenth as many test examples.
    """

    name: str = "points"
    image_size: int = 1
    channels: int = 1
    law: mixtures.Mixture = mixtures.Mixture()  # noqa: RUF009 - frozen
    num_classes: int = 1
    count: int = 50_000

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("channels", 1), ("num_classes", 1), ("count", 10)):
            if getattr(self, name) < least:
                raise ConfigError(f"data.{name}={getattr(self, name)} must be at least {least}")

    @property
    def components(self) -> mixtures.Components:
        return self.law.components(self.image_size**2 * self.channels, self.num_classes)


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """The examples of one split: example i is drawn by a generator of its own."""

    config: Config
    law: mixtures.Components
    split: str

    def __len__(self) -> int:
        return _counts(self.config)[self.split]

    def __getitem__(self, index: int) -> Example:
        size, label = self.config.image_size, int(index) % self.config.num_classes
        point = mixtures.draw(self.law, label, np.random.default_rng((_SEEDS[self.split], int(index))))
        return {"image": point.reshape(size, size, -1), "label": label}


def info(config: Config) -> DataInfo:
    _ = config.components  # refuses a law that does not fit
    return DataInfo(
        name="points",
        image=ImageSpec(config.image_size, config.channels),
        num_classes=config.num_classes,
        class_names=tuple(map(str, range(config.num_classes))),
        splits=_counts(config),
    )


def open(config: Config, split: str) -> Points:
    return Points(config, config.components, split)


def _counts(config: Config) -> dict[str, int]:
    return {"train": config.count, "test": config.count // 10}
