"""Training passes of the tokenizers against numbers of the official code; tests/interop recomputes all others."""

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


def reconstructed(name):
    tokenizer, variables, tensors = opened(name)
    run = jax.jit(functools.partial(tokenizer.reconstruct, key=None, train=False))
    return run(variables, nhwc(jnp.asarray(tensors["in/img"])))


def test_losses_of_training_are_the_official_ones():
    """The features of the stored images are the stored features, so `reconstruct` must give the stored losses."""
    _, _, tensors = opened("var_vqvae_c6")
    result = reconstructed("var_vqvae_c6")
    np.testing.assert_allclose(result.loss, tensors["out/vq_loss"][0], rtol=1e-4)
    images = nchw(result.images)
    assert np.abs(images - tensors["out/dec_unclamped"]).max() / tensors["out/dec_unclamped"].std() < 1e-4


def test_decode_clips():
    tokenizer, variables, tensors = opened("var_vqvae_c6")
    images = nchw(jax.jit(tokenizer.decode)(variables, Tokens(ids=jnp.asarray(tensors["out/idx_BL"]))))
    expected = np.clip(tensors["out/dec_unclamped"], -1, 1)
    assert np.abs(images - expected).max() / expected.std() < 1e-4
    assert np.abs(images).max() == 1.0


def test_simvq_reconstructs_and_loses_as_the_official_code():
    _, _, tensors = opened("simvq")
    result = reconstructed("simvq")
    np.testing.assert_allclose(result.loss, tensors["out/commit_loss"][0], rtol=1e-4)
    images = nchw(result.images)
    assert np.abs(images - tensors["out/rec"]).max() / tensors["out/rec"].std() < 1e-4
