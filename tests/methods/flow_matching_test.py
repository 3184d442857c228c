"""Flow matching with the exact velocity of Gaussian data: laws of the samplers, guidance, the loss."""

import dataclasses
import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.diffusion import paths
from jaxar.interop import base, fixtures
from jaxar.interop.families._conv_stack import nhwc
from jaxar.methods import _canvas as canvases
from jaxar.methods import _denoiser as denoisers
from jaxar.methods import flow_matching
from jaxar.methods.base import Task
from jaxar.models import dit
from jaxar.tokenizers.base import ImageSpec, TokenSpec

STD, COUNT, SHAPE = 0.4, 3000, (1, 1, 2)


@dataclasses.dataclass(frozen=True)
class Exact:
    """In place of the network: data of class k is N(k - 1, STD^2); it speaks as SiT does."""

    path: paths.Path
    num_classes: int = 3

    def apply(self, variables, x, told, labels):
        point = self.path(1 - told).like(x)
        mean = labels[:, None, None, None] - 1.0
        variance = point.alpha**2 * STD**2 + point.sigma**2
        denoised = mean + point.alpha * STD**2 / variance * (x - point.alpha * mean)
        noise = point.sigma / variance * (x - point.alpha * mean)
        return -(point.alpha_slope * denoised + point.sigma_slope * noise)


def method(path="linear"):
    canvas = canvases.Canvas(SHAPE, latent=False)
    return flow_matching.FlowMatching(Exact(paths.PATHS[path]), canvas, flow_matching.Config(path))


KEYS = jax.random.split(jax.random.key(0), COUNT)


@functools.cache
def samples(path, options):
    cond = {"label": jnp.full(COUNT, 2)}
    return np.asarray(jax.jit(lambda keys: method(path).sample({"model": {}}, cond, keys, options).latents)(KEYS))


@pytest.mark.parametrize(
    "solver, path", [("euler", "linear"), ("heun", "cosine"), ("dpm_solver", "linear"), ("deis", "cosine")]
)
def test_each_sample_is_the_quantile_of_its_noise(solver, path):
    drawn = samples(path, flow_matching.Sampling(num_steps=100, solver=solver))
    start = jax.jit(lambda keys: canvases.normal(keys, SHAPE, 0))(KEYS)
    np.testing.assert_allclose(drawn, 1 + STD * start, atol=0.06)


def test_the_stochastic_sampler_has_the_law_of_the_data():
    drawn = samples("linear", flow_matching.Sampling(num_steps=100, solver="sde", last_step=0.02))
    np.testing.assert_allclose(drawn.mean(), 1, atol=4 * STD / np.sqrt(2 * COUNT))
    np.testing.assert_allclose(drawn.std(), STD, rtol=0.05)
    deterministic = samples("linear", flow_matching.Sampling(num_steps=100))
    assert abs(np.corrcoef(drawn.ravel(), deterministic.ravel())[0, 1]) < 0.9  # it forgets its start


def test_guidance_moves_the_mean_by_its_scale():
    """Classes of equal variance: the guided velocity is that of mean null + s (cond - null)."""
    options = flow_matching.Sampling(num_steps=100, guidance_scale=1.5)
    np.testing.assert_allclose(samples("linear", options).mean(), 2 + 1.5 * (1 - 2), atol=0.05)
    assert abs(samples("linear", dataclasses.replace(options, guidance_interval=(0.0, 0.3))).mean() - 0.5) > 0.05


def test_guidance_acts_within_its_interval_on_its_channels():
    x, t = jnp.zeros((4, 1, 1, 3)), jnp.array([0.1, 0.2, 0.5, 0.6])

    def network(x, t, labels):
        return jnp.broadcast_to(labels[:, None, None, None] + 0.0, x.shape)

    options = canvases.Guidance(3.0, (0.2, 0.5), 2)
    predict = canvases.guided(network, {"label": jnp.full(4, 4)}, 7, options)
    np.testing.assert_array_equal(predict(x, t)[:, 0, 0], [[4, 4, 4], [-2, -2, 4], [-2, -2, 4], [4, 4, 4]])


