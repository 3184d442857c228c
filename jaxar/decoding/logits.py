"""From logits to ids: guidance, temperature, top-k, top-p, the draw. Nothing here sorts.

The order is guidance, temperature, top-k, top-p; each step works on what the one before left.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.typing import Array, Bool, Float, Int, Keys, typechecked


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The options that every sampler of discrete tokens shares.

    Attributes:
      guidance_scale: s in `uncond + s (cond - uncond)`; 1 is off and computes no null half.
      guidance_schedule: "constant", or "linear": from 1 at the first step to s at the last.
      guidance_interval: share of the steps, [start, stop), that is guided; the others take the conditional logits.
      temperature: divides the guided logits.
      top_k: keep this many of the largest logits, ties included; None for all.
      top_p: keep the most likely ids whose mass reaches this share, ties included; None for all.
      greedy: take the largest logit in place of a draw.
    """

    guidance_scale: float = 1.0
    guidance_schedule: Literal["constant", "linear"] = "constant"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False

    def __post_init__(self):
        start, stop = self.guidance_interval
        if not 0 <= start <= stop <= 1:
            raise ConfigError(f"sample.guidance_interval={self.guidance_interval} must satisfy 0 <= start <= stop <= 1")
        if self.temperature <= 0:
            raise ConfigError(f"sample.temperature={self.temperature} must be positive; greedy=True takes the argmax")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"sample.top_k={self.top_k} must be at least 1; None switches it off")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"sample.top_p={self.top_p} must lie in (0, 1]; None switches it off")


def guidance_scales(options: Sampling, num_steps: int) -> np.ndarray:
    """The guidance scale of each step, float32 [num_steps], known when a program is traced.

    The linear schedule is VAR's: s_k = 1 + (s - 1) k / (num_steps - 1); its published `cfg` is s - 1.
    """
    scales = np.full(num_steps, options.guidance_scale, np.float32)
    if options.guidance_schedule == "linear":
        scales = np.linspace(1.0, options.guidance_scale, num_steps, dtype=np.float32)
    start, stop = (round(share * num_steps) for share in options.guidance_interval)
    guided = (start <= np.arange(num_steps)) & (np.arange(num_steps) < stop)
    return np.where(guided, scales, np.float32(1.0))


def llamagen_interval(cfg_interval: int, num_tokens: int) -> tuple[float, float]:
    """The `guidance_interval` that LlamaGen spells `cfg_interval`: the first token and decode steps 0..cfg_interval.

    Args:
      cfg_interval: the number of the last guided decode step, -1 for all.
      num_tokens: length of the sequence.
    """
    return (0.0, 1.0 if cfg_interval < 0 else min((cfg_interval + 2) / num_tokens, 1.0))


def is_guided(scales: np.ndarray) -> bool:
    """Whether any step needs the null half."""
    return bool(np.any(scales != 1.0))


@typechecked
def guide(
    cond: Float[Array, "*b v"], uncond: Float[Array, "*b v"], scale: Float[Array, ""] | float
) -> Float[Array, "*b v"]:
    """uncond + scale (cond - uncond), written so that 1 gives the conditional logits to the last bit; 0 the null ones.

    Reference: Ho, Salimans, Classifier-Free Diffusion Guidance, 2022, Eq. 6 with scale = 1 + w.
    """
    return cond + (scale - 1) * (cond - uncond)


def guided_at(
    cond: Float[Array, "b n v"], uncond: Callable[[], Float[Array, "b n v"]], scales: np.ndarray
) -> Float[Array, "b n v"]:
    """`guide` for all positions at once, each with its own of the n scales; `uncond` is called if one needs it."""
    return cond + jnp.asarray(scales - 1)[:, None] * (cond - uncond()) if is_guided(scales) else cond


