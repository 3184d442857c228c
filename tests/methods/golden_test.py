"""Passes of the methods that no fixture records, against numbers of the official code; tests/interop recomputes all
others."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.interop import base, fixtures

pytestmark = pytest.mark.golden
GOLDEN = pathlib.Path(__file__).parent.parent / "golden"


def test_one_pass_of_mar_is_encoder_and_decoder_over_padded_tokens():
    """The method reads known tokens from the whole image, padded to the most that a sample may know."""
    fixture = fixtures.read(GOLDEN / "mar_d2.safetensors")
    official = base.family("mar").describe(fixture.models)
    (part,) = official.parts
    variables = part.to_variables(fixture.weights("mar"), "mar_d2")
    tokens, mask, label, expected = (
        jnp.asarray(fixture.tensors[name]) for name in ("out/tokens", "in/mask", "in/labels", "out/z")
    )
    known, most = mask == 0, tokens.shape[1] - 3
    z = jax.jit(official.ours.vectors, static_argnums=4)(variables, tokens, known, {"label": label}, most)
    assert jnp.sum(known[0]) < most
    assert np.abs(z - expected).max() / expected.std() < 1e-4