def test_the_loss_is_the_error_of_the_velocity():
    """The velocity of data at a point is known: then the loss is zero; a network that says 0 leaves its square."""
    x = jnp.full((64, *SHAPE), 0.3)
    flow = method()

    class Point(Exact):
        def apply(self, variables, x, told, labels):
            return variables["params"] * (0.3 - x) / (1 - told)[:, None, None, None]

    flow = dataclasses.replace(flow, network=Point(paths.linear))

    @jax.jit
    def loss(params, valid):
        batch = {"image": x, "label": jnp.zeros(64, int), "valid": valid}
        return flow.loss({"model": {"params": params}}, batch, jax.random.key(0), 0)[0]

    valid = jnp.arange(64) < 32
    assert loss(1.0, valid) < 1e-6
    noise = jax.random.normal(jax.random.split(jax.random.split(jax.random.key(0))[1])[1], x.shape)
    np.testing.assert_allclose(loss(0.0, valid), jnp.mean((noise - x)[:32] ** 2), rtol=1e-5)


def test_calls_are_counted_and_mistakes_named():
    options = flow_matching.Sampling(num_steps=10)
    counts = [
        method().network_calls(dataclasses.replace(options, solver=s))
        for s in ("euler", "heun", "dpm_solver", "deis", "sde")
    ]
    assert counts == [10, 19, 10, 10, 10]
    for changes in (
        {"num_steps": 0},
        {"order": 0},
        {"last_step": 0.0},
        {"guidance_interval": (0.5, 0.2)},
        {"guided_channels": 0},
    ):
        with pytest.raises(ConfigError, match=f"sample.{next(iter(changes))}="):
            flow_matching.Sampling(**changes)


def test_pixels_or_latents_are_drawn_as_the_task_says():
    config, model = flow_matching.Config(learn_sigma=True), dit.Sizes(num_layers=1, width=8, num_heads=2)
    pixels = flow_matching.build(config, model, Task(ImageSpec(8, 3), 5))
    assert pixels.canvas == canvases.Canvas((8, 8, 3), latent=False) and pixels.network.out_channels == 6
    latents = flow_matching.build(config, model, Task(ImageSpec(8, 3), 5, TokenSpec("continuous", ((4, 4),), 2)))
    maps = jnp.arange(64.0).reshape(2, 4, 4, 2)
    tokens = latents.canvas.tokens(maps)
    assert tokens.latents.shape == (2, 16, 2)
    np.testing.assert_array_equal(latents.canvas.read({"latents": tokens.latents}), maps)
    with pytest.raises(ConfigError, match="model.patch_size=3 does not divide"):
        flow_matching.build(config, dataclasses.replace(model, patch_size=3), Task(ImageSpec(8, 3), 5))
    with pytest.raises(ConfigError, match="needs continuous raster tokens"):
        flow_matching.build(config, model, Task(ImageSpec(8, 3), 5, TokenSpec("discrete", ((4, 4),), 2, 9)))


@pytest.mark.golden
def test_guided_predictions_are_the_official_ones():
    fixture = fixtures.read(pathlib.Path(__file__).parent.parent / "golden" / "sit_d2.safetensors")
    official = base.family("sit").describe(fixture.models)
    variables = official.parts[0].to_variables(fixture.weights("sit"), "sit_d2")
    x, t, labels = (jnp.asarray(fixture.tensors[f"in/{name}"][:2]) for name in ("x", "t", "cfg_y"))
    options = flow_matching.Sampling(guidance_scale=2.0, guided_channels=3)
    denoise = denoisers.guided(official.ours, variables, {"label": labels}, options)
    expected = nhwc(fixture.tensors["out/out_cfg"][:2])
    found = jax.jit(lambda x, t: paths.convert(official.ours.path(t), x, denoise(x, t), "denoised", "velocity"))
    assert np.abs(-found(nhwc(x), 1 - t) - expected).max() / expected.std() < 1e-4


@pytest.mark.parametrize("clock", ["data", "noise"])
def test_a_discriminator_reads_what_the_network_makes_of_the_time_it_is_told(clock):
    sizes = dit.Sizes(num_layers=1, width=8, num_heads=2)
    method = flow_matching.build(flow_matching.Config(clock=clock), sizes, Task(ImageSpec(4, 1), 2))
    model = nn.meta.unbox(jax.jit(method.init)(jax.random.key(0))["model"])
    model = jax.tree.map(lambda w: w + 0.3 * jnp.sin(jnp.arange(w.size)).reshape(w.shape), model)
    x, t, labels = jax.random.normal(jax.random.key(2), (2, 4, 4, 1)), jnp.array([0.1, 0.8]), jnp.array([0, 1])
    told = 1 - t if clock == "data" else t
    features = jax.jit(method.features)
    expected = jax.jit(lambda *args: method.network.apply(*args, method="features"))(model, x, told, labels)
    np.testing.assert_allclose(features(model, x, t, labels), expected, rtol=1e-5)
    assert not np.allclose(features(model, x, 1 - t, labels), expected, rtol=1e-3)
