"""Score identity distillation of Gaussians, against the closed form of its gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.methods import _score_distillation as distillation
from jaxar.methods import sid
from tests import gaussians

METHOD = gaussians.distiller(sid.SiD, sid.Config(alpha=1.0), "ve")


@functools.partial(jax.jit, static_argnames="detach")
@functools.partial(jax.grad, argnums=1)
def _slope(score, generator, alpha, sigma, detach):
    variables = {"teacher": gaussians.weights(0.0, 1.0), "score": score, "generator": generator}
    made = gaussians.make(METHOD, variables, sigma)
    made = distillation.detached(made) if detach else made
    return gaussians.expectation(distillation.score_identity(made.x, *METHOD.denoised(variables, made), alpha))


def identity_gradient(alpha, detach=False, std=3.0, sigma=0.5):
    """d/d(std) of the expected identity without weight: N(0, 1) teacher, alpha = 1 path, exact score held fixed."""
    law = gaussians.weights(0.0, std)
    return float(_slope(law, law, alpha, sigma, detach)["params"]["std"][0])


@pytest.mark.parametrize("alpha, known", [(0.0, 0.2076), (0.5, 0.1178), (1.0, 0.0280), (1.2, -0.0079)])
def test_the_gradient_of_the_identity(alpha, known):
    """2 theta (a - b)((a - 1) - alpha (a - b)): for alpha = 1.2 a student that is too wide is pushed the wrong way."""
    a, b = 1 / 1.25, 9 / 9.25
    expected = 2 * 3 * (a - b) * ((a - 1) - alpha * (a - b))
    assert expected == pytest.approx(known, abs=5e-5)
    assert identity_gradient(alpha) == pytest.approx(expected, abs=1e-5)


def test_the_gradient_flows_through_the_noised_sample():
    assert abs(identity_gradient(1.0, detach=True) - identity_gradient(1.0)) > 0.1


def test_alpha_1_is_the_gradient_of_the_squared_distance_of_scores():
    """d/d(theta) E (s_S - s_T)^2 under the student's law held fixed, 4 theta (1/S - 1/V) / V, in units of scores."""
    sigma, std = 0.5, 1.7
    ours, theirs = std**2 + sigma**2, 1 + sigma**2
    expected = 4 * std * (1 / theirs - 1 / ours) / ours
    assert 2 / sigma**4 * identity_gradient(1.0, std=std, sigma=sigma) == pytest.approx(expected, rel=1e-4)


def test_the_loss_is_weighted_and_at_rest_at_the_optimum():
    method = gaussians.distiller(sid.SiD, sid.Config(alpha=1.0))
    law = (0.5, 0.8)
    np.testing.assert_allclose(gaussians.expected_gradient(method, gaussians.players(law, law), 0.4), 0, atol=1e-5)
    variables = gaussians.players(law, (-0.2, 1.1))
    made = gaussians.make(method, variables, 0.4)
    real, fake = method.denoised(variables, made)
    loss = method.terms(variables, made, jax.random.key(0))["fisher"]
    expected = (real - fake) * (fake - made.x) / jnp.maximum(jnp.abs(made.x - real), 1e-5)
    np.testing.assert_allclose(loss, expected[:, 0, 0, 0], rtol=1e-4, atol=1e-6)
    assert gaussians.expected_gradient(method, variables, 0.4)[1] > 0  # too wide: it shrinks
