"""Denoising diffusion with a network that predicts the noise and the variance: training terms and ancestral sampling.

The network's output has twice the channels of x: first the noise eps, then v, which places the logarithm of the reverse
variance between that of the posterior (v = -1) and that of beta (v = 1). Arrays have any number of axes; t has the
first of them. `t` indexes the steps of the tables, those of a `Process`; the network is told `tables.timesteps[t]`.

Reference: Ho et al., Denoising Diffusion Probabilistic Models, 2020; Nichol & Dhariwal, Improved Denoising Diffusion
Probabilistic Models, 2021, Sec. 3.1, Eq. 15.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.diffusion.process import Numbers, Tables
from jaxar.typing import Array, Float, Int, typechecked

Predict = Callable[[Float[Array, "b *n c"], Int[Array, "b"]], Float[Array, "b *n 2*c"]]  # (x, told timestep) -> output
Noise = Callable[[Int[Array, ""]], Float[Array, "b *n c"]]  # number of the step, 0 the noisiest -> noise

_BITS = 1 / np.log(2)


class Reverse(NamedTuple):
    """A step p(x_{t-1} | x_t): the moments of a Gaussian, and the estimate of x_0 that they follow from."""

    mean: Float[Array, "b *n c"]
    log_variance: Float[Array, "b *n c"]
    denoised: Float[Array, "b *n c"]


class Terms(NamedTuple):
    """Loss terms per sample: squared error of the noise, and the variational bound in bits per channel."""

    mse: Float[Array, "b"]
    vb: Float[Array, "b"]


@typechecked
def add_noise(
    tables: Tables, x: Float[Array, "b *n c"], t: Int[Array, "b"], noise: Float[Array, "b *n c"]
) -> Float[Array, "b *n c"]:
    """x_t = sqrt(abar_t) x + sqrt(1 - abar_t) noise."""
    return _at(tables.sqrt_alphas_cumprod, t, x) * x + _at(tables.sqrt_one_minus_alphas_cumprod, t, x) * noise


@typechecked
def reverse(
    tables: Tables, x: Float[Array, "b *n c"], t: Int[Array, "b"], output: Float[Array, "b *n o"], clip: bool = False
) -> Reverse:
    """The reverse step that the network's output describes.

    Args:
      output: o = 2 c, noise and v.
      clip: whether the estimate of x_0 is clipped to [-1, 1].
    """
    eps, v = jnp.split(output, 2, axis=-1)
    denoised = _at(tables.sqrt_recip_alphas_cumprod, t, x) * x - _at(tables.sqrt_recipm1_alphas_cumprod, t, x) * eps
    if clip:
        denoised = jnp.clip(denoised, -1, 1)
    low, high = _at(tables.posterior_log_variance_clipped, t, x), _at(tables.log_betas, t, x)
    log_variance = low + (v + 1) / 2 * (high - low)
    return Reverse(_posterior_mean(tables, denoised, x, t), log_variance, denoised)


@typechecked
def training_terms(
    tables: Tables,
    x: Float[Array, "b *n c"],
    t: Int[Array, "b"],
    noise: Float[Array, "b *n c"],
    output: Float[Array, "b *n o"],
) -> Terms:
    """The terms of the hybrid loss mse + vb; the bound trains the variance alone.

    Args:
      x: data.
      output: of the network at `add_noise(tables, x, t, noise)`.

    Reference: Nichol & Dhariwal, 2021, Eq. 16. As in MAR's and DiT's code, the bound is neither weighted by 0.001 nor
    multiplied by the number of steps.
    """
    eps, v = jnp.split(output, 2, axis=-1)
    noised = add_noise(tables, x, t, noise)
    model = reverse(tables, noised, t, jnp.concatenate([jax.lax.stop_gradient(eps), v], axis=-1))
    posterior = _posterior_mean(tables, x, noised, t)
    log_variance = _at(tables.posterior_log_variance_clipped, t, x)
    divergence = _gaussian_kl(posterior, log_variance, model.mean, model.log_variance)
    last = -_binned_log_likelihood(x, model.mean, 0.5 * model.log_variance)
    bound = _mean(jnp.where(_like(t == 0, x), last, divergence)) * _BITS
    return Terms(_mean((noise - eps) ** 2), bound)


@typechecked
def step(
    tables: Tables,
    x: Float[Array, "b *n c"],
    t: Int[Array, "b"],
    output: Float[Array, "b *n o"],
    noise: Float[Array, "b *n c"],
    temperature: Float[Array, ""] | float = 1.0,
    clip: bool = False,
) -> Float[Array, "b *n c"]:
    """x_{t-1}: a draw of the reverse step, its noise multiplied by `temperature`; without noise at t = 0."""
    moments = reverse(tables, x, t, output, clip)
    std = jnp.where(_like(t > 0, x), jnp.exp(0.5 * moments.log_variance), 0)
    return moments.mean + temperature * std * noise


@typechecked
def implicit_step(
    tables: Tables, x: Float[Array, "b *n c"], t: Int[Array, "b"], output: Float[Array, "b *n o"], clip: bool = False
) -> Float[Array, "b *n c"]:
    """x_{t-1} along the direction of the estimated noise, without fresh noise; the data's estimate at t = 0.

    Reference: Song et al., Denoising Diffusion Implicit Models, 2021, Eq. 12 with sigma = 0.
    """
    denoised = reverse(tables, x, t, output, clip).denoised
    noise = (x - _at(tables.sqrt_alphas_cumprod, t, x) * denoised) / _at(tables.sqrt_one_minus_alphas_cumprod, t, x)
    before = np.concatenate([[1.0], tables.alphas_cumprod[:-1]])
    return _at(np.sqrt(before), t, x) * denoised + _at(np.sqrt(1 - before), t, x) * noise


@typechecked
def guided(output: Float[Array, "both *n o"], scale: Float[Array, "..."] | float) -> Float[Array, "b *n o"]:
    """Classifier-free guidance of the noise; v is the conditional one.

    Args:
      output: of the network for conditional samples, then for null ones, at the same x.
      scale: s in `uncond + s (cond - uncond)`, of any shape that broadcasts.
    """
    cond, uncond = jnp.split(output, 2)
    eps, v = jnp.split(cond, 2, axis=-1)
    null = jnp.split(uncond, 2, axis=-1)[0]
    return jnp.concatenate([null + scale * (eps - null), v], axis=-1)


def sample(
    tables: Tables,
    predict: Predict,
    start: Float[Array, "b *n c"],
    noise: Noise,
    temperature: Float[Array, ""] | float = 1.0,
    clip: bool = False,
    num_steps: Int[Array, ""] | None = None,
) -> Float[Array, "b *n c"]:
    """Ancestral sampling from `start`, standard normal noise, to t = 0.

    Args:
      num_steps: how many of the tables' steps there are, None for all: one program can hold processes of several
        lengths, padded to the longest.
    """
    timesteps, batch = jnp.asarray(tables.timesteps), start.shape[:1]
    num_steps = len(tables.timesteps) if num_steps is None else num_steps

    def advance(index: Int[Array, ""], x: Array) -> Array:
        t = jnp.full(batch, num_steps - 1 - index)
        return step(tables, x, t, predict(x, timesteps[t]), noise(index), temperature, clip)

    return jax.lax.fori_loop(0, num_steps, advance, start)


def _posterior_mean(tables: Tables, x: Array, noised: Array, t: Array) -> Array:
    return _at(tables.posterior_mean_coef1, t, x) * x + _at(tables.posterior_mean_coef2, t, x) * noised


def _gaussian_kl(mean: Array, log_variance: Array, other_mean: Array, other_log_variance: Array) -> Array:
    """KL divergence of the first Gaussian from the other in nats, elementwise."""
    log_ratio = log_variance - other_log_variance
    squared = (mean - other_mean) ** 2 * jnp.exp(-other_log_variance)
    return 0.5 * (jnp.exp(log_ratio) + squared - 1 - log_ratio)


def _binned_log_likelihood(x: Array, mean: Array, log_std: Array) -> Array:
    """log-probability of the 8-bit bin of x; the outermost bins are open. Latents are treated as pixels are."""
    half = 1 / 255
    upper = _normal_cdf((x - mean + half) * jnp.exp(-log_std))
    lower = _normal_cdf((x - mean - half) * jnp.exp(-log_std))
    mass = jnp.where(x < -0.999, upper, jnp.where(x > 0.999, 1 - lower, upper - lower))
    return jnp.log(jnp.maximum(mass, 1e-12))


def _normal_cdf(x: Array) -> Array:
    """The usual approximation by tanh, which the published losses were computed with."""
    return 0.5 * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _at(table: Numbers, t: Array, like: Array) -> Array:
    return _like(jnp.asarray(table, jnp.float32)[t], like)


def _like(values: Array, x: Array) -> Array:
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim))


def _mean(x: Array) -> Array:
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))
