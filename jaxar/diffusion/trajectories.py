"""Moves along the trajectories of a path and against them, and levels of noise to move between.

    jump from time t to s:    x_s = alpha_s D + sigma_s (x_t - alpha_t D) / sigma_t

With the expectation of data given x_t for D this is a step of DDIM. With the D whose jump ends on the trajectory of x_t
it is exact. At s = t it is x_t itself, whatever D: the boundary condition of consistency models.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.diffusion.paths import Path, Point
from jaxar.typing import Array, Float, Int, typechecked

_GRID = 4097  # levels at which ratios are tabulated
_LARGEST_RATIO = 1e6


@typechecked
def jump(start: Point, stop: Point, x: Float[Array, "b *n"], denoised: Float[Array, "b *n"]) -> Float[Array, "b *n"]:
    """x at `stop`, for the x at `start` and D; the points are those of times [b]."""
    of_x, of_denoised = _weights(start.like(x), stop.like(x))
    return of_x * x + of_denoised * denoised


@typechecked
def aim(start: Point, stop: Point, x: Float[Array, "b *n"], end: Float[Array, "b *n"]) -> Float[Array, "b *n"]:
    """The D whose jump ends at `end`; the times differ.

    Reference: Salimans & Ho, Progressive Distillation for Fast Sampling of Diffusion Models, 2022, App. G.
    """
    of_x, of_denoised = _weights(start.like(x), stop.like(x))
    return (end - of_x * x) / of_denoised


def _weights(start: Point, stop: Point) -> tuple[Array, Array]:
    """Of x and of D in a jump; one that goes nowhere needs no noise to be known."""
    ratio = jnp.where(start.sigma == stop.sigma, 1.0, stop.sigma / jnp.where(start.sigma == 0, 1.0, start.sigma))
    return ratio, stop.alpha - ratio * start.alpha


@typechecked
def stochastic_jump(
    start: Point,
    stop: Point,
    x: Float[Array, "b *n"],
    denoised: Float[Array, "b *n"],
    noise: Float[Array, "b *n"],
    eta: float,
) -> Float[Array, "b *n"]:
    """A jump that replaces part of the noise by fresh one: 0 none of it, 1 as ancestral sampling does.

    Reference: Song et al., Denoising Diffusion Implicit Models, 2021, Eq. 12 and 16, on any path.
    """
    a, b = start.like(x), stop.like(x)
    fresh = eta * b.sigma / a.sigma * _spread(b, a)
    kept = jnp.sqrt(jnp.maximum(b.sigma**2 - fresh**2, 0))
    return b.alpha * denoised + kept * (x - a.alpha * denoised) / a.sigma + fresh * noise


@typechecked
def renoise(start: Point, stop: Point, x: Float[Array, "b *n"], noise: Float[Array, "b *n"]) -> Float[Array, "b *n"]:
    """x at the noisier `stop`, as the path's own diffusion draws it from the x at `start`."""
    a, b = start.like(x), stop.like(x)
    return b.alpha / a.alpha * x + _spread(a, b) * noise


def _spread(clean: Point, noisy: Point) -> Array:
    """Standard deviation of x at the noisier point given x at the other."""
    return jnp.sqrt(jnp.maximum(noisy.sigma**2 - (noisy.alpha / clean.alpha * clean.sigma) ** 2, 0))


def level(index: Any, count: Any, bounds: tuple[float, float], rho: float) -> Any:
    """Time number `index` of `count`, rising from the first of `bounds` to the second.

    The times' roots of order `rho` are evenly spaced.

    Reference: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, Eq. 5.
    """
    low, high = bounds[0] ** (1 / rho), bounds[1] ** (1 / rho)
    return (low + index / (count - 1) * (high - low)) ** rho


def log_ratios(path: Path, times: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """ln(sigma / alpha), the logarithm of the noise level in the terms of EDM; infinite ends are cut off."""
    at = path(times)
    ratio = at.sigma / jnp.maximum(at.alpha, 1 / _LARGEST_RATIO)
    return jnp.log(jnp.clip(ratio, 1 / _LARGEST_RATIO, _LARGEST_RATIO))


def times_of(path: Path, log_ratio: Float[Array, "*n"], bounds: tuple[float, float], rho: float) -> Float[Array, "*n"]:
    """Times at which sigma / alpha has these logarithms, held within the bounds: interpolated on a fine grid."""
    times = jnp.asarray(level(np.arange(_GRID), _GRID, bounds, rho), jnp.float32)
    return jnp.interp(log_ratio, log_ratios(path, times), times)


def lognormal_cells(path: Path, times: Float[Array, "n"], mean: float, std: float) -> Float[Array, "m"]:
    """Probability that a log-normal noise level sigma / alpha lies between neighbours of n = m + 1 rising times.

    Reference: Song & Dhariwal, Improved Techniques for Training Consistency Models, 2023, Eq. 10.
    """
    return jnp.diff(jax.scipy.special.erf((log_ratios(path, times) - mean) / (np.sqrt(2) * std)))


def doubled(step: Int[Array, ""], first: int, last: int, num_steps: int) -> Int[Array, ""]:
    """Intervals between levels: `first`, doubled at even intervals of `num_steps` until there are `last`.

    Reference: Song & Dhariwal, Improved Techniques for Training Consistency Models, 2023, Eq. 9.
    """
    every = max(int(num_steps / (np.floor(np.log2(last / first)) + 1)), 1)
    times = jnp.minimum(step // every, int(np.ceil(np.log2(last / first))))
    return jnp.minimum(first * 2**times, last)
