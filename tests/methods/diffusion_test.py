"""Denoising diffusion with the exact noise and variance of Gaussian data: laws of the samplers, and their steps."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.diffusion import ddpm
from jaxar.interop import base, fixtures
from jaxar.interop.families._conv_stack import nhwc
from jaxar.methods import _canvas as canvases
from jaxar.methods import diffusion

MEAN, STD, COUNT, SHAPE = 0.5, 0.4, 3000, (1, 1, 2)
CONFIG = diffusion.Config(base_steps=200)


@dataclasses.dataclass(frozen=True)
class Exact:
    """In place of the network: the expected noise of N(MEAN, STD^2), and the variance of the whole process's steps."""

    num_classes: int = 3

    def apply(self, variables, x, t, labels):
        tables = CONFIG.process.tables
        signal, low, high = (
            jnp.asarray(values, jnp.float32)[jnp.round(t).astype(int)][:, None, None, None]
            for values in (tables.alphas_cumprod, tables.posterior_log_variance_clipped, tables.log_betas)
        )
        coefficient = jnp.asarray(tables.posterior_mean_coef1, jnp.float32)[jnp.round(t).astype(int)][
            :, None, None, None
        ]
        total = signal * STD**2 + 1 - signal
        eps = jnp.sqrt(1 - signal) * (x - jnp.sqrt(signal) * MEAN) / total
        exact = jnp.log(jnp.exp(low) + coefficient**2 * (1 - signal) * STD**2 / total)
        return jnp.concatenate([eps, jnp.broadcast_to(2 * (exact - low) / (high - low) - 1, x.shape)], axis=-1)


METHOD = diffusion.Diffusion(Exact(), canvases.Canvas(SHAPE, latent=False), CONFIG)
KEYS, COND = jax.random.split(jax.random.key(0), COUNT), {"label": jnp.zeros(COUNT, int)}


@functools.cache
def samples(solver, respacing):
    options = diffusion.Sampling(respacing=respacing, solver=solver)
    return np.asarray(jax.jit(lambda keys: METHOD.sample({"model": {}}, COND, keys, options).latents)(KEYS))


@functools.cache
def starts():
    return np.asarray(jax.jit(lambda keys: canvases.normal(keys, SHAPE, 0))(KEYS))


def test_ancestral_samples_have_the_law_of_the_data():
    drawn = samples("ancestral", "")
    np.testing.assert_allclose(drawn.mean(), MEAN, atol=0.03)
    np.testing.assert_allclose(drawn.std(), STD, rtol=0.05)
    assert abs(np.corrcoef(drawn.ravel(), starts().ravel())[0, 1]) < 0.2


@pytest.mark.parametrize("solver, error", [("ddim", 0.06), ("dpm_solver", 0.02), ("deis", 0.02)])
def test_deterministic_samples_are_quantiles_of_their_noise(solver, error):
    """The process ends a little short of noise, by what its last level keeps of the mean."""
    left = np.sqrt(CONFIG.process.tables.alphas_cumprod[-1])
    np.testing.assert_allclose(samples(solver, "100"), MEAN + STD * (starts() - left * MEAN), atol=error)


def test_denoises_at_the_times_of_its_path():
    steps = np.array([0, 57, 199])
    x, t = jnp.array([[0.3, 0.1], [-1.0, 0], [2.0, 1.5]])[:, None, None], jnp.asarray((steps + 1) / 200, jnp.float32)
    found = jax.jit(lambda x, t: METHOD.denoise({}, x, t, jnp.zeros(3, int)))(x, t)
    signal = CONFIG.process.tables.alphas_cumprod[steps, None]
    expected = MEAN + np.sqrt(signal) * STD**2 / (signal * STD**2 + 1 - signal) * (x[:, 0, 0] - np.sqrt(signal) * MEAN)
    np.testing.assert_allclose(found[:, 0, 0], expected, atol=2e-4)
    np.testing.assert_allclose(METHOD.path((steps + 1) / 200).alpha, np.sqrt(signal[:, 0]), rtol=1e-12)


def test_ddim_takes_the_steps_of_the_process():
    tables = diffusion.Process("linear", 200, "5").tables

    @jax.jit
    def by_steps(x):
        for index in reversed(range(5)):
            t = jnp.full(COUNT, index)
            output = Exact().apply({}, x, jnp.asarray(tables.timesteps, jnp.float32)[t], COND["label"])
            x = ddpm.implicit_step(tables, x, t, output)
        return x

    np.testing.assert_allclose(samples("ddim", "5"), by_steps(jnp.asarray(starts())), atol=1e-5)


def test_guidance_leaves_the_variance_to_the_condition():
    def network(model, x, t, labels):
        return jnp.broadcast_to(labels[:, None, None, None] + 0.0, (len(x), 1, 1, 4))

    class Labels(Exact):
        def apply(self, *args):
            return network(*args)

    method = dataclasses.replace(METHOD, network=Labels())
    options = diffusion.Sampling(guidance_scale=2.0, guidance_interval=(0.0, 0.5))
    predict = method.predict({}, {"label": jnp.ones(2, int)}, options)
    found = predict(jnp.zeros((2, *SHAPE)), jnp.array([100, 101]))
    np.testing.assert_array_equal(found[:, 0, 0], [[-1, -1, 1, 1], [1, 1, 1, 1]])


def test_calls_are_counted():
    assert METHOD.network_calls(diffusion.Sampling(respacing="7")) == 7


@pytest.mark.golden
def test_guided_predictions_are_the_official_ones():
    fixture = fixtures.read(pathlib.Path(__file__).parent.parent / "golden" / "dit_d2.safetensors")
    official = base.family("dit").describe(fixture.models)
    variables = official.parts[0].to_variables(fixture.weights("dit"), "dit_d2")
    x, t, labels = (jnp.asarray(fixture.tensors[f"in/{name}"][:2]) for name in ("x", "t", "cfg_y"))
    options = diffusion.Sampling(guidance_scale=2.0, guided_channels=3)
    predict = official.ours.predict(variables, {"label": labels}, options)
    expected = nhwc(fixture.tensors["out/out_cfg"][:2])
    assert np.abs(jax.jit(predict)(nhwc(x), t) - expected).max() / expected.std() < 1e-4
