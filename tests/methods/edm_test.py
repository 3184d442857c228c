"""EDM with the exact denoiser of Gaussian data: samplers, preconditioning, the loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.methods import _canvas as canvases
from jaxar.methods import _denoiser as denoisers
from jaxar.methods import edm
from jaxar.methods.base import Task
from jaxar.models import unet
from jaxar.tokenizers.base import ImageSpec, TokenSpec

STD, COUNT, SHAPE = 0.4, 2000, (1, 1, 2)
CONFIG = edm.Config(sigma_data=0.3)
KEYS = jax.random.split(jax.random.key(0), COUNT)


@dataclasses.dataclass(frozen=True)
class Exact:
    """In place of the network: data of class k is N(k - 1, STD^2); what is left of them after `edm.scales`."""

    num_classes: int = 3

    def apply(self, variables, scaled, told, labels):
        t = jnp.exp(4 * told)
        skip, output, scale, _ = (w[:, None, None, None] for w in edm.scales(t, CONFIG.sigma_data))
        x, mean = scaled / scale, labels[:, None, None, None] - 1.0
        denoised = mean + STD**2 / (STD**2 + t[:, None, None, None] ** 2) * (x - mean)
        return (denoised - skip * x) / output


METHOD = edm.EDM(Exact(), canvases.Canvas(SHAPE, latent=False), CONFIG)


@functools.cache
def samples(**options):
    cond, options = {"label": jnp.full(COUNT, 2)}, edm.Sampling(**options)
    return np.asarray(jax.jit(lambda keys: METHOD.sample({"model": {}}, cond, keys, options).latents)(KEYS))


@pytest.mark.parametrize("solver", ["heun", "euler", "dpm_solver", "deis"])
def test_each_sample_is_the_quantile_of_its_noise(solver):
    start = jax.jit(lambda keys: denoisers.noise_of(METHOD, keys))(KEYS)
    error = 0.06 if solver == "euler" else 0.015
    np.testing.assert_allclose(samples(num_steps=100, solver=solver), 1 + STD * start, atol=error)


def test_churn_keeps_the_law_and_forgets_the_start():
    drawn = samples(num_steps=60, churn=40.0, churn_noise=1.0)
    np.testing.assert_allclose(drawn.mean(), 1, atol=4 * STD / np.sqrt(2 * COUNT))
    np.testing.assert_allclose(drawn.std(), STD, rtol=0.05)
    assert abs(np.corrcoef(drawn.ravel(), samples(num_steps=100, solver="heun").ravel())[0, 1]) < 0.5


def test_guidance_moves_the_mean_within_its_interval():
    guided = samples(num_steps=20, guidance_scale=1.5)
    np.testing.assert_allclose(guided.mean(), 2 + 1.5 * (1 - 2), atol=0.05)
    later = samples(num_steps=20, guidance_scale=1.5, guidance_interval=(0.0, 1 / 80))
    assert 0.55 < later.mean() < 0.95


def test_inputs_and_targets_have_unit_variance():
    """By linear regression for data of deviation sigma_data: what remains for the network is noise of variance 1."""
    t = jnp.array([0.01, 0.3, 5.0, 80.0])
    skip, output, scale, loss = edm.scales(t, 0.3)
    np.testing.assert_allclose(scale**2 * (0.3**2 + t**2), 1, rtol=1e-5)
    remainder = (1 - skip) ** 2 * 0.3**2 + skip**2 * t**2
    np.testing.assert_allclose(remainder / output**2, 1, rtol=1e-4)
    np.testing.assert_allclose(loss * output**2, 1, rtol=1e-5)


def test_the_visited_deviations_are_the_published_ones():
    visited = edm.sigmas(18, 0.002, 80.0)
    np.testing.assert_allclose(visited[[0, 1, 17, 18]], [80, 57.586, 0.002, 0], rtol=1e-4)


def test_the_loss_weighs_errors_of_the_network_equally():
    """A network that is wrong by a constant costs its square at every level of noise."""

    @dataclasses.dataclass(frozen=True)
    class Wrong(Exact):
        def apply(self, variables, scaled, told, labels):
            t = jnp.exp(4 * told)[:, None, None, None]
            skip, output, scale, _ = edm.scales(t, CONFIG.sigma_data)
            return (0.7 - skip * scaled / scale) / output + variables["params"]

    method = dataclasses.replace(METHOD, network=Wrong())
    batch = {"image": jnp.full((64, *SHAPE), 0.7), "label": jnp.zeros(64, int), "valid": jnp.arange(64) < 32}
    loss = jax.jit(lambda p: method.loss({"model": {"params": p}}, batch, jax.random.key(0), 0)[0])
    np.testing.assert_allclose(loss(0.5), 0.25, rtol=1e-3)
    t, _ = method.draw(jax.random.key(1), jnp.zeros((4000, *SHAPE)))
    np.testing.assert_allclose([jnp.log(t).mean(), jnp.log(t).std()], [-1.2, 1.2], atol=0.08)


def test_calls_are_counted_and_mistakes_named():
    counts = [METHOD.network_calls(edm.Sampling(solver=s)) for s in ("heun", "euler", "dpm_solver", "deis")]
    assert counts == [35, 18, 18, 18]
    for name, value in {"num_steps": 0, "rho": 0.0, "order": 4, "churn": -1.0}.items():
        with pytest.raises(ConfigError, match=f"sample.{name}="):
            edm.Sampling(**{name: value})
    with pytest.raises(ConfigError, match="sample.churn=1.0 .*use heun"):
        edm.Sampling(churn=1.0, solver="deis")
    for name, value in {"sigma_min": 90.0, "sigma_data": 0.0, "log_std": 0.0, "label_drop": 2.0}.items():
        with pytest.raises(ConfigError, match=f"method.{name}="):
            edm.Config(**{name: value})


def test_churn_stays_within_its_range_and_below_the_greatest_deviation():
    table = edm.Sampling(num_steps=10, churn=4.0, churn_range=(1.0, 80.0)).table(CONFIG)
    levels, raised = edm.sigmas(10, 0.002, 80.0)[:-1], table.times[::2]
    np.testing.assert_allclose(raised[0], 80)
    churned = (levels >= 1) & (levels < 80)
    np.testing.assert_allclose(raised[churned], 1.4 * levels[churned])
    np.testing.assert_allclose(raised[levels < 1], levels[levels < 1])


def test_pixels_or_latents_are_drawn_as_the_task_says():
    sizes = unet.Sizes(channels=8, multipliers=(1, 2), num_blocks=1, attention=(), num_heads=2)
    pixels = edm.build(CONFIG, sizes, Task(ImageSpec(8, 3), 5))
    assert pixels.canvas == canvases.Canvas((8, 8, 3), latent=False) and pixels.network.out_channels == 3
    latents = edm.build(CONFIG, sizes, Task(ImageSpec(8, 3), 5, TokenSpec("continuous", ((4, 4),), 2)))
    assert latents.canvas.shape == (4, 4, 2)
    with pytest.raises(ConfigError, match="needs continuous raster tokens"):
        edm.build(CONFIG, sizes, Task(ImageSpec(8, 3), 5, TokenSpec("discrete", ((4, 4),), 2, 9)))
