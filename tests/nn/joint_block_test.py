"""The multi-modal block: with equal weights it is the ordinary block over both sequences, and its weights are two."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxar.kernels.mask import DynamicRanges
from jaxar.nn import rope
from jaxar.nn.joint_block import JointStack, Pair
from jaxar.nn.transformer import BlockSpec, Shared, Stack

SPEC = BlockSpec(num_heads=2, head_dim=8, hidden=24, affine=False, bias="qkv", out_bias=True, qk_norm="l2")
TEXT, IMAGE, LAYERS, WIDTH = 3, 4, 2, 16
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X = Pair(normal(2, TEXT, WIDTH), normal(2, IMAGE, WIDTH))
VECTORS = 0.3 * normal(LAYERS, 2, 1, 6, WIDTH)
ROTARY = rope.rotary_1d(np.arange(TEXT + IMAGE), 8)
PADDED = DynamicRanges.left_padded(jnp.array([0, 2]), TEXT + IMAGE, TEXT + IMAGE)
ORDINARY = Stack(SPEC, LAYERS)


def ordinary(variables):
    x = jnp.concatenate(X, axis=1)
    return ORDINARY.apply(variables, x, rotary=ROTARY, dynamic=PADDED, modulation=VECTORS)[0]


def init():
    boxed = jax.eval_shape(ORDINARY.init, jax.random.key(0), X.text, modulation=VECTORS)
    return jax.tree.map(lambda leaf: 0.3 * normal(*leaf.shape), nn.meta.unbox(boxed))


def joint(text, image):
    streams = {}
    for name, layers in (("text", text), ("image", image)):
        attention, mlp = (layers["params"]["layers"][part] for part in ("attention", "mlp"))
        streams[name] = {**attention, "mlp": mlp}
    stack = JointStack(SPEC, LAYERS)
    return jax.jit(stack.apply)({"params": {"layers": streams}}, X, Pair(VECTORS, VECTORS), Shared(ROTARY, PADDED))


def test_two_streams_of_equal_weights_are_one_block_over_both_sequences_and_other_weights_are_read():
    weights, others = init(), init()
    same, expected = joint(weights, weights), ordinary(weights)
    np.testing.assert_allclose(jnp.concatenate(same, axis=1), expected, rtol=1e-4, atol=1e-4)
    changed = joint(others, weights)
    assert np.abs(changed.image - same.image)[0].max() > 0.1  # the image reads the text
    for i in range(2):
        assert np.abs(changed.text - same.text)[i].max() > 0.1
