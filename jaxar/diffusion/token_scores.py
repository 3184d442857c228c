"""Distillation of scores, token by token: what a generator and the denoiser of its own law minimise.

Tokens q [b n e] are looked at on the straight path x = (1 - t) q + t noise, each at m times of its own. A denoiser is a
function D(x, t) = E[q_i | x_i = x, what precedes token i]: what precedes is fixed before, so that gradients pass
through x alone. D_T is the teacher's, D_S that of the generator's law, which learns by velocity matching:

    score loss = |v_S(x, t) - (noise - q)|^2,    D_S = x - t v_S

    generator's loss = w (D_T - D_S) . [(D_T - q) - alpha (D_T - D_S)]    ("fisher": a bound on a Fisher divergence)
                     = w stopped(D_S - D_T) . q                          ("kl": its gradient is that of a divergence)

with w = 1 / mean |q - D_T| of the sample, without gradient. In the first form gradients flow through q and through x
into both denoisers.

Reference: Zhou et al., Score identity Distillation: Exponentially Fast Distillation of Pretrained Diffusion Models for
One-Step Generation, 2024, Eq. 23; Liu et al., Autoregressive Diffusion Transformer for Text-to-Speech Synthesis, 2024.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxar.typing import Array, Float, Key, typechecked

# (x, t) -> D(x, t)
Denoise = Callable[[Float[Array, "m b n e"], Float[Array, "m b n"]], Float[Array, "m b n e"]]
Divergence = Literal["fisher", "kl"]
_TINY = 1e-5


class Draws(NamedTuple):
    """Times t [m b n] and normal noise [m b n e], independent for each token."""

    t: Float[Array, "m b n"]
    noise: Float[Array, "m b n e"]


def draw(key: Key, count: int, shape: tuple[int, int, int], times: tuple[float, float]) -> Draws:
    """Draws `count` (m) times between `times`, and noise, for each token of values of this shape (b, n, e)."""
    time_key, noise_key = jax.random.split(key)
    t = jax.random.uniform(time_key, (count, *shape[:2]), minval=times[0], maxval=times[1])
    return Draws(t, jax.random.normal(noise_key, (count, *shape)))


@typechecked
def noised(values: Float[Array, "*b n e"], draws: Draws) -> Float[Array, "m b n e"]:
    """x, from values of all tokens or of all draws."""
    t = draws.t[..., None]
    return (1 - t) * values + t * draws.noise


@typechecked
def velocity_error(
    velocity: Float[Array, "m b n e"], values: Float[Array, "b n e"], draws: Draws
) -> Float[Array, "m b n"]:
    """The score loss of each token, mean over channels."""
    return jnp.mean(jnp.square(velocity - (draws.noise - values)), axis=-1)


@typechecked
def generator_terms(
    values: Float[Array, "b n e"],
    real: Float[Array, "m b n e"],
    fake: Float[Array, "m b n e"],
    alpha: float = 1.0,
    divergence: Divergence = "fisher",
) -> Float[Array, "m b n"]:
    """The generator's loss of each token, mean over channels, without the weight w.

    Args:
      values: what the generator made; gradients in it are what trains the generator.
      real, fake: D_T and D_S at x; the first form needs their gradients in x, which are those in `values`.
      alpha: of the first form. At 1 it is (D_T - D_S) . (D_S - q).
    """
    gap = real - fake
    if divergence == "kl":
        return jnp.mean(jax.lax.stop_gradient(-gap) * values, axis=-1)
    return jnp.mean(gap * (real - values - alpha * gap), axis=-1)


@typechecked
def inverse_error(values: Float[Array, "b n e"], real: Float[Array, "m b n e"]) -> Float[Array, "m b 1"]:
    """The weight w of each sample, which evens out how large differences are at different times."""
    error = jnp.mean(jnp.abs(values - real), axis=(-2, -1))[..., None]
    return jax.lax.stop_gradient(1 / jnp.maximum(error, _TINY))
