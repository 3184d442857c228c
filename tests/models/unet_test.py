"""The U-Net: what reaches its output, and sizes that it cannot have. Meshes are tried by the conformance suite."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.models import unet

SIZES = unet.Sizes(channels=8, multipliers=(1, 2), num_blocks=1, attention=(4,), num_heads=2)
NET = unet.UNet(SIZES, out_channels=3, num_classes=4)
X = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))


@pytest.fixture(scope="module")
def variables():
    """Random weights: at the start the output is zero."""
    fresh = jax.eval_shape(NET.init, jax.random.key(0), X, jnp.zeros(2), jnp.zeros(2, int))
    shapes, tree = jax.tree.flatten(nn.meta.unbox(fresh))
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(size=s.shape) * 0.3, jnp.float32) for s in shapes])


@pytest.fixture(scope="module")
def apply(variables):
    return jax.jit(lambda x, t, labels: NET.apply(variables, x, t, labels))


def test_time_class_and_every_pixel_reach_every_pixel(variables, apply):
    t, labels = jnp.array([0.1, 0.7]), jnp.array([0, 4])
    y = apply(X, t, labels)
    assert y.shape == (2, 8, 8, 3) and y.dtype == jnp.float32
    assert np.abs(apply(X, t + 0.2, labels) - y).min() > 1e-7
    assert np.abs(apply(X, t, labels[::-1]) - y).min() > 1e-7
    moved = apply(X.at[0, 0, 0, 0].add(1.0), t, labels)
    assert np.abs(moved[0, -1, -1] - y[0, -1, -1]).min() > 1e-7
    np.testing.assert_array_equal(moved[1], y[1])


def test_attention_is_where_it_is_asked_for_and_in_the_middle(variables):
    names = {name for name in variables["params"] if name.endswith("_attention")}
    assert names == {"middle_attention", "down_1_block_0_attention", "up_1_block_0_attention", "up_1_block_1_attention"}


@pytest.mark.parametrize(
    "changes, shape, message",
    [
        ({"channels": 6}, (8, 8, 3), "model.channels=6 must be a multiple of 4"),
        ({"multipliers": ()}, (8, 8, 3), r"model.multipliers=\(\) must hold"),
        ({"num_blocks": 0}, (8, 8, 3), "model.num_blocks=0"),
        ({}, (7, 7, 3), "halves the side 1 times, the maps have 7x7"),
        ({"attention": (3,)}, (8, 8, 3), r"model.attention=\(3,\): no level has maps of side 3; use \[8, 4\]"),
        ({"num_heads": 5}, (8, 8, 3), "model.num_heads=5 does not divide 16 channels"),
    ],
)
def test_mistakes_are_named(changes, shape, message):
    fields = {"channels": 8, "multipliers": (1, 2), "num_blocks": 1, "attention": (4,), "num_heads": 2, **changes}
    with pytest.raises(ConfigError, match=message):
        unet.Sizes(**fields).check(shape)
