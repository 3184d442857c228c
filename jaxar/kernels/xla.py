"""Attention in plain jnp: one masked call, and the cut of a static mask into unmasked ones."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxar.kernels.mask import DynamicRanges, MaskSpec
from jaxar.typing import Array, Bool, Float, typechecked

# Runs of fewer queries are computed together under a mask: below it, the calls cost more than the masked work saves.
MASKED_QUERIES = 160
# A run whose keys follow its queries (causal, window) is cut in at most so many pieces, for the compiler's sake.
MAX_PIECES = 8


@typechecked
def masked(
    q: Float[Array, "b t h e"],
    k: Float[Array, "b s k e"],
    v: Float[Array, "b s k e"],
    mask: MaskSpec,
    dynamic: DynamicRanges | None,
    scale: float,
) -> Float[Array, "b t h e"]:
    """One call over all keys; what is masked is computed and dropped. A full mask costs nothing."""
    b, t, h, e = q.shape
    s, kv_heads = k.shape[1:3]
    grouped = q.reshape(b, t, kv_heads, h // kv_heads, e)
    logits = scale * jnp.einsum("btkge,bske->bkgts", grouped, k, preferred_element_type=jnp.float32)
    probabilities = _softmax(logits, _allowed(mask, dynamic, s)).astype(v.dtype)
    out = jnp.einsum("bkgts,bske->btkge", probabilities, v, preferred_element_type=jnp.float32)
    return out.reshape(q.shape).astype(q.dtype)


@typechecked
def sliced(
    q: Float[Array, "b t h e"],
    k: Float[Array, "b s k e"],
    v: Float[Array, "b s k e"],
    mask: MaskSpec,
    scale: float,
    piece: Callable[..., Array] = masked,
) -> Float[Array, "b t h e"]:
    """Cuts the queries where the mask changes, and gives each piece only the keys that it attends.

    For next-scale masks this is one masked call for the small leading scales and an unmasked call per later scale,
    which is exact and needs no kernel of its own.

    Args:
      q, k, v, mask, scale: see `attention.attention`.
      piece: (q, k, v, mask, None, scale) -> out, computes one piece.
    """
    outs = []
    for start, stop in pieces(mask):
        spans, part = mask.rows(start, stop - start).used_keys()
        rows = q[:, start:stop]
        if part is None:
            outs.append(jnp.zeros_like(rows))
        else:
            outs.append(piece(rows, _take(k, spans), _take(v, spans), part, None, scale))
    return jnp.concatenate(outs, axis=1) if len(outs) > 1 else outs[0]


def pieces(mask: MaskSpec) -> list[tuple[int, int]]:
    """How `sliced` cuts the queries: runs of the mask, small neighbours together, long causal runs in several."""
    cuts: list[tuple[int, int]] = []
    for run in mask.runs:
        length = run.stop - run.start
        follows = any(edge.follows for keys in run.keys for edge in keys)
        size = max(MASKED_QUERIES, -(-length // MAX_PIECES)) if follows else length
        for start in range(run.start, run.stop, size):
            stop = min(start + size, run.stop)
            if cuts and stop - cuts[-1][0] <= MASKED_QUERIES:
                start = cuts.pop()[0]
            cuts.append((start, stop))
    return cuts


def _take(x: Array, spans: tuple[tuple[int, int], ...]) -> Array:
    parts = [x[:, start:stop] for start, stop in spans]
    return jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def _allowed(mask: MaskSpec, dynamic: DynamicRanges | None, kv_len: int) -> Bool[Array, "*b 1 1 t s"] | None:
    """The mask from comparisons of indices, which the compiler fuses; None where nothing is masked."""
    if mask.is_full and dynamic is None:
        return None
    if dynamic is None:
        ranges = mask.rows_at(0, mask.num_queries)
    else:
        ranges = dynamic if mask.is_full else dynamic & mask
    return ranges.dense(kv_len)[..., None, None, :, :]


def _softmax(logits: Float[Array, "b k g t s"], allowed: Bool[Array, "*b 1 1 t s"] | None) -> Array:
    """Softmax over allowed keys; rows without any are zero, and so are their gradients."""
    if allowed is None:
        return jax.nn.softmax(logits)
    lowest = jnp.finfo(logits.dtype).min
    peak = jax.lax.stop_gradient(jnp.max(jnp.where(allowed, logits, lowest), axis=-1, keepdims=True))
    # The difference is masked before exp, so that no overflow outside the mask turns into 0 * inf in the gradient.
    weights = jnp.where(allowed, jnp.exp(jnp.where(allowed, logits - peak, 0)), 0)
    total = weights.sum(-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1)
