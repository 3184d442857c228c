"""Mixtures of Gaussians: data for which every quantity of diffusion is known.

    p(x_0) = sum_k w_k N(m_k, s_k^2),    V_k = alpha^2 s_k^2 + sigma^2
    D(x, t) = sum_k r_k (m_k + alpha s_k^2 / V_k (x - alpha m_k)),    r_k ~ w_k N(x; alpha m_k, V_k), sum_k r_k = 1

Covariances are diagonal. One component is a Gaussian; components without deviation are points, so a codebook is a
mixture, too (`diffusion.codebook` has its flow to tokens).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.diffusion.paths import Point
from jaxar.typing import Array, Float, Int, typechecked

_LEAST_VARIANCE = 1e-12  # of a point at the end of the path, where the posterior is the nearest point


class Components(NamedTuple):
    """The parameters as arrays.

    Attributes:
      means, stds: [k d].
      log_probs: [num_classes + 1, k], of the components given the label. The last row belongs to the null label, all
        classes being equally frequent.
    """

    means: np.ndarray
    stds: np.ndarray
    log_probs: np.ndarray


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture as a configuration describes it.

    Attributes:
      means, stds: of each component, one value for all entries of the data or one for each: maps are read row by row,
        channels last.
      weights: of the components, relative to one another; () for equal ones.
      labels: the class that each component belongs to; () where every class has them all.
    """

    means: tuple[tuple[float, ...], ...] = ((0.0,),)
    stds: tuple[tuple[float, ...], ...] = ((1.0,),)
    weights: tuple[float, ...] = ()
    labels: tuple[int, ...] = ()

    def __post_init__(self):
        count = len(self.means)
        if not count:
            raise ConfigError("law.means=() must hold at least one component")
        for name in ("stds", "weights", "labels"):
            if len(getattr(self, name)) not in ((count,) if name == "stds" else (0, count)):
                raise ConfigError(f"law.{name}={getattr(self, name)} must hold one entry for each of {count} law.means")
        if any(std < 0 for stds in self.stds for std in stds):
            raise ConfigError(f"law.stds={self.stds} must be at least 0")
        if any(weight <= 0 for weight in self.weights):
            raise ConfigError(f"law.weights={self.weights} must be positive; leave out components of weight 0")

    def components(self, size: int, num_classes: int) -> Components:
        """The mixture over vectors of `size` entries.

        Raises:
          ConfigError: means of another size, or labels that are not those of the data.
        """
        probs = np.broadcast_to(np.array(self.weights or (1.0,) * len(self.means)), (num_classes, len(self.means)))
        if self.labels:
            if set(self.labels) != set(range(num_classes)):
                raise ConfigError(f"law.labels={self.labels} must hold every class 0..{num_classes - 1}, and no other")
            probs = probs * (np.array(self.labels) == np.arange(num_classes)[:, None])
        probs = probs / probs.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore"):  # components of other classes
            log_probs = np.log(np.concatenate([probs, probs.mean(axis=0, keepdims=True)]))
        return Components(_rows("means", self.means, size), _rows("stds", self.stds, size), log_probs)


def _rows(name: str, values: tuple[tuple[float, ...], ...], size: int) -> Float[np.ndarray, "k d"]:
    for row in values:
        if len(row) not in (1, size):
            raise ConfigError(
                f"law.{name} has an entry of {len(row)} values; the data have {size}, so give 1 or {size}"
            )
    return np.stack([np.broadcast_to(np.array(row, float), size) for row in values])


def draw(law: Components, label: int, rng: np.random.Generator) -> Float[np.ndarray, "d"]:
    """A vector of the law of `label`, float32."""
    component = rng.choice(len(law.means), p=np.exp(law.log_probs[label]))
    noise = rng.standard_normal(law.means.shape[1])
    return (law.means[component] + law.stds[component] * noise).astype(np.float32)


@typechecked
def denoise(law: Components, point: Point, x: Float[Array, "b d"], labels: Int[Array, "b"]) -> Float[Array, "b d"]:
    """The expectation of x_0 given x_t = x; `point` is that of the times [b], labels are 0..num_classes."""
    alpha, variance, gap = _fit(law, point, x)
    fit = -0.5 * jnp.sum(gap**2 / variance + jnp.log(variance), axis=-1)
    shares = jax.nn.softmax(jnp.asarray(law.log_probs, jnp.float32)[labels] + fit, axis=-1)
    estimates = law.means + alpha * law.stds**2 / variance * gap
    return jnp.sum(shares[..., None] * estimates, axis=1)


@typechecked
def flow(
    law: Components, begin: Point, end: Point, x: Float[Array, "b d"], labels: Int[Array, "b"]
) -> Float[Array, "b d"]:
    """Where the probability flow carries x from one point of a path to another: quantiles stay quantiles.

    Args:
      begin, end: of the times [b].
    Raises:
      ValueError: several components in more than one dimension, where nothing but the ODE knows.
    """
    _, before, gap = _fit(law, begin, x)
    alpha, after, _ = _fit(law, end, x)
    if len(law.means) == 1:
        return (alpha * law.means + jnp.sqrt(after / before) * gap)[:, 0]
    if law.means.shape[1] != 1:
        raise ValueError(f"the flow of {len(law.means)} components in {law.means.shape[1]} dimensions is not known")
    log_probs = jnp.asarray(law.log_probs, jnp.float32)[labels]
    centers, spreads = (alpha * law.means)[..., 0], jnp.sqrt(after)[..., 0]

    def tails(y: Array) -> tuple[Array, Array]:
        return _tails((y - centers) / spreads, log_probs)

    wanted = _tails((gap / jnp.sqrt(before))[..., 0], log_probs)
    least, most = (centers - 9 * spreads).min(axis=1), (centers + 9 * spreads).max(axis=1)
    return _bisect(tails, wanted, least[:, None], most[:, None])


def _fit(law: Components, point: Point, x: Array) -> tuple[Array, Array, Array]:
    """alpha [b 1 1], variances [b k d] of x_t within each component, and x minus its mean [b k d]."""
    at = point.like(x[:, None])
    variance = jnp.maximum(at.alpha**2 * law.stds**2 + at.sigma**2, _LEAST_VARIANCE)
    return at.alpha, variance, x[:, None] - at.alpha * law.means


def _tails(scores: Float[Array, "b k"], log_probs: Float[Array, "b k"]) -> tuple[Array, Array]:
    """Probabilities [b 1] below and above: each is exact where it is small."""
    probs = jnp.exp(log_probs)
    below, above = (jnp.sum(probs * jax.scipy.stats.norm.cdf(z), axis=1, keepdims=True) for z in (scores, -scores))
    return below, above


def _bisect(
    tails: Callable[[Array], tuple[Array, Array]], wanted: tuple[Array, Array], least: Array, most: Array
) -> Array:
    """Where the tails are the wanted ones, between bounds."""

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        below, above = tails(middle)
        short = jnp.where(wanted[0] < 0.5, below < wanted[0], above > wanted[1])
        return jnp.where(short, middle, low), jnp.where(short, high, middle)

    low, high = jax.lax.fori_loop(0, 40, halve, (least, most))
    return (low + high) / 2
