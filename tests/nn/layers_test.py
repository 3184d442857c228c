import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.nn import layers


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def init(module, *args):
    return jax.tree.map(
        lambda x: x.unbox(), jax.jit(module.init)(jax.random.key(0), *args), is_leaf=lambda x: hasattr(x, "unbox")
    )


def test_norms_are_their_formulas():
    x = 3 * normal(2, 5, 8) + 1
    rms, norm = layers.RMSNorm(eps=0.1), layers.LayerNorm(eps=0.1)
    scale, bias = normal(8, seed=1), normal(8, seed=2)
    np.testing.assert_allclose(
        rms.apply({"params": {"scale": scale}}, x),
        scale * x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1),
        rtol=1e-5,
    )
    standard = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1)
    np.testing.assert_allclose(
        norm.apply({"params": {"scale": scale, "bias": bias}}, x), scale * standard + bias, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(layers.LayerNorm(eps=0.1, affine=False).apply({}, x), standard, rtol=1e-4, atol=1e-5)


def test_norms_of_bfloat16_are_computed_in_float32():
    x = (100 + normal(1, 4, 512)).astype(jnp.bfloat16)
    expected = layers.LayerNorm(affine=False).apply({}, x.astype(jnp.float32))
    result = layers.LayerNorm(affine=False, dtype=jnp.bfloat16).apply({}, x)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(result, expected.astype(jnp.bfloat16))


def test_mlp_and_swiglu_are_their_formulas():
    x, up, down, gate = normal(2, 3, 4), normal(4, 6, seed=1), normal(6, 4, seed=2), normal(4, 6, seed=3)
    b1, b2 = normal(6, seed=4), normal(4, seed=5)
    params = {"up": {"kernel": up, "bias": b1}, "down": {"kernel": down, "bias": b2}}
    h = np.asarray(x @ up + b1)
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    np.testing.assert_allclose(layers.MLP(6).apply({"params": params}, x), h @ down + b2, atol=1e-5)
    exact = layers.MLP(6, activation="gelu").apply({"params": params}, x)
    assert 1e-5 < np.abs(exact - layers.MLP(6).apply({"params": params}, x)).max() < 1e-2
    params = {name: {"kernel": w} for name, w in (("gate", gate), ("up", up), ("down", down))}
    h = np.asarray(x @ gate)
    h = h / (1 + np.exp(-h)) * (x @ up)
    np.testing.assert_allclose(layers.SwiGLU(6).apply({"params": params}, x), h @ down, atol=1e-5)


def test_embedding_gathers_rows_and_shows_ids_out_of_range():
    table = normal(5, 3)
    rows = layers.Embedding(5, 3).apply({"params": {"embedding": table}}, jnp.array([4, 0, 5]))
    np.testing.assert_array_equal(rows[:2], table[jnp.array([4, 0])])
    assert jnp.isnan(rows[2]).all()


def test_modulation_gives_each_layer_its_own_vectors():
    c = normal(2, 1, 4)
    module = layers.Modulation(3, (0.1, 0.2))
    params = {"kernel": normal(3, 4, 8, seed=1), "bias": normal(3, 8, seed=2)}
    result = module.apply({"params": params}, c)
    assert result.shape == (3, 2, 1, 2, 4)
    silu = c / (1 + np.exp(-c))
    expected = [silu @ params["kernel"][i] + params["bias"][i] for i in range(3)]
    np.testing.assert_allclose(result.reshape(3, 2, 1, 8), np.stack(expected), atol=1e-5)


def test_shared_modulation_adds_an_offset_per_layer():
    c = normal(2, 1, 4)
    module = layers.Modulation(3, (0.1, 0.2), offset_stddevs=(1.0, 1.0))
    params = init(module, c)["params"]
    assert params["kernel"].shape == (1, 4, 8)
    result = module.apply({"params": params}, c)
    offsets = params["offset"].reshape(3, 1, 1, 2, 4)
    np.testing.assert_allclose(
        result[1:] - result[:1], jnp.broadcast_to(offsets[1:] - offsets[:1], (2, 2, 1, 2, 4)), atol=1e-5
    )


def test_modulation_chunks_start_with_their_own_size():
    kernel = init(layers.Modulation(2, (1e-3, 0.5)), normal(1, 1, 128))["params"]["kernel"]
    np.testing.assert_allclose(kernel.reshape(2, 128, 2, 128).std(axis=(0, 1, 3)), [1e-3, 0.5], rtol=0.05)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    x = normal(4000, 3, 2) + 2
    kept = layers.drop_path(x, jnp.float32(0.25), jax.random.key(0))
    alive = np.asarray((kept != 0).all(axis=(1, 2)))
    np.testing.assert_array_equal(kept[~alive], 0)
    np.testing.assert_allclose(kept[alive], x[alive] / 0.75, rtol=1e-6)
    assert abs(alive.mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    np.testing.assert_array_equal(layers.drop_path(x, jnp.float32(0.0), jax.random.key(0)), x)


def test_weights_cast_ahead_give_the_same_result():
    x = normal(2, 3, 16)
    module = layers.MLP(32, dtype=jnp.bfloat16)
    variables = init(module, x)
    ahead = layers.cast_weights(variables, jnp.bfloat16)
    assert ahead["params"]["up"]["kernel"].dtype == jnp.bfloat16
    assert ahead["params"]["up"]["bias"].dtype == jnp.float32
    np.testing.assert_array_equal(module.apply(ahead, x), module.apply(variables, x))


@pytest.mark.parametrize("use_bias", [False, True])
def test_head_gives_float32_logits_that_start_at_zero(use_bias):
    x = normal(2, 3, 16).astype(jnp.bfloat16)
    module = layers.Head(5, use_bias=use_bias, dtype=jnp.bfloat16)
    logits = module.apply(init(module, x), x)
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, 0)
