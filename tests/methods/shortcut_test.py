"""Shortcut models with the exact average velocity of Gaussian data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.methods import shortcut
from tests import exact_flows as exact

CONFIG = shortcut.Config(shortest=16, bootstrap_share=1.0, clip=None, label_drop=0.0)


def method(role="average", **changes):
    return shortcut.Shortcut(exact.Exact(role), None, dataclasses.replace(CONFIG, **changes))


def test_the_average_velocity_agrees_with_itself_and_the_velocity_does_not():
    assert exact.errors(method()).max() < 1e-9
    assert exact.errors(method("denoiser")).mean() > 1e-2


def test_jumps_lie_on_the_grid_of_their_length():
    half, t = jax.device_get(method().draw_jumps(jax.random.key(0), 4000))
    assert sorted(set(half)) == [1 / 16, 1 / 8, 1 / 4, 1 / 2]
    assert np.all(t * (0.5 / half) == np.round(t * (0.5 / half))) and t.max() == 1 and np.all(t >= 2 * half)
    np.testing.assert_allclose(np.bincount(np.log2(half).astype(int) + 4) / 4000, 0.25, atol=0.03)


@pytest.mark.slow
def test_targets_are_clipped():
    x, cond = exact.data(4)
    free, held = (
        method(clip=clip).target(exact.weights(), 10 * x, jnp.ones(4), jnp.full(4, 0.25), cond["label"])
        for clip in (None, 0.5)
    )
    assert np.abs(free).max() > 0.6 and np.abs(held).max() == 0.5


@pytest.mark.slow
def test_the_shortest_jumps_alone_are_guided():
    x, cond = exact.data(1)
    for half, scale in ((1 / 16, 3.0), (1 / 8, 1.0)):
        spans, t = jnp.full(1, half), jnp.full(1, 0.5)
        guided = method(guidance_scale=3.0)._guided(exact.weights(), x, t, spans, cond["label"])
        own, null = (exact.Exact("average").velocity(exact.weights(), x, t, jnp.full(1, k), spans) for k in (0, 1))
        np.testing.assert_allclose(guided, null + scale * (own - null), rtol=1e-5)


@pytest.mark.slow
def test_the_rest_of_the_batch_learns_the_velocity_of_data():
    """The network is asked for jumps of the shortest length; their own velocity is nearly that of data."""
    rest = method(bootstrap_share=0.0, shortest=4096)
    found = exact.gradients(rest)
    assert np.abs(exact.deviations(found)).max() < 4
    assert np.abs(exact.deviations(exact.gradients(rest, shift=0.1))).max() > 8
    assert exact.errors(rest).mean() > 0.1


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.slow
def test_any_number_of_steps_follows_the_trajectories(num_steps):
    drawn, noise = exact.samples(method(), shortcut.Sampling(num_steps))
    np.testing.assert_allclose(drawn, exact.MEAN + exact.STD * noise, atol=1e-5)


def test_mistakes_are_named():
    for changes in ({"shortest": 12}, {"bootstrap_share": 2.0}, {"clip": 0.0}, {"target_decay": 1.0}):
        with pytest.raises(ConfigError, match=f"method.{next(iter(changes))}="):
            shortcut.Config(**changes)
