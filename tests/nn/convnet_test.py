import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.nn import convnet
from jaxar.nn.convnet import ConvStack

STACK = ConvStack(8, (1, 2), num_res_blocks=1, groups=4)


def params_of(module, *shape):
    return nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape)))["params"]


def test_stride_follows_from_the_levels():
    stack = ConvStack(8, (1, 1, 2), num_res_blocks=1, groups=4)
    encoder, decoder = convnet.Encoder(stack, 5), convnet.Decoder(stack, 3)
    images = jax.ShapeDtypeStruct((2, 16, 8, 3), jnp.float32)
    features, _ = jax.eval_shape(lambda k, x: encoder.init_with_output(k, x), jax.random.key(0), images)
    assert features.shape == (2, 4, 2, 5)
    out, _ = jax.eval_shape(lambda k, x: decoder.init_with_output(k, x), jax.random.key(0), features)
    assert out.shape == images.shape


def test_attention_sits_where_the_stack_says():
    both = params_of(convnet.Encoder(STACK, 5), 1, 4, 4, 3)
    assert "attention_0" in both["level_1"] and "attention_0" not in both["level_0"] and "attention" in both["middle"]
    neither = ConvStack(8, (1, 2), 1, 4, level_attention=False, mid_attention=False)
    plain = params_of(convnet.Decoder(neither, 3), 1, 2, 2, 5)
    assert "attention_0" not in plain["level_1"] and "attention" not in plain["middle"]
    assert set(plain["level_1"]) == {"block_0", "block_1"}  # a decoder has one block more


def test_every_parameter_carries_logical_names():
    boxed = jax.eval_shape(convnet.Decoder(STACK, 3).init, jax.random.key(0), jnp.zeros((1, 2, 2, 5)))
    is_box = lambda x: isinstance(x, nn.meta.AxisMetadata)  # noqa: E731
    assert all(map(is_box, jax.tree.leaves(boxed, is_leaf=is_box)))
    assert boxed["params"]["conv_in"]["kernel"].names == ("conv_window", "conv_window", "conv_in", "conv_out")
    assert boxed["params"]["conv_out"]["kernel"].names[-1] is None  # pixels are not sharded


def test_downsample_pads_right_and_bottom_alone():
    module, x = convnet.Downsample(), jnp.arange(16.0).reshape(1, 4, 4, 1)
    params = {"params": {"conv": {"kernel": jnp.ones((3, 3, 1, 1)), "bias": jnp.zeros(1)}}}
    padded = np.pad(np.arange(16.0).reshape(4, 4), ((0, 1), (0, 1)))
    expected = [[padded[i : i + 3, j : j + 3].sum() for j in (0, 2)] for i in (0, 2)]
    np.testing.assert_array_equal(module.apply(params, x)[0, :, :, 0], expected)


def test_upsample_repeats_pixels():
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    params = {"params": {"conv": {"kernel": kernel, "bias": jnp.zeros(1)}}}
    out = convnet.Upsample().apply(params, jnp.asarray([[1.0, 2], [3, 4]]).reshape(1, 2, 2, 1))
    np.testing.assert_array_equal(out[0, :, :, 0], [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]])


def test_attention_against_a_loop():
    module, x = convnet.AttentionBlock(groups=1), jax.random.normal(jax.random.key(0), (1, 2, 3, 4))
    params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(1), x))
    flat = np.asarray(x[0].reshape(6, 4), np.float64)
    normed = (flat - flat.mean()) / np.sqrt(flat.var() + 1e-6)
    kernel = {k: np.asarray(v["kernel"][0, 0], np.float64) for k, v in params["params"].items() if k != "norm"}
    query, key, value = (normed @ kernel[name] for name in ("query", "key", "value"))
    weights = np.exp(query @ key.T / 2)  # sqrt of the four channels
    mixed = weights / weights.sum(axis=1, keepdims=True) @ value
    np.testing.assert_allclose(
        jax.jit(module.apply)(params, x)[0].reshape(6, 4), flat + mixed @ kernel["out"], rtol=1e-5, atol=1e-6
    )


def test_bfloat16_computes_in_bfloat16_and_stores_float32():
    module = convnet.ResidualBlock(8, 4, dtype=jnp.bfloat16)
    out, variables = jax.eval_shape(
        lambda k, x: module.init_with_output(k, x), jax.random.key(0), jax.ShapeDtypeStruct((1, 2, 2, 8), jnp.bfloat16)
    )
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(channels=12, multipliers=(1, 2), groups=8), "groups=8 must divide"),
        (dict(channels=8, multipliers=()), "multipliers=()"),
        (dict(channels=32, multipliers=(1,), num_res_blocks=0), "num_res_blocks=0"),
    ],
)
def test_mistakes_are_named(kwargs, message):
    with pytest.raises(ConfigError) as error:
        ConvStack(**kwargs)
    assert message in str(error.value)
