"""Noise paths in continuous time, from data at t = 0 to noise, and what a network may predict on them.

    x_t = alpha(t) x_0 + sigma(t) noise,    velocity = alpha'(t) x_0 + sigma'(t) noise

A path is a function t -> `Point`. At a point the conditional expectations of x_0 ("denoised"), of noise and velocity,
and the score follow from one another by exact linear maps; `convert` has them all.

Reference: Lipman et al., Flow Matching for Generative Modeling, 2023; Ma et al., SiT: Exploring Flow and
Diffusion-based Generative Models with Scalable Interpolant Transformers, 2024, Sec. 2.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxar.typing import Array, Float, typechecked

Kind = Literal["denoised", "noise", "velocity", "score"]


class Point(NamedTuple):
    """alpha and sigma of a path at a time, and their derivatives; arrays of the time's shape and library."""

    alpha: Any
    sigma: Any
    alpha_slope: Any
    sigma_slope: Any

    def like(self, x: Array) -> "Point":
        """The same for maps: times [b] against x [b ...]."""
        return Point(*(jnp.reshape(value, np.shape(value) + (1,) * (x.ndim - np.ndim(value))) for value in self))


Path = Callable[[Any], Point]


def linear(t: Any) -> Point:
    """The straight path: alpha = 1 - t, sigma = t."""
    return Point(1 - t, t, -(t**0), t**0)


def cosine(t: Any) -> Point:
    """A path of constant variance: alpha = cos(pi t / 2), sigma = sin(pi t / 2). SiT calls it GVP."""
    xp = np if isinstance(t, np.ndarray) else jnp
    angle = np.pi / 2
    cos, sin = xp.cos(angle * t), xp.sin(angle * t)
    return Point(cos, sin, -angle * sin, angle * cos)


def variance_exploding(t: Any) -> Point:
    """Noise of deviation t is added to the data, which stay as they are: alpha = 1, sigma = t, without a last time."""
    return Point(t**0, t, 0 * t, t**0)


def tabulated(alphas: Float[np.ndarray, "n"]) -> Path:
    """The path of constant variance through a process of n steps: alpha(i / n) = alphas[i - 1], alpha(0) = 1.

    Between the steps the angle whose cosine is alpha is linear in time.
    """
    angles = np.arccos(np.concatenate([[1.0], alphas]))
    steps = len(alphas)

    def path(t: Any) -> Point:
        xp = np if isinstance(t, np.ndarray) else jnp
        last = xp.clip(xp.ceil(t * steps).astype(int), 1, steps)
        slope = xp.asarray(np.diff(angles))[last - 1]
        angle = xp.asarray(angles)[last] + slope * (t * steps - last)
        cos, sin = xp.cos(angle), xp.sin(angle)
        return Point(cos, sin, -steps * slope * sin, steps * slope * cos)

    return path


PATHS: dict[str, Path] = {"linear": linear, "cosine": cosine}  # those that reach noise alone, at t = 1


@typechecked
def add_noise(point: Point, x: Float[Array, "b *n"], noise: Float[Array, "b *n"]) -> Float[Array, "b *n"]:
    """x_t for data x; `point` is that of the times [b]."""
    at = point.like(x)
    return at.alpha * x + at.sigma * noise


@typechecked
def velocity(point: Point, x: Float[Array, "b *n"], noise: Float[Array, "b *n"]) -> Float[Array, "b *n"]:
    """The derivative of x_t by t for data x."""
    at = point.like(x)
    return at.alpha_slope * x + at.sigma_slope * noise


@typechecked
def convert(
    point: Point, x: Float[Array, "b *n"], value: Float[Array, "b *n"], source: Kind, target: Kind
) -> Float[Array, "b *n"]:
    """One expectation from another.

    Args:
      point: of the times [b].
      x: where on the path, x_t.
      value: the expectation `source` given x_t.
    Returns:
      The expectation `target`. Noise is not determined by "denoised" where sigma is 0, nor the other way round where
      alpha is 0.
    """
    if source == target:
        return value
    at = point.like(x)
    denoised, noise = _split(at, x, value, source)
    if target == "denoised":
        return denoised()
    if target == "noise":
        return noise()
    if target == "score":
        return -noise() / at.sigma
    return at.alpha_slope * denoised() + at.sigma_slope * noise()


def _split(at: Point, x: Array, value: Array, source: Kind) -> tuple[Callable[[], Array], Callable[[], Array]]:
    """Expectations of x_0 and noise, computed on demand: either may be undetermined where it is not asked for."""
    if source == "velocity":
        rotation = at.alpha * at.sigma_slope - at.alpha_slope * at.sigma
        return (
            lambda: (at.sigma_slope * x - at.sigma * value) / rotation,
            lambda: (at.alpha * value - at.alpha_slope * x) / rotation,
        )
    if source == "denoised":
        return lambda: value, lambda: (x - at.alpha * value) / at.sigma
    noise = -at.sigma * value if source == "score" else value
    return lambda: (x - at.sigma * noise) / at.alpha, lambda: noise
