"""Training passes of the tokenizers against numbers of the official code; tests/interop recomputes all others."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.interop import base, fixtures
from jaxar.interop.families._conv_stack import nchw, nhwc
from jaxar.tokenizers.base import Tokens

pytestmark = pytest.mark.golden
GOLDEN = pathlib.Path(__file__).parent.parent / "golden"


@functools.cache
def opened(name):
    """Tokenizer, its variables, and the stored tensors."""
    fixture = fixtures.read(GOLDEN / f"{name}.safetensors")
    official = base.family(fixture.family).describe(fixture.models)
    (part,) = official.parts
    return official.ours, part.to_variables(fixture.weights(part.model), name), fixture.tensors


def reconstructed(name, images):
    """A pass of training, without a key."""
    tokenizer, variables, _ = opened(name)
    return jax.jit(functools.partial(tokenizer.reconstruct, key=None, train=False))(variables, images)


def deviation(mine, stored):
    return np.abs(np.asarray(mine) - stored).max() / stored.std()


def test_losses_of_training_are_the_official_ones():
    """The features of the stored images are the stored features, so `reconstruct` must give the stored losses."""
    _, _, tensors = opened("var_vqvae_c6")
    result = reconstructed("var_vqvae_c6", nhwc(jnp.asarray(tensors["in/img"])))
    np.testing.assert_allclose(result.loss, tensors["out/vq_loss"][0], rtol=1e-4)
    assert deviation(nchw(result.images), tensors["out/dec_unclamped"]) < 1e-4


def test_training_of_the_variational_autoencoder_sees_the_official_divergence():
    tokenizer, _, tensors = opened("mar_kl16")
    result = reconstructed("mar_kl16", nhwc(jnp.asarray(tensors["in/img"])))
    np.testing.assert_allclose(result.metrics["kl_nats"], tensors["out/kl"].mean(), rtol=1e-4)
    weight = tokenizer.config.kl_weight / tensors["in/img"][0].size
    np.testing.assert_allclose(result.loss, weight * tensors["out/kl"].mean(), rtol=1e-4)
    assert deviation(nchw(result.images), tensors["out/dec_mode"]) < 1e-4


def test_decode_clips():
    tokenizer, variables, tensors = opened("var_vqvae_c6")
    images = nchw(jax.jit(tokenizer.decode)(variables, Tokens(ids=jnp.asarray(tensors["out/idx_BL"]))))
    assert deviation(images, np.clip(tensors["out/dec_unclamped"], -1, 1)) < 1e-4
    assert np.abs(images).max() == 1.0


def test_pixels_of_maskgit_are_shifted_and_clipped():
    """Its network sees [0, 1], the tokenizer gives [-1, 1]."""
    tokenizer, variables, tensors = opened("maskgit_vqgan")
    ids = tensors["out/ids"]
    tokenizer = dataclasses.replace(tokenizer, spec=dataclasses.replace(tokenizer.spec, scales=(ids.shape[1:],)))
    images = jax.jit(tokenizer.decode)(variables, Tokens(ids=jnp.asarray(ids.reshape(len(ids), -1))))
    assert deviation(images, np.clip(2 * tensors["out/rec"] - 1, -1, 1)) < 1e-4
    assert np.abs(images).max() == 1.0


def test_latents_of_mar_are_scaled():
    tokenizer, variables, tensors = opened("mar_kl16")
    grid = tensors["out/mean"].shape[2:]
    tokenizer = dataclasses.replace(tokenizer, spec=dataclasses.replace(tokenizer.spec, scales=(grid,)))
    latents = nhwc(jnp.asarray(0.2325 * tensors["out/mean"])).reshape(2, -1, tokenizer.config.latent_channels)
    images = nchw(jax.jit(tokenizer.decode)(variables, Tokens(latents=latents)))
    assert deviation(images, np.clip(tensors["out/dec_mode"], -1, 1)) < 1e-4


def test_simvq_reconstructs_and_loses_as_the_official_code():
    _, _, tensors = opened("simvq")
    result = reconstructed("simvq", nhwc(jnp.asarray(tensors["in/img"])))
    np.testing.assert_allclose(result.loss, tensors["out/commit_loss"][0], rtol=1e-4)
    images = nchw(result.images)
    assert deviation(images, tensors["out/rec"]) < 1e-4
