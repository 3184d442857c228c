"""Stochastic consistency distillation of Gaussian data: without fresh noise the deterministic one, with it shrunk."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.methods import _students as students
from jaxar.methods import consistency, scott
from tests import exact_flows as exact

CONFIG = scott.Config(levels=12, substeps=1, eta=0.0, target_decay=None)


def method(role="denoiser", **changes):
    return scott.SCott(exact.Exact(role), exact.Exact("denoiser"), dataclasses.replace(CONFIG, **changes))


def test_without_fresh_noise_this_is_consistency_distillation():
    config = consistency.Config(consistency.Fixed(count=12), "ddim", target_decay=None)
    plain = consistency.Consistency(exact.Exact(), exact.Exact(), config)
    np.testing.assert_allclose(exact.errors(method()), exact.errors(plain), rtol=1e-4, atol=1e-8)
    both = [exact.gradients(m, batches=3, slope=0.2) for m in (method(), plain)]
    np.testing.assert_allclose(*both, rtol=1e-4)
    assert np.abs(exact.gradients(method(eta=0.5), batches=3, slope=0.2) / both[0] - 1).max() > 0.01


def shrinkage(eta, count):
    """What the least-squares optimum makes of a deviation at t = 1: one regression after another, and the flow's."""
    times = np.linspace(1, 0.002, count)
    product = 1.0
    for t, s in itertools.pairwise(times):
        total = (1 - t) ** 2 * exact.STD**2 + t**2
        fresh = eta * s / t * np.sqrt(t**2 - ((1 - t) / (1 - s) * s) ** 2)
        product *= ((1 - s) * (1 - t) * exact.STD**2 + np.sqrt(s**2 - fresh**2) * t) / total
    return product, np.sqrt(0.998**2 * exact.STD**2 + 0.002**2)


def solved(eta, count):
    """The same from the teacher's steps: each is affine in where it starts, and its noise is independent of that."""
    flow, start = method(eta=eta), jnp.zeros((2, *exact.SHAPE)).at[1].set(1.0)

    @jax.jit
    def slope(t, s, key):
        t, s = jnp.full(1, t), jnp.full(1, s)

        def denoise(x, t):
            return flow.teacher.denoise(exact.weights(), x, t, jnp.zeros(1, int))

        low, high = (flow.solve(denoise, x[None], t, s, key) for x in start)
        return (high - low).mean()

    times, keys = np.linspace(1, 0.002, count), jax.random.split(jax.random.key(1), count)
    return float(np.prod([slope(t, s, key) for t, s, key in zip(times[:-1], times[1:], keys)]))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.slow
def test_fresh_noise_shrinks_what_is_learnt_as_predicted(eta):
    optimum, flow = shrinkage(eta, 12)
    np.testing.assert_allclose(solved(eta, 12), optimum, rtol=1e-4, atol=1e-5)
    assert optimum < flow
    assert (optimum > 0.99 * shrinkage(0.0, 12)[0]) == (eta == 0)


@pytest.mark.slow
def test_the_student_is_told_how_its_teacher_is_guided():
    taught = method("guided", guidance=students.Scales(1.0, 3.0), levels=400)
    assert taught.config.guidance.num_told == 1
    assert exact.errors(taught).mean() < 1e-4
    for scale in (1.0, 3.0):
        drawn, _ = exact.samples(taught, scott.Sampling(num_steps=1, guidance_scale=scale), count=2000)
        np.testing.assert_allclose(drawn.mean(), scale * exact.MEAN, atol=0.05)


@pytest.mark.slow
def test_guidance_by_sample():
    x, cond = exact.data(3)
    scale, t = jnp.array([1.0, 2.0, 0.0]), jnp.full(3, 0.5)
    denoise = students.guided_by(exact.Exact(), exact.weights(), cond["label"], students.Scales(0, 3), scale)
    own, null = (exact.Exact().denoise(exact.weights(), x, t, jnp.full(3, label)) for label in (0, 1))
    np.testing.assert_allclose(denoise(x, t), null + scale[:, None, None, None] * (own - null), rtol=1e-5)


def test_mistakes_are_named():
    for changes in ({"levels": 1}, {"substeps": 0}, {"eta": 2.0}):
        with pytest.raises(ConfigError, match=f"method.{next(iter(changes))}="):
            scott.Config(**changes)
    with pytest.raises(ConfigError, match="method.guidance.low=2"):
        students.Scales(2.0, 1.0)
