"""How many tokens a masked decoder leaves masked after each of its steps: tables that are known before tracing.

A schedule gamma maps the share r of the steps that are done, in (0, 1], to the share of tokens that are still masked.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.typing import Array, Float, Int, typechecked

KNOWN = "cosine, linear, log, exp, or powX with a number X > 0 (pow2.5)"


def check(schedule: str, name: str) -> None:
    """Refuses a schedule that `masked_share` does not know.

    Args:
      name: of the option, for the message.
    Raises:
      ConfigError: neither one of the names nor "pow" with a positive number.
    """
    if schedule not in ("cosine", "linear", "log", "exp") and _exponent(schedule) is None:
        raise ConfigError(f"{name}={schedule!r} must be one of {KNOWN}")


def _exponent(schedule: str) -> float | None:
    try:
        value = float(schedule.removeprefix("pow")) if schedule.startswith("pow") else 0.0
    except ValueError:
        return None
    return value if 0 < value < np.inf else None


@typechecked
def masked_share(
    schedule: str, ratio: Float[np.ndarray | Array, "*k"], total: Float[np.ndarray | Array, "*#k"]
) -> Float[np.ndarray | Array, "*k"]:
    """gamma(ratio): cos(pi r / 2), 1 - r, 1 - r^X, -log2(r) / log2(total) or 1 - 2^(-log2(total) (1 - r)).

    Args:
      ratio: r in (0, 1], of NumPy or of JAX; the result is of its kind and precision.
      total: tokens masked at the start, which the last two depend on.
    Returns:
      Shares clipped to [1e-6, 1].

    Reference: Chang et al., MaskGIT: Masked Generative Image Transformer, 2022, Sec. 3.3. The last two are the
    published code's.
    """
    xp, dtype = (jnp if isinstance(ratio, jax.Array) else np), ratio.dtype.type
    total = xp.maximum(total, dtype(2))  # one token alone has no logarithm
    if schedule == "cosine":
        share = xp.cos(dtype(np.pi / 2) * ratio)
    elif schedule == "linear":
        share = 1 - ratio
    elif schedule == "log":
        share = -xp.log2(ratio) / xp.log2(total)
    elif schedule == "exp":
        share = 1 - xp.exp2(-xp.log2(total) * (1 - ratio))
    else:
        share = 1 - ratio ** dtype(_exponent(schedule))
    return xp.clip(share, dtype(1e-6), dtype(1))


@typechecked
def masked_counts(schedule: str, num_steps: int, num_tokens: int) -> Int[np.ndarray, "k n_plus_1"]:
    """MaskGIT's table: tokens still masked after step k (0-based) of a sample that began with n masked, at [k, n].

    The floor of n gamma((k + 1) / K) in float32, see `within_bounds`. Where this is a whole number on paper the floor
    depends on the rounding: of 256 at r = 2/3 of the cosine 127 are left, and `cosine_counts` leaves 128. For the same
    reason as many steps as tokens need not mean one token per step; `one_by_one` does.

    Args:
      num_steps: K, network calls.
      num_tokens: the largest n; a sample may begin with known tokens.
    """
    starts = np.arange(num_tokens + 1, dtype=np.float32)
    ratio = np.arange(1, num_steps + 1, dtype=np.float32) / np.float32(num_steps)
    share = masked_share(schedule, np.tile(ratio[:, None], num_tokens + 1), starts[None])
    return within_bounds(np.floor(starts * share))


@typechecked
def cosine_counts(num_steps: int, num_tokens: int) -> Int[np.ndarray, "k n_plus_1"]:
    """MAR's table, as of `masked_counts("cosine", ...)` but in float64, operation by operation as in its code."""
    share = np.cos(np.pi / 2 * np.arange(1, num_steps + 1) / num_steps)
    return within_bounds(np.floor(np.arange(num_tokens + 1) * share[:, None]))


@typechecked
def within_bounds(wanted: Float[np.ndarray, "k n_plus_1"]) -> Int[np.ndarray, "k n_plus_1"]:
    """A table from the counts that a schedule asks for: each step but the last decides one token and leaves one.

    m_k = max(1, min(m_(k-1) - 1, wanted_k)), and m_(K-1) = 0.

    Reference: the published code of MaskGIT and of MAR, which took it from there.
    """
    counts = np.zeros(wanted.shape, np.int32)
    previous = np.arange(wanted.shape[1])
    for k, target in enumerate(wanted[:-1]):
        counts[k] = np.minimum(previous, np.maximum(1, np.minimum(previous - 1, target)))
        previous = counts[k]
    return counts


@typechecked
def one_by_one(num_tokens: int) -> Int[np.ndarray, "k n_plus_1"]:
    """The table, as of `masked_counts`, that decides one token per step until none is left."""
    return np.maximum(np.arange(num_tokens + 1) - np.arange(1, num_tokens + 1)[:, None], 0).astype(np.int32)


def kept_counts(kept: tuple[int, ...]) -> Int[np.ndarray, "k n_plus_1"]:
    """The table, as of `masked_counts`, that decides the given numbers of tokens one after another.

    Args:
      kept: tokens that each step decides; together n. Samples that begin with fewer masked ones follow in proportion.
    """
    num_tokens = sum(kept)
    after = num_tokens - np.cumsum(kept)
    return (after[:, None] * np.arange(num_tokens + 1) // num_tokens).astype(np.int32)


class Segment(NamedTuple):
    """A piece of the decode loop and what is static in it.

    Attributes:
      stop: number of steps done after it.
      known: most tokens of a sample that are known before any of its steps.
      new: most tokens of a sample that one of its steps decides.
      fresh: most tokens of a sample that the step before one of its steps decided; at least 1.
      due: most tokens of a sample that are masked before one of its steps, or were before the step before.
    """

    stop: int
    known: int
    new: int
    fresh: int
    due: int


def unbounded(num_steps: int, num_tokens: int) -> Segment:
    """All steps, for rules that follow no table."""
    return Segment(num_steps, num_tokens, num_tokens, num_tokens, num_tokens)


def segments(counts: Int[np.ndarray, "k n_plus_1"], pieces: int, masked: int | None = None) -> tuple[Segment, ...]:
    """The steps cut into `pieces` of nearly equal length (fewer if there are fewer steps), with tight bounds.

    Args:
      counts: from `masked_counts`.
      masked: tokens masked at the start if that is the same number for all samples, None for any number.
    """
    num_steps, num_tokens = len(counts), counts.shape[1] - 1
    starts = np.arange(num_tokens + 1) if masked is None else np.array([masked])
    before = np.concatenate([starts[None], counts[:-1, starts]])
    known, new = (num_tokens - before).max(axis=1), (before - counts[:, starts]).max(axis=1)
    fresh = np.concatenate([[1], np.maximum(new[:-1], 1)])
    due = np.concatenate([[num_tokens], before[:-1].max(axis=1)])
    stops = [-(-num_steps * (i + 1) // pieces) for i in range(pieces)]
    result, begin = [], 0
    for stop in sorted(set(stops)):
        result.append(Segment(stop, *(int(bound[begin:stop].max()) for bound in (known, new, fresh, due))))
        begin = stop
    return tuple(result)
