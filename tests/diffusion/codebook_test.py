"""The flow from noise to codes: its score, the exact one-dimensional rule, and the law of what it draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxar.diffusion import codebook

LINE = jnp.array([[-1.3], [-0.2], [0.4], [2.0]])
PROBS = np.array([0.1, 0.4, 0.2, 0.3])


def test_the_denoiser_gives_the_score_of_the_mixture():
    codes = jax.random.normal(jax.random.key(0), (5, 3))
    log_probs = jax.nn.log_softmax(jax.random.normal(jax.random.key(1), (5,)))
    x, t = jax.random.normal(jax.random.key(2), (7, 3)), jnp.linspace(0.1, 1.0, 7)

    def log_density(x, t):
        squares = jnp.sum(jnp.square(x - (1 - t) * codes), axis=-1)
        return jax.nn.logsumexp(log_probs - squares / (2 * t**2))

    score = jax.vmap(jax.grad(log_density))(x, t)
    means = codebook.denoise(x, t, codes, jnp.broadcast_to(log_probs, (7, 5)))
    np.testing.assert_allclose(((1 - t)[:, None] * means - x) / t[:, None] ** 2, score, rtol=1e-4, atol=1e-4)


def test_impossible_codes_have_no_weight_and_distant_ones_no_overflow():
    log_probs = jnp.log(jnp.array([[0.5, 0.0, 0.5, 0.0]]))
    weights = codebook.log_weights(jnp.array([[-0.25]]), jnp.array([1e-3]), LINE, log_probs)
    np.testing.assert_allclose(jnp.exp(weights), [[0, 0, 1, 0]], atol=1e-6)


@functools.partial(jax.jit, static_argnums=(1, 2))
def on_the_line(noise, num_steps, solver):
    return codebook.codes_of_noise(
        noise[:, None], LINE, jnp.broadcast_to(jnp.log(PROBS), (len(noise), 4)), num_steps, solver
    )


@pytest.mark.parametrize("solver, steps, most", [("heun", 50, 1e-3), ("euler", 100, 1e-2)])
def test_on_a_line_the_codes_share_out_the_noise_in_order(solver, steps, most):
    noise = jnp.asarray(scipy.stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000), jnp.float32)
    exact = np.searchsorted(np.cumsum(PROBS), scipy.stats.norm.cdf(noise))
    assert np.mean(on_the_line(noise, steps, solver) != exact) < most


def test_eulers_error_shrinks_with_the_step():
    noise = jnp.asarray(scipy.stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000), jnp.float32)
    exact = np.searchsorted(np.cumsum(PROBS), scipy.stats.norm.cdf(noise))
    wrong = [np.mean(on_the_line(noise, steps, "euler") != exact) for steps in (10, 40)]
    assert 2.5 < wrong[0] / wrong[1] < 6  # first order: four times the steps, a quarter of the error


@pytest.mark.parametrize("solver, steps, passes", [("heun", 50, True), ("euler", 10, False)])
def test_normal_noise_becomes_codes_of_the_given_probabilities(solver, steps, passes):
    count, size = 40_000, 16
    codes = jax.random.normal(jax.random.key(0), (size, 4))
    probs = jax.nn.softmax(1.5 * jax.random.normal(jax.random.key(1), (size,)))
    noise = jax.random.normal(jax.random.key(2), (count, 4))

    @jax.jit
    def draw(noise):
        log_probs = jnp.broadcast_to(jnp.log(probs), (count, size))
        return codebook.codes_of_noise(noise, codes, log_probs, steps, solver)

    seen = np.bincount(draw(noise), minlength=size)
    expected = np.asarray(probs, np.float64)
    expected *= count / expected.sum()
    assert (scipy.stats.chisquare(seen, expected).pvalue > 0.01) == passes
