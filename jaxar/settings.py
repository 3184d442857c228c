"""What a configuration says, as frozen dataclasses, and the method that it describes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from jaxar import lookup, partition
from jaxar.checkpoints import Retention
from jaxar.config import ConfigError, parse, unknown
from jaxar.methods.base import Method, Task, TextSpec
from jaxar.partition import MeshConfig
from jaxar.tokenizers.base import ImageSpec, TokenSpec
from jaxar.tokenizers.base import build as build_tokenizer

SECTIONS = (
    "data",
    "tokenizer",
    "teacher",
    "init_from",
    "model",
    "method",
    "optim",
    "mesh",
    "train",
    "sample",
    "eval",
)


MAX_SEED = 2**31 - 1  # seeds travel as int32


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The `train` section. `batch_size` is global: the result does not depend on the number of hosts."""

    num_steps: int
    batch_size: int
    seed: int = 0
    accumulate: int = 1
    log_every: int = 50
    checkpoint_every: int = 1000
    keep: Retention = Retention()  # noqa: RUF009 - frozen

    def __post_init__(self):
        for name in ("num_steps", "batch_size", "accumulate", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"train.seed={self.seed} must lie in 0..{MAX_SEED}")
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"train.batch_size={self.batch_size} is not divisible by train.accumulate={self.accumulate}"
            )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The `eval` section: what is measured while training and which weights are used for it.

    Attributes:
      every: steps between validation passes over the test split, None for never.
      max_batches: batches of one validation pass, None for the whole split.
      sample_every: steps between sampled evaluations (grid, and the distance to `reference`), None for never.
      num_samples: samples of one sampled evaluation; `grid`: how many of them are drawn.
      reference: a reference that `jaxar.evaluate` knows ("digits"), None for grids only.
      ema: the average that validation, sampling and children use ("0.999"); None for the raw weights.
    """

    every: int | None = None
    batch_size: int = 256
    max_batches: int | None = None
    sample_every: int | None = None
    num_samples: int = 360
    grid: int = 40
    reference: str | None = None
    ema: str | None = None

    def __post_init__(self):
        off = {"every": "None turns it off", "sample_every": "None turns it off", "max_batches": "None takes them all"}
        for name in ("every", "batch_size", "max_batches", "sample_every", "num_samples", "grid"):
            value = getattr(self, name)
            if value is None or value >= 1:
                continue
            way_out = f"; {off[name]}" if name in off else ""
            raise ConfigError(f"eval.{name}={value} must be at least 1{way_out}")


@dataclasses.dataclass(frozen=True)
class Parent:
    """Another run to build on. `ema`: which average (None: what that run's `eval.ema` says; "raw": none); `step`: which
    checkpoint (None: the best one if that run kept one by metric, else the newest)."""

    from_: str
    ema: str | None = None
    step: int | None = None


@dataclasses.dataclass(frozen=True)
class InitFrom(Parent):
    """Where weights start. With `state`, step and optimizer state are taken over too (an anneal branch)."""

    state: bool = False


def check_sections(config: Mapping[str, Any]) -> None:
    """Refuses unknown sections, values in place of sections, and a configuration without a method."""
    for name, section in config.items():
        if name not in SECTIONS:
            raise unknown("section", name, SECTIONS)
        if not isinstance(section, Mapping | None):
            raise ConfigError(f"{name}={section!r} must be a section; write {{}} for an empty one")
    if "name" not in (config.get("method") or {}):
        raise ConfigError(f"method.name is missing; it must be one of {', '.join(lookup.names('jaxar.methods'))}")


def build_task(described: Mapping[str, Any]) -> Task:
    """The `Task` that a `task.json` describes."""
    image = ImageSpec(**described["image"])
    tokenizer = described.get("tokenizer")
    built = build_tokenizer(tokenizer["name"], tokenizer["options"], image) if tokenizer else None
    tokens = described.get("tokens")
    teacher = described.get("teacher")
    return Task(
        image=image,
        num_classes=described["num_classes"],
        tokens=built.spec if built else (parse(TokenSpec, tokens, "tokens") if tokens else None),
        tokenizer=built,
        text=TextSpec(**described["text"]) if described.get("text") else None,
        teacher=build_method(teacher["config"], build_task(teacher["task"])) if teacher else None,
    )


def build_method(config: Mapping[str, Any], task: Task) -> Method:
    """The method that a configuration names.

    Raises:
      ConfigError: unknown method, unknown or ill-typed keys, relations that the method refuses.
    """
    check_sections(config)
    name, options = _named(config["method"])
    module = lookup.module("jaxar.methods", name, "method")
    method = parse(module.Config, options, "method")
    return module.build(method, parse(module.Model, config.get("model") or {}, "model"), task)


def build_sampling(config: Mapping[str, Any], overrides: Mapping[str, Any] = {}) -> Any:
    """The method's `Sampling` options from the `sample` section, None for a method that does not sample."""
    cls, section = sampling_class(config), {**(config.get("sample") or {}), **overrides}
    if cls is not None:
        return parse(cls, section, "sample")
    if section:
        raise ConfigError(
            f"sample={section} is set, but method {config['method']['name']!r} does not sample; remove it"
        )
    return None


def sampling_class(config: Mapping[str, Any]) -> type | None:
    """The class of the sampling options of the configured method."""
    return lookup.module("jaxar.methods", config["method"]["name"], "method").Sampling


def _named(section: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return section["name"], {k: v for k, v in section.items() if k != "name"}


def mesh_of(config: Mapping[str, Any]) -> Mesh:
    """The mesh that the `mesh` section asks for, over all devices."""
    return partition.make_mesh(parse(MeshConfig, config.get("mesh") or {}, "mesh"))
