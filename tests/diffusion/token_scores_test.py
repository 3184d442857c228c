"""Losses of score distillation on laws whose denoisers are known, by quadrature in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.diffusion import token_scores

S, T = 0.6, 0.4  # deviation of the teacher's normal law, and the time at which it is looked at
ROOTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(20)
NOISES = np.stack(np.meshgrid(ROOTS, ROOTS, indexing="ij"), -1).reshape(-1, 2)
MASS = np.outer(WEIGHTS, WEIGHTS).reshape(-1) / WEIGHTS.sum() ** 2


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def gain(deviation):
    """The denoiser of N(0, deviation^2) is gain * x."""
    return (1 - T) * deviation**2 / ((1 - T) ** 2 * deviation**2 + T**2)


def expected_slope(theta, of_score, **options):
    """d/d theta of the expected loss of q = theta z, whose score network knows the law of deviation `of_score`."""
    z, noise = (jnp.asarray(part)[:, None, None] for part in NOISES.T)
    draws = token_scores.Draws(jnp.full((1, len(z), 1), T), noise[None])

    def loss(theta):
        values = theta * z
        x = token_scores.noised(values, draws)
        terms = token_scores.generator_terms(values, gain(S) * x, gain(of_score) * x, **options)
        return jnp.sum(jnp.asarray(MASS) * terms[0, :, 0])

    return float(jax.grad(loss)(theta))


@pytest.mark.parametrize("theta", [0.3, 0.9])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.2])
def test_slopes_on_normal_laws_are_those_in_closed_form(theta, alpha):
    gap = gain(S) - gain(theta)
    fisher = 2 * theta * (1 - T) * gap * ((1 - T) * (gain(S) - alpha * gap) - 1)
    np.testing.assert_allclose(expected_slope(theta, theta, alpha=alpha), fisher, rtol=1e-9)
    np.testing.assert_allclose(expected_slope(theta, theta, divergence="kl"), -gap * (1 - T) * theta, rtol=1e-9)


@pytest.mark.parametrize("options", [{}, {"divergence": "kl"}])
def test_the_slope_is_zero_at_the_teachers_law_and_leads_there(options):
    assert abs(expected_slope(S, S, **options)) < 1e-12
    assert expected_slope(0.8 * S, 0.8 * S, **options) < -1e-3
    assert expected_slope(1.2 * S, 1.2 * S, **options) > 1e-3
    assert abs(expected_slope(S, 1.2 * S, **options)) > 1e-3  # the score of another law


def test_a_score_that_has_converged_makes_no_smaller_error():
    """The mean of the score loss is least where the velocity is the expectation of noise - q."""
    z, noise = (jnp.asarray(part)[:, None, None] for part in NOISES.T)
    draws = token_scores.Draws(jnp.full((1, len(z), 1), T), noise[None])
    x = token_scores.noised(S * z, draws)

    def error(slope):
        return jnp.sum(jnp.asarray(MASS) * token_scores.velocity_error(slope * x, S * z, draws)[0, :, 0])

    exact = (1 - gain(S)) / T
    assert abs(float(jax.grad(error)(exact))) < 1e-12 and float(jax.grad(error)(1.1 * exact)) > 1e-3


def test_the_weight_is_the_inverse_mean_error_of_each_sample_without_gradient():
    values, real = jnp.array([[[1.0], [3.0]], [[0.0], [0.0]]]), jnp.zeros((1, 2, 2, 1))
    np.testing.assert_allclose(token_scores.inverse_error(values, real), [[[0.5], [1e5]]])
    assert not np.any(jax.grad(lambda v: token_scores.inverse_error(v, real).sum())(values))


def test_times_and_noise_are_drawn_for_each_token():
    draws = token_scores.draw(jax.random.key(0), 50, (20, 4, 2), (0.2, 0.6))
    assert draws.noise.shape == (50, 20, 4, 2) and np.unique(draws.t).size == 50 * 20 * 4
    assert abs(draws.t.mean() - 0.4) < 0.01 and 0.2 <= draws.t.min() < 0.21 and 0.59 < draws.t.max() < 0.6
    values = jnp.arange(2.0)[:, None, None] * jnp.ones((2, 1, 1))
    x = token_scores.noised(values, token_scores.Draws(jnp.full((1, 2, 1), 0.25), jnp.full((1, 2, 1, 1), 4.0)))
    np.testing.assert_allclose(x[0, :, 0, 0], [1.0, 1.75])
