"""Flow matching on straight paths: x_t = (1 - t) x + t noise, velocity noise - x, Euler steps from noise to data.

Reference: Lipman et al., Flow Matching for Generative Modeling, 2023; Liu et al., Flow Straight and Fast, 2023.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxar.typing import Array, Float, Int, typechecked

Velocity = Callable[[Float[Array, "b *n c"], Float[Array, "b"]], Float[Array, "b *n c"]]  # (x, t) -> velocity


@typechecked
def interpolate(
    x: Float[Array, "b *n c"], t: Float[Array, "b"], noise: Float[Array, "b *n c"]
) -> Float[Array, "b *n c"]:
    """The point at time t of the path from data (t = 0) to noise (t = 1)."""
    t = t.reshape(t.shape + (1,) * (x.ndim - 1))
    return (1 - t) * x + t * noise


@typechecked
def squared_error(
    x: Float[Array, "b *n c"], noise: Float[Array, "b *n c"], velocity: Float[Array, "b *n c"]
) -> Float[Array, "b"]:
    """Mean squared distance of a predicted velocity from noise - x."""
    return jnp.mean((velocity - (noise - x)) ** 2, axis=tuple(range(1, x.ndim)))


def sample(velocity: Velocity, start: Float[Array, "b *n c"], num_steps: int) -> Float[Array, "b *n c"]:
    """`num_steps` Euler steps of equal length from noise `start` at t = 1 to data at t = 0."""

    def advance(index: Int[Array, ""], x: Array) -> Array:
        t = jnp.full(start.shape[:1], 1 - index / num_steps)
        return x - velocity(x, t) / num_steps

    return jax.lax.fori_loop(0, num_steps, advance, start)
