"""Continuous-time consistency with the exact ends of the trajectories of Gaussian data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.methods import _students as students
from jaxar.methods import flow_matching, scm
from jaxar.methods.base import Task
from jaxar.tokenizers.base import ImageSpec
from tests import exact_flows as exact


def method(role="end", taught=True, **changes):
    teacher = exact.Exact("denoiser", "cosine") if taught else None
    return scm.SCM(exact.Exact(role, "cosine", (0.0,)), teacher, dataclasses.replace(scm.Config(), **changes))


def tangents(flow, t, rise=1.0):
    x, cond = exact.data(64)
    t = jnp.full(64, t)
    velocity = exact.Exact("denoiser", "cosine").velocity(exact.weights(), x, t, cond["label"])
    return jax.jit(lambda m: flow.tangent(m, x, velocity, t, cond["label"], rise))(exact.weights())


@pytest.mark.parametrize("t", [0.5, *(pytest.param(t, marks=pytest.mark.slow) for t in (0.05, 0.95))])
def test_the_exact_function_has_no_tangent(t):
    assert np.abs(tangents(method(), t)[1]).max() < 1e-5
    assert np.abs(tangents(method("denoiser"), t)[1]).max() > 1e-3
    assert np.abs(tangents(method(), t, rise=0.5)[1]).max() > 1e-3


@pytest.mark.slow
def test_the_tangent_is_the_derivative_of_the_landing_point():
    """cos(a) df/da by central differences along the trajectory, for a network that is not exact."""
    flow, t, h = method("denoiser"), 0.4, 1e-2
    x, cond = exact.data(64)

    def landed(t):
        point = exact.flow(flow.path, x, jnp.full(64, 0.4), jnp.full(64, t), exact.MEAN)
        at = flow.path(jnp.full(64, t)).like(x)
        value = flow.network.velocity(exact.weights(), point, jnp.full(64, t), cond["label"]) * 2 / np.pi
        return at.alpha * point - at.sigma * value

    slope = (landed(t + h) - landed(t - h)) / (2 * h) * 2 / np.pi
    np.testing.assert_allclose(tangents(flow, t)[1], np.cos(np.pi * t / 2) * slope, atol=2e-3)


@pytest.mark.slow
def test_with_a_teacher_the_exact_function_stays_and_data_agree_in_expectation():
    # Next to no normalisation, which would weigh the samples, and times whose weights differ little.
    settled = dict(warmup_steps=0, norm_eps=1e3, mean=0.0, std=0.3)
    assert exact.errors(method(warmup_steps=0)).max() < 1e-4
    assert exact.errors(method("denoiser", warmup_steps=0)).mean() > 1e-3
    found = exact.gradients(method(taught=False, **settled))
    assert np.abs(found).max() > 0 and np.abs(exact.deviations(found)).max() < 4
    wrong = exact.gradients(method("denoiser", taught=False, **settled))
    assert np.abs(exact.deviations(wrong)).max() > 8


def test_no_time_outweighs_another():
    """Errors are |g / (|g| + c)|^2, below 1 at every time."""
    found = exact.errors(method("denoiser", warmup_steps=0, mean=-3.0))
    assert 0 < found.max() < 1


def test_the_derivative_enters_by_degrees():
    rises = [float(method(warmup_steps=9).rise(jnp.int32(step))) for step in (0, 4, 9, 100, students.LATEST)]
    np.testing.assert_allclose(rises, [0.1, 0.5, 1, 1, 1])


@pytest.mark.slow
def test_one_step_ends_the_trajectory():
    drawn, noise = exact.samples(method(), scm.Sampling(1))
    np.testing.assert_allclose(drawn, exact.MEAN + exact.STD * noise, atol=1e-5)


def test_the_path_has_constant_variance():
    task, model = Task(ImageSpec(8, 1), 10), scm.Model(num_layers=1, width=8, num_heads=2)
    assert scm.build(scm.Config(), model, task).network.config.path == "cosine"
    teacher = flow_matching.build(flow_matching.Config(), model, task)
    with pytest.raises(ConfigError, match="'scm' needs a teacher on the path of constant variance"):
        scm.build(scm.Config(), model, dataclasses.replace(task, teacher=teacher))
    for changes in ({"std": 0.0}, {"warmup_steps": -1}):
        with pytest.raises(ConfigError, match=f"method.{next(iter(changes))}="):
            scm.Config(**changes)
