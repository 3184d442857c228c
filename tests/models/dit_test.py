"""The diffusion transformer beside its golden numbers (tests/interop): positions, patches, what outputs depend on."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.models.dit import DiT, Sizes, patchify, unpatchify
from jaxar.nn.positions import sincos_2d

SIZES = Sizes(num_layers=2, width=16, num_heads=2, patch_size=2)
NET = DiT(SIZES, (4, 6, 3), 3, num_classes=5)
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 3)), jnp.float32)
T, LABELS = jnp.array([0.3, 0.3]), jnp.array([1, 5])


@functools.cache
def variables():
    """Random weights everywhere, the zero gates and head included."""
    shapes = nn.meta.unbox(jax.eval_shape(NET.init, jax.random.key(0), X, T, LABELS))
    rng = np.random.default_rng(1)
    drawn = jax.tree.map(lambda s: jnp.asarray(0.2 * rng.normal(size=s.shape), s.dtype), shapes)
    return {**drawn, "fixed": {"positions": jnp.asarray(sincos_2d((2, 3), 16))}}


@functools.cache
def apply():
    return jax.jit(NET.apply)


def test_positions_are_sines_and_cosines_of_column_and_row():
    table = sincos_2d((2, 3), 8)
    column, row, slow = 2, 1, 10_000**-0.5
    expected = [f(axis * w) for axis in (column, row) for f in (np.sin, np.cos) for w in (1, slow)]
    np.testing.assert_allclose(table[5], expected, rtol=1e-6)
    assert table.dtype == np.float32 and table.shape == (6, 8)


def test_patches_are_rows_first_with_their_channels_last():
    patches = patchify(X, 2)
    np.testing.assert_array_equal(patches[1, 4], X[1, 2:4, 2:4].reshape(-1))
    np.testing.assert_array_equal(unpatchify(patches, (2, 3), 2), X)


def test_every_patch_time_and_label_is_seen():
    base = apply()(variables(), X, T, LABELS)
    assert base.shape == X.shape and base.dtype == jnp.float32
    moved = [
        apply()(variables(), X.at[0, 3, 5, 2].add(1.0), T, LABELS),
        apply()(variables(), X, T.at[0].add(0.2), LABELS),
        apply()(variables(), X, T, LABELS.at[0].set(2)),
    ]
    for other in moved:
        assert float(jnp.abs(other - base)[0].reshape(2, 2, 3, 2, 3).max(axis=(1, 3, 4)).min()) > 1e-5
        np.testing.assert_array_equal(other[1], base[1])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": 18}, "model.width=18 must be a multiple of 4"),
        ({"num_heads": 3}, "model.width=16 must be a multiple of 4, for the positions, and of model.num_heads=3"),
        ({"patch_size": 0}, "model.patch_size=0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Sizes(**{"num_layers": 2, "width": 16, "num_heads": 2, **changes})


def test_scalars_condition_beside_the_time_and_change_nothing_else():
    told = NET.clone(num_scalars=1)
    shapes = nn.meta.unbox(jax.eval_shape(told.init, jax.random.key(0), X, T, LABELS, T))["params"]
    assert shapes.keys() - variables()["params"].keys() == {"scalars_0"}
    drawn = jax.tree.map(lambda s: 0.2 * jnp.ones(s.shape), shapes["scalars_0"])
    given = {**variables(), "params": {**variables()["params"], "scalars_0": drawn}}
    apply_told = jax.jit(told.apply)
    first, second = (apply_told(given, X, T, LABELS, jnp.array([scalar, 0.1])) for scalar in (0.1, 0.9))
    assert np.abs(first - second)[0].max() > 1e-5
    np.testing.assert_array_equal(first[1], second[1])
    silent = {**given, "params": {**given["params"], "scalars_0": jax.tree.map(jnp.zeros_like, drawn)}}
    np.testing.assert_allclose(apply_told(silent, X, T, LABELS, T), apply()(variables(), X, T, LABELS), rtol=1e-5)


def test_a_kernel_with_forward_derivatives_can_be_asked_for():
    assert dataclasses.replace(SIZES, attention="sliced").block().implementation == "sliced"
    assert SIZES.block().implementation == "auto"


def test_patches_must_divide_the_maps():
    with pytest.raises(ConfigError, match=r"model.patch_size=4 does not divide maps of 4x6"):
        Sizes(patch_size=4).grid((4, 6, 3))
