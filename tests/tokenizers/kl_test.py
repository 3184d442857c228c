"""The KL autoencoder: draws, divergence, scale and spec; golden_test and tests/interop hold it against MAR's."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError, parse
from jaxar.tokenizers import base, kl
from jaxar.tokenizers.base import ImageSpec, Tokens

STACK = {"channels": 8, "multipliers": (1, 1), "num_res_blocks": 1, "groups": 4, "mid_attention": False}
TINY = {"latent_channels": 3, "latent_scale": 0.25, "kl_weight": 0.5, "stack": STACK}
IMAGE = ImageSpec(4, 1)


@pytest.fixture(scope="module")
def tiny(random_variables):
    """A tokenizer of 4x4 grey images with a 2x2 grid and all that it makes of two images, in one program."""
    tokenizer = base.build("kl", TINY, IMAGE)
    images, key = jax.random.uniform(jax.random.key(1), (2, 4, 4, 1), minval=-1), jax.random.key(2)

    @jax.jit
    def run(variables):
        mean = tokenizer.encode(variables, images)
        return dict(
            posterior=tokenizer.posterior(variables, images),
            mean=mean.latents,
            drawn=tokenizer.encode(variables, images, key).latents,
            again=tokenizer.encode(variables, images, key).latents,
            decoded=tokenizer.decode(variables, mean),
            of_mean=tokenizer.reconstruct(variables, images, None, train=False),
            of_draw=tokenizer.reconstruct(variables, images, key, train=True),
        )

    variables = random_variables(tokenizer.init)
    return types.SimpleNamespace(tokenizer=tokenizer, variables=variables, **run(variables))


def test_tokens_are_scaled_latents_in_raster_order(tiny):
    spec = tiny.tokenizer.spec
    assert spec.kind == "continuous" and spec.scales == ((2, 2),) and spec.channels == 3
    assert tiny.mean.shape == (2, spec.num_tokens, spec.channels)
    np.testing.assert_allclose(tiny.mean[:, 1], 0.25 * tiny.posterior.mean[:, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(tiny.mean[:, 2], 0.25 * tiny.posterior.mean[:, 1, 0], rtol=1e-6)


def test_decoding_the_mean_is_the_reconstruction_without_a_key(tiny):
    np.testing.assert_allclose(tiny.decoded, jnp.clip(tiny.of_mean.images, -1, 1), atol=1e-5)
    assert np.abs(tiny.of_draw.images - tiny.of_mean.images).max() > 1e-2


def test_draws_follow_the_key(tiny):
    np.testing.assert_array_equal(tiny.drawn, tiny.again)
    standard = (tiny.drawn.reshape(tiny.posterior.mean.shape) / 0.25 - tiny.posterior.mean) / tiny.posterior.std
    expected = jax.random.normal(jax.random.key(2), standard.shape)
    np.testing.assert_allclose(standard, expected, atol=1e-4)


def test_divergence_in_closed_form():
    """Zero for the standard normal; for N(m, s^2) it is the integral of p log(p / q), here by quadrature."""
    standard = kl.Posterior(jnp.zeros((2, 1, 1, 3)), jnp.zeros((2, 1, 1, 3)))
    np.testing.assert_array_equal(standard.divergence(), 0)
    mean, std = 0.7, 0.4
    x = np.linspace(-6, 6, 20_001)
    log_p = -0.5 * ((x - mean) / std) ** 2 - np.log(std)
    integrand = np.exp(log_p) / np.sqrt(2 * np.pi) * (log_p + 0.5 * x**2)
    shifted = kl.Posterior(jnp.full((1, 2, 1, 1), mean), jnp.full((1, 2, 1, 1), 2 * np.log(std)))
    np.testing.assert_allclose(shifted.divergence(), 2 * np.trapezoid(integrand, x), rtol=1e-5)


def test_own_loss_is_the_weighted_divergence_per_pixel_value(tiny):
    divergence = np.mean(tiny.posterior.divergence())
    np.testing.assert_allclose(tiny.of_draw.loss, 0.5 * divergence / 16, rtol=1e-5)
    np.testing.assert_allclose(tiny.of_draw.metrics["kl_nats"], divergence, rtol=1e-5)
    np.testing.assert_allclose(tiny.of_mean.metrics["latent_std"], np.std(tiny.posterior.mean), rtol=1e-4)


def test_log_variances_are_bounded(tiny):
    kernel = tiny.variables["params"]["quant_conv"]["kernel"] * 1e4
    params = tiny.variables["params"] | {"quant_conv": {**tiny.variables["params"]["quant_conv"], "kernel": kernel}}
    wide = tiny.tokenizer.posterior({"params": params}, jnp.ones((1, 4, 4, 1))).log_variance
    assert wide.min() >= -30 and wide.max() <= 20 and (jnp.isin(wide, jnp.array([-30.0, 20.0]))).all()


def test_default_sizes_are_the_published_ones():
    tokenizer = kl.build(kl.Config(), ImageSpec(256, 3))
    variables = nn.meta.unbox(jax.eval_shape(tokenizer.init, jax.random.key(0)))
    assert tokenizer.spec.grid == (16, 16) and tokenizer.spec.channels == 16
    ids = Tokens(latents=jax.ShapeDtypeStruct((1, 256, 16), jnp.float32))
    assert jax.eval_shape(tokenizer.decode, variables, ids).shape == (1, 256, 256, 3)


@pytest.mark.parametrize(
    "values, size, message",
    [
        ({}, 5, "data.image_size=5"),
        ({"latent_channels": 0}, 4, "tokenizer.latent_channels=0"),
        ({"latent_scale": 0.0}, 4, "tokenizer.latent_scale=0.0"),
        ({"kl_weight": -1.0}, 4, "tokenizer.kl_weight=-1.0"),
    ],
)
def test_mistakes_are_named(values, size, message):
    with pytest.raises(ConfigError, match=message):
        kl.build(parse(kl.Config, TINY | values, "tokenizer"), ImageSpec(size, 1))
