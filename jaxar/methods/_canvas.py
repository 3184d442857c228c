"""What diffusion and flow matching share: maps of pixels or latents, time-dependent guidance, noise per sample."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.methods import _conditions as conditions
from jaxar.methods.base import Batch, Cond, Task
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Float, Int, Keys

Network = Callable[[Float[Array, "b h w c"], Array, Int[Array, "b"]], Float[Array, "b h w o"]]  # (x, time, labels)
Predict = Callable[[Float[Array, "b h w c"], Array], Float[Array, "b h w o"]]  # the same for given labels


@dataclasses.dataclass(frozen=True)
class Canvas:
    """The maps that a model draws.

    Attributes:
      shape: height, width, channels.
      latent: whether they are a tokenizer's latents, not pixels.
    """

    shape: tuple[int, int, int]
    latent: bool

    def read(self, batch: Batch) -> Float[Array, "b h w c"]:
        """The maps of a batch."""
        return batch["latents"].reshape(-1, *self.shape) if self.latent else batch["image"]

    def tokens(self, maps: Float[Array, "b h w c"]) -> Tokens:
        """The maps as what `Method.sample` returns; pixels stay images."""
        return Tokens(latents=maps.reshape(len(maps), -1, self.shape[-1]) if self.latent else maps)


def canvas(task: Task, method: str) -> Canvas:
    """Latents of continuous tokens where there are tokens, else pixels.

    Raises:
      ConfigError: tokens of another kind.
    """
    if task.tokens is None:
        return Canvas(task.image.shape, latent=False)
    tokens = task.continuous_tokens(method)
    return Canvas((*tokens.grid, tokens.channels), latent=True)


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Options of guided sampling.

    Attributes:
      guidance_scale: s in `uncond + s (cond - uncond)`; 1 computes no null half.
      guidance_interval: times [from, to] that are guided, 0 data and 1 noise; the others take the conditional output.
      guided_channels: only the first so many channels are guided, None for all. DiT's and SiT's published samples have
        3, of latents with four.
    """

    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guided_channels: int | None = None

    def __post_init__(self):
        start, stop = self.guidance_interval
        if not 0 <= start <= stop <= 1:
            raise ConfigError(f"sample.guidance_interval={self.guidance_interval} must satisfy 0 <= from <= to <= 1")
        if self.guided_channels is not None and self.guided_channels < 1:
            raise ConfigError(f"sample.guided_channels={self.guided_channels} must be at least 1; None guides all")


def guided(
    network: Network, cond: Cond, num_classes: int, options: Guidance, unit: float = 1.0, channels: int | None = None
) -> Predict:
    """The network for these conditions, guided.

    Args:
      unit: what `network` is told at the noisiest time.
      channels: how many of the output's may be guided, None for all; those behind them are variances.
    """
    if options.guidance_scale == 1:
        return lambda x, t: network(x, t, cond["label"])
    labels = conditions.doubled(cond, num_classes)["label"]
    start, stop = options.guidance_interval

    def predict(x: Array, t: Array) -> Array:
        outputs = network(jnp.concatenate([x, x]), jnp.concatenate([t, t]), labels)
        scale = jnp.where((t >= start * unit) & (t <= stop * unit), options.guidance_scale, 1.0)
        return guide(*jnp.split(outputs, 2), scale[:, None, None, None], options.guided_channels or channels)

    return predict


def guide(
    cond: Float[Array, "b h w o"], null: Float[Array, "b h w o"], scale: Array | float, channels: int | None
) -> Float[Array, "b h w o"]:
    """null + scale (cond - null) on the first `channels` channels (None: all), cond on the others."""
    steered = null + scale * (cond - null)
    if channels is None:
        return steered
    return jnp.where(jnp.arange(cond.shape[-1]) < channels, steered, cond)


def normal(keys: Keys, shape: tuple[int, ...], number: Int[Array, ""] | int) -> Float[Array, "b *n"]:
    """Noise from the key of each sample; another for each `number`."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape))(keys)


def check_order(order: int) -> None:
    """Refuses orders that `solvers.deis` has no table for."""
    if not 1 <= order <= 3:
        raise ConfigError(f"sample.order={order} must lie in 1..3")


def check_label_drop(rate: float) -> None:
    """Refuses a share outside [0, 1]."""
    if not 0 <= rate <= 1:
        raise ConfigError(f"method.label_drop={rate} must lie in [0, 1]")
