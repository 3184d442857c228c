"""Score implicit matching of Gaussians: the gradient of a distance under the student's law held fixed."""

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from jaxar.config import ConfigError
from jaxar.methods import sid, sim
from tests import gaussians

TEACHER, STUDENT, T = (0.5, 0.8), (-0.2, 1.2), 0.4


def gap(mean, std, x):
    """D_S - D_T at x, on the straight path."""

    def denoised(mean, std):
        alpha = 1 - T
        return mean + alpha * std**2 / (alpha**2 * std**2 + T**2) * (x - alpha * mean)

    return denoised(mean, std) - denoised(*TEACHER)


def distance(params, huber):
    """E d(D_S - D_T) over the noised law of the student as it is, D_S belonging to `params`."""
    alpha = 1 - T
    mean, std = STUDENT
    law = scipy.stats.norm(alpha * mean, np.hypot(alpha * std, T))

    def integrand(x):
        return law.pdf(x) * np.hypot(gap(*params, x), huber)

    return scipy.integrate.quad(integrand, -12, 12, epsabs=1e-12, limit=200)[0]


def test_the_gradient_is_that_of_the_distance_under_the_fixed_law():
    huber = 0.3
    step = 1e-4
    numeric = [
        (distance(STUDENT + step * e, huber) - distance(STUDENT - step * e, huber)) / (2 * step) for e in np.eye(2)
    ]
    method = gaussians.distiller(sim.SIM, sim.Config(huber=huber))
    variables = gaussians.players(TEACHER, STUDENT)
    ours = gaussians.expected_gradient(method, variables, T, size=60)
    np.testing.assert_allclose(ours, numeric, rtol=1e-3)
    wrong = gaussians.expected_gradient(method, gaussians.players(TEACHER, STUDENT, score=(0.0, 1.0)), T, size=60)
    assert np.abs(wrong - numeric).max() > 0.01  # the identity needs the exact score


def test_the_square_is_score_identity_distillation():
    variables = gaussians.players(TEACHER, STUDENT, score=(0.1, 1.1))
    ours = gaussians.expected_gradient(gaussians.distiller(sim.SIM, sim.Config(distance="square")), variables, T)
    theirs = gaussians.expected_gradient(gaussians.distiller(sid.SiD, sid.Config(alpha=1.0)), variables, T)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    other = gaussians.expected_gradient(gaussians.distiller(sid.SiD, sid.Config(alpha=1.2)), variables, T)
    assert np.abs(other - ours).max() > 1e-3


def test_nothing_moves_at_the_optimum():
    method = gaussians.distiller(sim.SIM, sim.Config())
    np.testing.assert_allclose(
        gaussians.expected_gradient(method, gaussians.players(TEACHER, TEACHER), T), 0, atol=1e-4
    )


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="method.huber=0"):
        sim.Config(huber=0.0)
