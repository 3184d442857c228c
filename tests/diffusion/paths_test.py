"""Paths against their derivatives, and conversions against the closed form on Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.diffusion import paths

MEAN, STD = 0.7, 0.4
KINDS = ("denoised", "noise", "velocity", "score")
ALL = {**paths.PATHS, "tabulated": paths.tabulated(np.array([0.9, 0.6, 0.5, 0.0]))}


@pytest.mark.parametrize("path", ALL.values(), ids=ALL)
def test_slopes_are_derivatives_and_both_ends_are_data_and_noise(path):
    t = jnp.linspace(0.05, 0.95, 7)
    point, slope = jax.jit(lambda t: jax.jvp(path, (t,), (jnp.ones_like(t),)))(t)
    np.testing.assert_allclose(point.alpha_slope, slope.alpha, rtol=1e-5)
    np.testing.assert_allclose(point.sigma_slope, slope.sigma, rtol=1e-5)
    ends = path(np.array([0.0, 1.0]))
    np.testing.assert_allclose(ends.alpha, [1, 0], atol=1e-15)
    np.testing.assert_allclose(ends.sigma, [0, 1], atol=1e-15)


def expectations(point, x):
    """Of data N(MEAN, STD^2) given x; the score is the gradient of the density of x itself."""
    variance = point.alpha**2 * STD**2 + point.sigma**2
    score = -(x - point.alpha * MEAN) / variance
    denoised = MEAN + point.alpha * STD**2 / variance * (x - point.alpha * MEAN)
    noise = -point.sigma * score
    return dict(
        denoised=denoised,
        noise=noise,
        score=score,
        velocity=point.alpha_slope * denoised + point.sigma_slope * noise,
    )


@pytest.mark.parametrize("path", [*paths.PATHS.values(), paths.variance_exploding])
def test_expectations_of_gaussian_data_convert_into_each_other(path):
    t, x = jnp.array([0.2, 0.5, 0.8]), jnp.array([-1.0, 0.3, 2.0])

    @jax.jit
    def convert_all(known):
        pairs = [(source, target) for source in KINDS for target in KINDS]
        return {(s, t_): paths.convert(path(t), x[:, None], known[s][:, None], s, t_)[:, 0] for s, t_ in pairs}

    known = expectations(path(np.array(t)), np.array(x))
    for (source, target), found in convert_all(known).items():
        np.testing.assert_allclose(found, known[target], rtol=2e-5, atol=1e-5, err_msg=f"{source} to {target}")


def test_velocities_give_data_at_the_noisy_end():
    x, velocity = jnp.array([[1.5]]), jnp.array([[0.9]])
    found = paths.convert(paths.linear(jnp.ones(1)), x, velocity, "velocity", "denoised")
    np.testing.assert_allclose(found, 0.6, rtol=1e-6)


def test_noised_data_moves_with_the_velocity():
    data, noise = jnp.array([[1.0, -2.0]]), jnp.array([[0.5, 3.0]])

    @jax.jit
    def both(t):
        _, slope = jax.jvp(lambda t: paths.add_noise(paths.cosine(t), data, noise), (t,), (jnp.ones(1),))
        return paths.velocity(paths.cosine(t), data, noise), slope

    np.testing.assert_allclose(*both(jnp.array([0.3])), rtol=1e-5)
