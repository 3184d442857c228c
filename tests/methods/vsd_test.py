"""Variational score distillation of Gaussians: its gradient is that of the divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.methods import vsd
from tests import gaussians
from tests.closed_form import PATHS

TEACHER, STUDENT = (0.5, 0.8), (-0.2, 1.5)


def divergence(params, kind, t):
    """KL of the student's noised law from the teacher's, float64 in and out."""
    at = PATHS[kind](np.asarray(t))
    (m, s), (mean, std) = TEACHER, params
    ours, theirs = (at.alpha**2 * v**2 + at.sigma**2 for v in (std, s))
    return 0.5 * (np.log(theirs / ours) + (ours + at.alpha**2 * (mean - m) ** 2) / theirs - 1)


def slopes(fn, point, step=1e-5):
    return np.array([(fn(point + step * e) - fn(point - step * e)) / (2 * step) for e in np.eye(2)])


@pytest.mark.parametrize("kind, t", [("linear", 0.4), ("ve", 0.5)])
def test_the_gradient_is_that_of_the_divergence(kind, t):
    at = PATHS[kind](t)
    expected = slopes(lambda p: divergence(p, kind, t), np.array(STUDENT)) * at.sigma**2 / at.alpha**2
    variables = gaussians.players(TEACHER, STUDENT)
    constant = gaussians.expected_gradient(gaussians.distiller(vsd.VSD, vsd.Config(), kind), variables, t)
    np.testing.assert_allclose(constant, expected, rtol=1e-4)
    swift = gaussians.distiller(vsd.VSD, vsd.Config(weight="noise"), kind)
    np.testing.assert_allclose(
        gaussians.expected_gradient(swift, variables, t), expected * float(at.alpha * at.sigma), rtol=1e-4
    )


def test_nothing_moves_at_the_optimum_or_without_a_difference():
    method = gaussians.distiller(vsd.VSD, vsd.Config())
    for student in (TEACHER, (TEACHER[0], -TEACHER[1])):  # the sign of noise is not identified
        gradient = gaussians.expected_gradient(method, gaussians.players(TEACHER, student), 0.4)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)
    frozen = gaussians.expected_gradient(method, gaussians.players(TEACHER, STUDENT, score=TEACHER), 0.4)
    np.testing.assert_allclose(frozen, 0, atol=1e-7)


def test_both_denoisers_must_be_guided_alike():
    law = ([0.5, 0.0, -0.3], [0.8, 1.0, 1.2])
    gradients = []
    for guided in (True, False):
        config = vsd.Config(guidance_scale=2.0, guided_score=guided, label_drop=0.1)
        method = gaussians.distiller(vsd.VSD, config)
        gradients.append(gaussians.expected_gradient(method, gaussians.players(law, law), 0.4))
    np.testing.assert_allclose(gradients[0], 0, atol=1e-6)
    assert np.abs(gradients[1]).max() > 0.05


def test_the_score_learns_the_null_label_at_the_chosen_rate():
    """Only samples whose label is dropped have an error, that of a score which is wrong for the null label alone."""
    method = gaussians.distiller(vsd.VSD, vsd.Config(label_drop=0.25))
    law = (0.0, 1.0)
    variables = gaussians.players(law, law, score=([0.0, 0.0, 100.0], 1.0))
    made = gaussians.make(method, variables, 0.5)
    errors = jax.jit(method.score_terms)(variables, made, {}, jax.random.key(0))["denoising"]
    assert abs(float(jnp.mean(errors > 100)) - 0.25) < 0.08


def test_mistakes_are_named():
    for options, message in (
        ({"guided_score": True}, "label_drop=0.1"),
        ({"label_drop": 2.0}, "method.label_drop=2.0"),
        ({"calls": ()}, "method.calls="),
        ({"calls": (0.5, 1.0)}, "must fall"),
        ({"calls": (1.5,)}, "must lie in"),
        ({"times": (0.5, 0.5)}, "method.times="),
        ({"generator_every": 0}, "method.generator_every=0"),
    ):
        with pytest.raises(ConfigError, match=message):
            vsd.Config(**options)
