"""MeanFlow with the exact average velocity of Gaussian data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.diffusion import paths
from jaxar.methods import flow_matching, meanflow
from jaxar.methods.base import Task
from jaxar.tokenizers.base import ImageSpec
from tests import exact_flows as exact

PLAIN = meanflow.Config(norm_power=0.0, instant_share=0.25)


def method(role="average", taught=True, config=PLAIN, kind="linear"):
    return meanflow.MeanFlow(exact.Exact(role, kind), exact.Exact("denoiser", kind) if taught else None, config)


@pytest.mark.parametrize("kind", ["linear", pytest.param("cosine", marks=pytest.mark.slow)])
def test_the_average_velocity_obeys_the_identity_and_the_velocity_itself_does_not(kind):
    assert exact.errors(method(kind=kind)).mean() < 1e-6
    instant = dataclasses.replace(method("denoiser", kind=kind), config=dataclasses.replace(PLAIN, instant_share=0.0))
    assert exact.errors(instant).mean() > 1e-2


@pytest.mark.slow
def test_equal_times_ask_for_the_velocity():
    assert exact.errors(method("denoiser", config=dataclasses.replace(PLAIN, instant_share=1.0))).max() < 1e-9


@pytest.mark.slow
def test_with_data_the_gradient_vanishes_in_expectation_alone():
    flow = method(taught=False, config=dataclasses.replace(PLAIN, label_drop=0.0))
    found = exact.gradients(flow)
    assert np.abs(found).min(axis=0).max() > 0 and np.abs(exact.deviations(found)).max() < 4
    assert np.abs(exact.deviations(exact.gradients(flow, slope=0.1))).max() > 8


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.slow
def test_any_number_of_steps_follows_the_trajectories(num_steps):
    drawn, noise = exact.samples(method(), meanflow.Sampling(num_steps))
    np.testing.assert_allclose(drawn, exact.MEAN + exact.STD * noise, atol=1e-5)
    assert method().network_calls(meanflow.Sampling(num_steps)) == num_steps


@pytest.mark.slow
def test_guidance_mixes_data_and_own_velocities_within_its_interval():
    config = dataclasses.replace(PLAIN, omega=0.75, kappa=0.5, guidance_interval=(0.0, 0.6), label_drop=0.0)
    flow, (x, cond) = method(taught=False, config=config), exact.data(2)
    noise, t = jnp.ones_like(x), jnp.array([0.5, 0.7])
    model, dropped = exact.weights(), jnp.array([False, False])
    terms = flow.terms(model, x, noise, t, 0.5 * t, cond, dropped)
    network = exact.Exact("denoiser")
    own, null = (network.velocity(model, terms.x, t, jnp.full(2, label)) for label in (0, exact.NULL))
    np.testing.assert_allclose(terms.velocity[0], (0.75 * (noise - x) - 0.25 * null + 0.5 * own)[0], rtol=1e-4)
    np.testing.assert_allclose(terms.velocity[1], (noise - x)[1], rtol=1e-5)
    kept = flow.terms(model, x, noise, t, 0.5 * t, cond, ~dropped)
    np.testing.assert_allclose(kept.velocity, noise - x, rtol=1e-5)
    np.testing.assert_allclose(kept.average[0], flow.average(model, terms.x, t, 0.5 * t, jnp.full(2, 1))[0], rtol=1e-5)


def test_errors_are_divided_by_powers_of_themselves():
    square = jnp.array([0.0, 1.0, 9.0])
    weighted = method(config=meanflow.Config(norm_power=0.5, norm_eps=1.0)).normalized(square)
    np.testing.assert_allclose(weighted, square / np.sqrt([1, 2, 10]), rtol=1e-6)


def test_times_are_ordered_and_a_share_of_them_equal():
    t, r = method(config=meanflow.Config(instant_share=0.75)).draw_times(jax.random.key(0), 4000)
    assert np.all(t[:3000] == r[:3000]) and np.all(t[3000:] > r[3000:]) and r.min() > 0 and t.max() < 1
    logits = jnp.log(r[3000:] / (1 - r[3000:])), jnp.log(t[3000:] / (1 - t[3000:]))
    np.testing.assert_allclose(np.mean(logits), -0.4, atol=0.1)


def test_networks_come_from_the_section_or_the_teacher():
    task, model = Task(ImageSpec(8, 1), 10), meanflow.Model(num_layers=1, width=8, num_heads=2)
    built = meanflow.build(meanflow.Config(), model, task)
    assert built.network.network.num_scalars == 1 and built.network.network.sizes.attention == "sliced"
    teacher = flow_matching.build(flow_matching.Config(), model, task)
    taught = meanflow.build(meanflow.Config(), meanflow.Model(), dataclasses.replace(task, teacher=teacher))
    assert taught.network.network.sizes.width == 8 and taught.path is paths.linear
    with pytest.raises(ConfigError, match="method.omega=2.0"):
        meanflow.build(meanflow.Config(omega=2.0), model, dataclasses.replace(task, teacher=teacher))
    for changes in ({"kappa": 1.0}, {"instant_share": 2.0}, {"time_std": 0.0}, {"label_drop": 2.0}):
        with pytest.raises(ConfigError, match=f"method.{next(iter(changes))}="):
            meanflow.Config(**changes)
