"""The attention oracle: dense, in float32, written to be read. Every other implementation is tested against it."""

import jax.numpy as jnp

from jaxar.kernels.mask import DynamicRanges, MaskSpec
from jaxar.typing import Array, Float, typechecked


@typechecked
def reference(
    q: Float[Array, "b t h e"],
    k: Float[Array, "b s k e"],
    v: Float[Array, "b s k e"],
    mask: MaskSpec,
    dynamic: DynamicRanges | None,
    scale: float,
) -> Float[Array, "b t h e"]:
    """Softmax attention over the keys that `mask` and `dynamic` both allow; see `attention.attention`.

    Head h reads key/value head h // (heads / kv_heads). A query without keys gives zeros, with zero gradients.
    """
    groups, dtype = q.shape[2] // k.shape[2], q.dtype
    q, k, v = (x.astype(jnp.float32) for x in (q, jnp.repeat(k, groups, axis=2), jnp.repeat(v, groups, axis=2)))
    allowed = jnp.asarray(mask.dense())
    if dynamic is not None:
        allowed &= dynamic.dense(k.shape[1])
    allowed = jnp.broadcast_to(allowed, (q.shape[0], *mask.dense().shape))[:, None]
    logits = scale * jnp.einsum("bthe,bshe->bhts", q, k, precision="highest")
    peak = jnp.max(logits, axis=-1, keepdims=True, where=allowed, initial=-1e30)
    weights = jnp.where(allowed, jnp.exp(jnp.where(allowed, logits - peak, 0)), 0)
    total = weights.sum(-1, keepdims=True)
    probabilities = weights / jnp.where(total > 0, total, 1)
    return jnp.einsum("bhts,bshe->bthe", probabilities, v, precision="highest").astype(dtype)
