"""Distribution matching distillation: the regression's target, and its gradient beside the divergence's."""

import jax
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.methods import dmd, dmd2
from tests import gaussians
from tests.methods.dmd2_test import LogRatio, with_scale

TEACHER, STUDENT, T = (0.5, 0.8), (-0.2, 1.5), 0.4


def test_the_target_is_where_the_flow_carries_noise():
    """m + s z, and the better the more steps."""
    z = gaussians.nodes(24)[0].reshape(-1, *gaussians.SHAPE)
    errors = []
    for steps in (8, 32):
        method = gaussians.distiller(dmd.DMD, dmd.Config(solver_steps=steps))
        variables = gaussians.players(TEACHER, STUDENT)
        target = jax.jit(method.target)(variables["teacher"], gaussians.make(method, variables, T))
        wrong = np.asarray(target - (TEACHER[0] + TEACHER[1] * z)).ravel()
        errors.append(np.sqrt(gaussians.nodes(24)[2] @ wrong**2))
    assert errors[1] < 0.005 and errors[1] < errors[0] / 2


def test_the_gradient_is_that_of_dmd2_plus_the_regressions():
    """2 E (G(z) - y): the sign of noise, which the divergence leaves open, is the teacher's."""
    variables = with_scale(gaussians.players(TEACHER, STUDENT), 1.0)
    config = dmd.Config(solver_steps=64, regression_weight=0.25)
    both = gaussians.expected_gradient(gaussians.distiller(dmd.DMD, config), variables, T)
    divergence = gaussians.expected_gradient(
        gaussians.distiller(dmd2.DMD2, dmd2.Config(adversarial_weight=0.0), head=LogRatio()), variables, T
    )
    expected = 0.25 * 2 * (np.array(STUDENT) - np.array(TEACHER))
    np.testing.assert_allclose(both - divergence, expected, rtol=1e-2)


def test_mistakes_are_named():
    for options in ({"calls": (1.0, 0.5)}, {"regression_weight": -1.0}, {"solver_steps": 0}):
        with pytest.raises(ConfigError, match=f"method.{next(iter(options))}="):
            dmd.Config(**options)
