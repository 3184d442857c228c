"""Masked diffusion in continuous time: every token is hidden at a time of its own, independently of the others.

At time t in [0, 1] a token is masked with probability m(t), which rises from 0 to 1; alpha = 1 - m is the probability
that it is still there. The negative evidence bound is the integral over t of

    w(t) E sum over masked i of -log p(x_i | x_t),    w = m' / m.

Reference: Sahoo et al., Simple and Effective Masked Diffusion Language Models, 2024, Eq. 11; Shi et al., Simplified and
Generalized Masked Diffusion for Discrete Data, 2024, Eq. 5.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.typing import Array, Float, typechecked

KNOWN = "linear, cosine, or polyX with a number X > 0 (poly2)"


def check(schedule: str, name: str) -> None:
    """Refuses a schedule that is not one of `KNOWN`; `name` is the option's, for the message.

    Raises:
      ConfigError
    """
    if schedule not in ("linear", "cosine") and not 0 < _power(schedule) < np.inf:
        raise ConfigError(f"{name}={schedule!r} must be one of {KNOWN}")


def _power(schedule: str) -> float:
    if schedule == "linear":
        return 1.0
    try:
        return float(schedule.removeprefix("poly")) if schedule.startswith("poly") else 0.0
    except ValueError:
        return 0.0


@typechecked
def masked_share(schedule: str, t: Float[np.ndarray | Array, "*b"]) -> Float[np.ndarray | Array, "*b"]:
    """m(t): t, sin(pi t / 2) or t^X, in the kind and precision of `t`."""
    xp = jnp if isinstance(t, jax.Array) else np
    return xp.sin(np.pi / 2 * t) if schedule == "cosine" else t ** _power(schedule)


@typechecked
def weight(schedule: str, t: Float[np.ndarray | Array, "*b"]) -> Float[np.ndarray | Array, "*b"]:
    """w(t) = m'(t) / m(t) for t > 0."""
    xp = jnp if isinstance(t, jax.Array) else np
    return np.pi / 2 / xp.tan(np.pi / 2 * t) if schedule == "cosine" else _power(schedule) / t


@typechecked
def with_odds(levels: Float[np.ndarray, "k"], log_odds: Float[Array, "k_minus_1"]) -> Float[Array, "k"]:
    """Other levels: the odds of revealing a masked token in each step but the last are multiplied by exp(log_odds).

    Args:
      levels: shares that are masked after each step, falling from below 1 to 0.
    Returns:
      Levels that fall in the same way for any `log_odds`, and are the given ones to the last bit for zeros.
    """
    reveal = 1 - levels / np.append(1.0, levels[:-1])
    growth = jnp.cumprod(1 + jnp.asarray(reveal[:-1]) * jnp.expm1(log_odds))
    return jnp.asarray(levels).at[:-1].divide(growth)
