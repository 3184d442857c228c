"""Phased consistency with the exact ends of phases of the trajectories of Gaussian data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.methods import consistency, pcm
from tests import exact_flows as exact

CONFIG = pcm.Config(phases=4, levels=50, huber=None)


def method(role="end", kind="cosine", ends=None, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    made = pcm.PCM(exact.Exact("denoiser", kind), exact.Exact("denoiser", kind), config)
    ends = ends or tuple(float(time) for time in made.level(np.array(config.edges)))
    return dataclasses.replace(made, network=exact.Exact(role, kind, ends))


def test_fifty_levels_in_four_phases():
    assert CONFIG.edges == (0, 12, 25, 37, 50)
    lower = jnp.array([0, 11, 12, 24, 25, 36, 37, 49])
    assert method().edge(lower).tolist() == [0, 0, 12, 12, 25, 25, 37, 37]


def test_the_exact_ends_of_phases_leave_no_loss_and_other_ends_do():
    left = exact.errors(method()).mean()
    assert left < 1e-6
    assert exact.errors(method(ends=(0.002, 1.0))).mean() > 20 * left


@pytest.mark.slow
def test_the_phases_together_make_the_whole_trajectory():
    drawn, noise = exact.samples(method(), pcm.Sampling())
    np.testing.assert_allclose(drawn, exact.MEAN + exact.STD * noise, atol=0.01)
    assert method().network_calls(pcm.Sampling()) == 4
    halves, _ = exact.samples(method(ends=(0.002, 1.0)), pcm.Sampling())
    assert np.abs(halves - drawn).max() > 0.05


@pytest.mark.slow
def test_one_phase_is_consistency_distillation():
    config = consistency.Config(consistency.Fixed(count=51), "ddim", target_decay=None, huber=0.001)
    phased = method("denoiser", phases=1, huber=0.001)
    whole = consistency.Consistency(phased.network, phased.teacher, config)
    np.testing.assert_allclose(exact.errors(phased), exact.errors(whole), rtol=1e-5)
    both = [exact.gradients(m, batches=3, slope=0.2) for m in (phased, whole)]
    np.testing.assert_allclose(*both, rtol=1e-5)
    more = exact.gradients(method("denoiser", phases=2, huber=0.001), batches=3, slope=0.2)
    assert np.abs(more / both[0] - 1).max() > 0.01


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="method.phases=5 must lie in 1..levels=4"):
        pcm.Config(phases=5, levels=4)
    assert jax.tree.leaves(method().init(jax.random.key(0))["model"]) and method().slowness is None
