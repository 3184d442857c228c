"""Rectified flow of Gaussian data: pairs of the exact teacher lie on straight lines that one step follows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.methods import flow_matching, reflow
from jaxar.methods.base import Task
from jaxar.models import dit
from jaxar.tokenizers.base import ImageSpec
from tests import exact_flows as exact

CONFIG = reflow.Config(solver_steps=40)


def method(role="line", **changes):
    return reflow.Reflow(exact.Exact(role), exact.Exact("denoiser"), dataclasses.replace(CONFIG, **changes))


@pytest.mark.parametrize("distil", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_straight_lines_leave_no_error_and_the_teacher_does(distil):
    assert exact.errors(method(distil=distil)).max() < 1e-5
    assert exact.errors(method("denoiser", distil=distil)).mean() > 1e-3


@pytest.mark.slow
def test_one_step_along_the_line_ends_the_trajectory():
    for num_steps in (1, 3):
        drawn, noise = exact.samples(dataclasses.replace(method(), network=Line()), reflow.Sampling(num_steps))
        np.testing.assert_allclose(drawn, exact.MEAN + exact.STD * noise, atol=1e-5)
    curved, noise = exact.samples(method("denoiser"), reflow.Sampling(1))
    assert np.abs(curved - exact.MEAN - exact.STD * noise).max() > 0.1


class Line(exact.Exact):
    """Straight lines as a denoiser."""

    def denoise(self, model, x, t, labels, *scalars):
        return x - t[:, None, None, None] * self.line(x, t, exact.mean_of(labels))


@pytest.mark.slow
def test_distilling_asks_for_the_first_step_alone():
    """Wrong anywhere but at the noise, a network has no error."""

    class First(exact.Exact):
        def velocity(self, model, x, t, labels, *scalars):
            return self.line(x, t, exact.mean_of(labels)) + 10 * (t < 1)[:, None, None, None]

    flow = dataclasses.replace(method(distil=True), network=First())
    assert exact.errors(flow).max() < 1e-5
    assert exact.errors(dataclasses.replace(flow, config=CONFIG)).mean() > 1


def test_the_teacher_must_be_on_the_linear_path():
    task = Task(ImageSpec(8, 1), 10)
    model = dit.Sizes(num_layers=1, width=8, num_heads=2)
    for path in ("linear", "cosine"):
        teacher = flow_matching.build(flow_matching.Config(path), model, task)
        taught = dataclasses.replace(task, teacher=teacher)
        if path == "linear":
            built = reflow.build(CONFIG, reflow.Model(), taught)
            again = reflow.build(CONFIG, reflow.Model(), dataclasses.replace(task, teacher=built))
            assert built.network is teacher and again.network is teacher and again.teacher is built
        else:
            with pytest.raises(ConfigError, match="'reflow' needs a teacher on the linear path"):
                reflow.build(CONFIG, reflow.Model(), taught)
    with pytest.raises(ConfigError, match="method.solver_steps=0"):
        reflow.Config(solver_steps=0)
    assert reflow.line_times(jax.random.key(0), 3, distil=True).tolist() == [1, 1, 1]
    assert jnp.ptp(reflow.line_times(jax.random.key(0), 3, distil=False)) > 0