@typechecked
def keep_top_k(logits: Float[Array, "*b v"], k: int) -> Float[Array, "*b v"]:
    """-inf in place of all but the `k` largest logits; ties with the k-th are kept, and k >= v keeps all."""
    if k >= logits.shape[-1]:
        return logits
    kept = _fewest_largest(logits, lambda kept: jnp.sum(kept, axis=-1) >= k)
    return jnp.where(kept, logits, -jnp.inf)


@typechecked
def keep_top_p(logits: Float[Array, "*b v"], p: float) -> Float[Array, "*b v"]:
    """-inf in place of every id that is not needed to reach mass `p`, starting from the most likely.

    An id stays if the ids strictly more likely than it hold less than `p`: the best one always stays, ties stay
    together, and p = 1 keeps all.

    Reference: Holtzman et al., The Curious Case of Neural Text Degeneration, 2020, Eq. 2.
    """
    if p >= 1:
        return logits
    probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    kept = _fewest_largest(logits, lambda kept: jnp.sum(jnp.where(kept, probs, 0), axis=-1) >= p)
    return jnp.where(kept, logits, -jnp.inf)


_SIGN = np.uint32(1 << 31)


def _fewest_largest(
    logits: Float[Array, "*b v"], enough: Callable[[Bool[Array, "*b v"]], Bool[Array, "*b"]]
) -> Bool[Array, "*b v"]:
    """The smallest set of the form {logits >= x} that is `enough`, or all: 32 passes of bisection over the bits of x.

    `enough` must hold for larger sets if it holds for smaller ones. The set itself is what the loop carries: a
    comparison with x after the loop could see logits that the compiler computed anew and rounded differently, and
    then even the largest could miss the threshold.
    """
    ordered = _ordered(logits.astype(jnp.float32))

    def settle(i: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
        threshold, kept = state
        candidate = threshold | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        fewer = ordered >= candidate[..., None]
        good = enough(fewer)
        return jnp.where(good, candidate, threshold), jnp.where(good[..., None], fewer, kept)

    everything = jnp.zeros(logits.shape[:-1], jnp.uint32), jnp.ones(logits.shape, bool)
    return jax.lax.fori_loop(0, 32, settle, everything)[1]


def _ordered(x: Array) -> Array:
    """Unsigned integers in the order of the float32 values: negative numbers flipped, positive ones above them."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)  # one zero, not two
    return jnp.where(bits & _SIGN, ~bits, bits | _SIGN)


@typechecked
def filtered(logits: Float[Array, "*b v"], options: Sampling) -> Float[Array, "*b v"]:
    """Guided logits after temperature, top-k and top-p: the logarithm of the law that is drawn from, unnormalised."""
    logits = logits.astype(jnp.float32) / options.temperature
    if options.top_k is not None:
        logits = keep_top_k(logits, options.top_k)
    if options.top_p is not None:
        logits = keep_top_p(logits, options.top_p)
    return logits


@typechecked
def draw(
    logits: Float[Array, "b t v"], keys: Keys, positions: Int[Array, "*b t"], options: Sampling, exact: bool = False
) -> Int[Array, "b t"]:
    """One id per position, each from its own key.

    Args:
      logits: guided, not yet filtered.
      keys: one per sample; folded with the position, so that a draw depends on nothing else in the batch.
      positions: numbers of the tokens in their sequence, [t] or [b t].
      exact: right for rare ids too. By default Gumbel noise comes from 23 random bits and never exceeds 15.95, so ids
        that are less likely than about 1e-7 lose probability; with twice the bits this happens below 1e-14.
    """
    logits = filtered(logits, options)
    if options.greedy:
        return jnp.argmax(logits, axis=-1)
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
    positions = jnp.broadcast_to(positions, logits.shape[:2])
    categorical = functools.partial(jax.random.categorical, mode="high" if exact else "low")
    return jax.vmap(jax.vmap(categorical))(fold(keys, positions), logits)


@typechecked
def log_prob(logits: Float[Array, "*b v"], ids: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """Logarithm of the probability of each id under the softmax of its logits."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return jnp.take_along_axis(log_probs, ids[..., None], axis=-1)[..., 0]
