"""Optimizers, learning-rate schedules and the weight-decay mask."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxar.config import ConfigError, parse, unknown
from jaxar.methods.base import Method, PlayerSpec
from jaxar.typing import Array, Float, Int, Params


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the step, as a factor of the peak.

    Attributes:
      name: after a linear warm-up from `warmup_init`,
        "constant" stays at 1;
        "cosine" decays to `end` at the last step;
        "linear" stays flat for the share `flat` of the steps after warm-up, then decays linearly to `end` (VAR's "lin0"
        with flat=0.05);
        "infinite" stays at 1 until `anneal_start`, then decays to `end` over `anneal_steps` with 1 - sqrt; without
        `anneal_start` it never ends, and a run that starts from its checkpoint with
        `init_from.state=True` and `anneal_start` set is the anneal branch.
      warmup_steps: length of the warm-up; `warmup_init` and `end` are factors of the learning rate.
    """

    name: Literal["constant", "cosine", "linear", "infinite"] = "cosine"
    warmup_steps: int = 0
    warmup_init: float = 0.0
    flat: float = 0.05
    end: float = 0.0
    anneal_start: int | None = None
    anneal_steps: int = 0

    def __post_init__(self):
        if self.warmup_steps < 0:
            raise ConfigError(f"optim.schedule.warmup_steps={self.warmup_steps} must be at least 0")
        if not 0 <= self.warmup_init <= 1:
            raise ConfigError(
                f"optim.schedule.warmup_init={self.warmup_init} must lie in [0, 1], a factor of the learning rate"
            )
        if not 0 <= self.end <= 1:
            raise ConfigError(f"optim.schedule.end={self.end} must lie in [0, 1], a factor of the learning rate")
        if not 0 <= self.flat < 1:
            raise ConfigError(f"optim.schedule.flat={self.flat} must lie in [0, 1), a share of the steps after warm-up")
        if self.anneal_start is not None and (self.name != "infinite" or self.anneal_steps < 1):
            raise ConfigError(
                f"optim.schedule.anneal_start={self.anneal_start} needs name='infinite' and anneal_steps >= 1, "
                f"got name={self.name!r}, anneal_steps={self.anneal_steps}"
            )

    def __call__(self, step: Int[Array, ""], num_steps: int) -> Float[Array, ""]:
        """Factor at `step` (0-based) of a run of `num_steps`."""
        step = jnp.asarray(step, jnp.float32)
        warm = self.warmup_init + (1 - self.warmup_init) * step / max(self.warmup_steps, 1)
        passed = jnp.clip((step - self.warmup_steps) / max(num_steps - 1 - self.warmup_steps, 1), 0, 1)
        if self.name == "constant" or (self.name == "infinite" and self.anneal_start is None):
            after = jnp.ones(())
        elif self.name == "cosine":
            after = self.end + (1 - self.end) * 0.5 * (1 + jnp.cos(jnp.pi * passed))
        elif self.name == "linear":
            after = self.end + (1 - self.end) * jnp.minimum((1 - passed) / (1 - self.flat), 1)
        else:
            annealed = jnp.clip((step - self.anneal_start) / self.anneal_steps, 0, 1)
            after = self.end + (1 - self.end) * (1 - jnp.sqrt(annealed))
        return jnp.where(step < self.warmup_steps, warm, after)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The `optim` section; `optim.players.NAME` overrides single keys for one player.

    Attributes:
      clip_norm: global gradient norm above which gradients are scaled down, None for never.
      ema: decays of the exponential averages to keep, per update.
      spike: refuse an update whose gradient norm exceeds this multiple of the running mean, None for never.
        Non-finite losses and gradients are always refused.
      max_bad_steps: refused updates in a row that stop the run, once figures are logged (`train.log_every`).
    """

    name: Literal["adamw", "lion", "sgd"] = "adamw"
    learning_rate: float = 1e-4
    schedule: Schedule = Schedule()
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip_norm: float | None = 1.0
    ema: tuple[float, ...] = ()
    spike: float | None = None
    max_bad_steps: int = 20

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise ConfigError(f"optim.learning_rate={self.learning_rate} must be positive")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ConfigError(f"optim.clip_norm={self.clip_norm} must be positive; None switches clipping off")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optim.{name}={getattr(self, name)} must lie in [0, 1)")
        if self.eps <= 0:
            raise ConfigError(f"optim.eps={self.eps} must be positive")
        if self.weight_decay < 0:
            raise ConfigError(f"optim.weight_decay={self.weight_decay} must be at least 0, which switches decay off")
        if self.max_bad_steps < 1:
            raise ConfigError(f"optim.max_bad_steps={self.max_bad_steps} must be at least 1")
        for decay in self.ema:
            if not 0 < decay < 1:
                raise ConfigError(f"optim.ema={self.ema} must hold decays in (0, 1)")
        if self.spike is not None and self.spike <= 1:
            raise ConfigError(f"optim.spike={self.spike} must exceed 1; None switches the spike guard off")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """One player's optimizer: an optax transformation whose step size comes from the global step.

    The learning rate is a function of the step alone, not of the number of updates, so that refused updates and update
    ratios leave the schedule in place.
    """

    config: OptimConfig
    transform: optax.GradientTransformation
    num_steps: int

    @property
    def ema(self) -> tuple[float, ...]:
        return self.config.ema

    def init(self, params: Params) -> Any:
        return self.transform.init(params)

    def learning_rate(self, step: Int[Array, ""]) -> Float[Array, ""]:
        return self.config.learning_rate * self.config.schedule(step, self.num_steps)

    def update(self, grads: Params, opt_state: Any, params: Params, step: Int[Array, ""]) -> tuple[Params, Any]:
        """The change to add to `params`, and the new optimizer state."""
        direction, opt_state = self.transform.update(grads, opt_state, params)
        rate = self.learning_rate(step)
        return jax.tree.map(lambda d: (-rate * d).astype(d.dtype), direction), opt_state


def decay_mask(boxed: Params, spec: PlayerSpec) -> Params:
    """True where weight decay applies: at least two dimensions, and no `spec.no_decay` match.

    "layers" does not count: a scanned stack gives every parameter that leading axis. "head_dim" counts as one axis with
    the heads beside it. Otherwise biases and norms would decay.
    """

    def decays(path: Any, leaf: Any) -> bool:
        names = leaf.names if isinstance(leaf, nn.meta.AxisMetadata) else ()
        shape = leaf.unbox().shape if isinstance(leaf, nn.meta.AxisMetadata) else leaf.shape
        rank = len(shape) - ("layers" in names) - ("head_dim" in names)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return rank >= 2 and not any(re.search(pattern, name) for pattern in spec.no_decay)

    is_box = lambda x: isinstance(x, nn.meta.AxisMetadata)  # noqa: E731
    return jax.tree_util.tree_map_with_path(decays, boxed, is_leaf=is_box)


def build(section: Mapping[str, Any], method: Method, num_steps: int) -> dict[str, Optimizer]:
    """An optimizer per player.

    Args:
      section: the `optim` section, with optional `players` overrides.
      num_steps: length of the run, for schedules that end.
    Raises:
      ConfigError: unknown keys or players, values out of range.
    """
    players = method.players()
    for name in section.get("players") or {}:
        if name not in players:
            raise unknown("player in optim.players", name, players)
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    optimizers = {}
    for name, spec in players.items():
        config = configure(section, name)
        mask = decay_mask(shapes[name]["params"], spec)
        optimizers[name] = Optimizer(config, _transform(config, mask), num_steps)
    return optimizers


def configure(section: Mapping[str, Any], player: str) -> OptimConfig:
    """The `optim` section as it holds for one player."""
    base = {k: v for k, v in section.items() if k != "players"}
    return parse(OptimConfig, _merge(base, (section.get("players") or {}).get(player) or {}), "optim")


def _merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in override.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _transform(config: OptimConfig, mask: Params) -> optax.GradientTransformation:
    scale: Callable[[], optax.GradientTransformation] = {
        "adamw": lambda: optax.scale_by_adam(config.b1, config.b2, config.eps),
        "lion": lambda: optax.scale_by_lion(config.b1, config.b2),
        "sgd": lambda: optax.trace(config.b1) if config.b1 else optax.identity(),
    }[config.name]
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm is not None else []
    parts.append(scale())
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask))
    return optax.chain(*parts)
