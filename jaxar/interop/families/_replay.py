"""What ids were chosen by: guided logits of a finished sequence, and options in the official spelling."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.typing import Array, Float, Keys


def guided(cond: Float[Array, "b n v"], null: Float[Array, "b n v"], scales: np.ndarray) -> Float[Array, "b n v"]:
    """Guided logits of all tokens, each with its own scale [n]."""
    return jax.vmap(lg.guide, in_axes=(1, 1, 0), out_axes=1)(cond, null, jnp.asarray(scales))


def keys(count: int) -> Keys:
    """Keys of greedy samples, which draw nothing."""
    return jax.vmap(jax.random.key)(jnp.arange(count))


def require_greedy(draw: str) -> None:
    """Random draws of other libraries cannot be repeated."""
    if draw != "argmax":
        raise ConfigError(f"draw={draw!r} cannot be recomputed; only 'argmax' can")
