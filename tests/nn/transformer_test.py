"""The stack: one parameter layout for loop and straight line, recomputation, grouped queries, stochastic depth."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.kernels.mask import MaskSpec
from jaxar.nn import cache as kv
from jaxar.nn import rope
from jaxar.nn.attention import Attention
from jaxar.nn.transformer import BlockSpec, Stack, split_layers

WIDTH, LAYERS, LENGTH = 16, 3, 5
SPEC = BlockSpec(num_heads=4, head_dim=4, hidden=24, num_kv_heads=2, norm="rms", feed_forward="swiglu")
ADALN = BlockSpec(num_heads=2, head_dim=8, hidden=24, affine=False, bias="qv", out_bias=True, qk_norm="l2", dropout=0.5)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X, MODULATION = normal(2, LENGTH, WIDTH), normal(LAYERS, 2, 1, 6, WIDTH, seed=1)
ROTARY, MASK = rope.rotary_1d(np.arange(LENGTH), 4), MaskSpec.causal(LENGTH)
rotary_call = dict(rotary=ROTARY, mask=MASK)


@functools.cache
def variables(spec, modulated=False):
    inputs = dict(modulation=MODULATION) if modulated else {}
    boxed = jax.jit(lambda key: Stack(spec, LAYERS).init(key, X, **inputs))(jax.random.key(0))
    # Large weights, so that no layer is nearly the identity.
    return jax.tree.map(lambda x: x + 0.3 * normal(*x.shape), nn.meta.unbox(boxed))


def output_and_gradient(stack, variables, **inputs):
    def loss(variables):
        y, _ = stack.apply(variables, X, **inputs)
        return jnp.sum(y**2), y

    (_, y), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)
    return y, grads


@pytest.fixture(scope="module")
def plain():
    return output_and_gradient(Stack(SPEC, LAYERS), variables(SPEC), **rotary_call)


@pytest.mark.parametrize("remat", [pytest.param("full", marks=pytest.mark.slow), "dots"])
def test_recomputation_changes_nothing(plain, remat):
    other = output_and_gradient(Stack(SPEC, LAYERS, remat=remat), variables(SPEC), **rotary_call)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), plain, other)


def test_a_straight_line_of_layers_equals_the_loop(plain):
    line, split = Stack(SPEC, LAYERS, unroll=True), split_layers(variables(SPEC))
    shapes = jax.eval_shape(lambda key: line.init(key, X), jax.random.key(0))
    assert jax.tree.map(jnp.shape, nn.meta.unbox(shapes)) == jax.tree.map(jnp.shape, split)
    y, gradient = output_and_gradient(line, split, **rotary_call)
    np.testing.assert_allclose(y, plain[0], rtol=2e-4, atol=2e-4)
    expected = split_layers(plain[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), gradient, expected)


def test_recomputation_leaves_out_what_it_says():
    """Residuals kept between the passes, in elements: all of them, the outputs of weights, the layers' inputs."""

    def kept(remat):
        stack = Stack(SPEC, LAYERS, remat=remat)

        def residuals(variables):
            return jax.vjp(lambda v: stack.apply(v, X, **rotary_call)[0], variables)[1]

        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(residuals, variables(SPEC))))

    assert kept("none") > kept("dots") > kept("full")


def test_layers_are_stacked_and_differ():
    kernel = variables(SPEC)["params"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.shape == (LAYERS, WIDTH, SPEC.hidden)
    boxed = jax.eval_shape(lambda key: Stack(SPEC, LAYERS).init(key, X), jax.random.key(0))
    assert boxed["params"]["layers"]["mlp"]["up"]["kernel"].names == ("layers", "embed", "mlp")
    fresh = nn.meta.unbox(jax.jit(lambda key: Stack(SPEC, LAYERS).init(key, X))(jax.random.key(0)))
    kernel = fresh["params"]["layers"]["mlp"]["up"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01


def test_grouped_queries_equal_repeated_heads(plain):
    full = dataclasses.replace(SPEC, num_kv_heads=None)
    params = jax.tree.map(lambda x: x, variables(SPEC))
    attention = params["params"]["layers"]["attention"]
    for name in ("key", "value"):
        attention[name] = {"kernel": jnp.repeat(attention[name]["kernel"], 2, axis=2)}
    y, _ = jax.jit(lambda v: Stack(full, LAYERS).apply(v, X, **rotary_call))(params)
    np.testing.assert_allclose(y, plain[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unroll", [False, True])
def test_cached_parts_equal_the_whole(plain, unroll):
    stack = Stack(SPEC, LAYERS, unroll=unroll)

    @jax.jit
    def run(variables):
        variables = split_layers(variables) if unroll else variables
        cache, parts, begin = kv.create(LAYERS, 2, LENGTH + 2, 2, 4), [], 0
        for count in (2, 1, 2):
            rows = jax.tree.map(lambda table: table[begin : begin + count], ROTARY)  # noqa: B023 - called at once
            dynamic = MaskSpec.causal(begin + count).rows_at(cache.length, count)
            y, cache = stack.apply(
                variables, X[:, begin : begin + count], rotary=rows, dynamic=dynamic, cache=cache, kv_len=begin + count
            )
            parts.append(y)
            begin += count
        return jnp.concatenate(parts, axis=1), cache

    y, cache = run(variables(SPEC))
    np.testing.assert_allclose(y, plain[0], rtol=1e-4, atol=1e-4)
    assert cache.length == LENGTH


@jax.jit
def run_adaln(variables, modulation, key):
    rngs = {} if key is None else {"dropout": key}
    stack = Stack(ADALN, LAYERS)
    return stack.apply(variables, X, modulation=modulation, deterministic=key is None, rngs=rngs)[0]


def adaln(modulation, key=None):
    return run_adaln(variables(ADALN, True), modulation, key)


def test_closed_gates_make_the_identity():
    y = adaln(MODULATION.at[..., :2, :].set(0))
    np.testing.assert_array_equal(y, X)
    assert np.abs(adaln(MODULATION) - X).max() > 0.1


def test_modulation_order_is_gates_scales_shifts_attention_first():
    """With the other gate closed, only the vectors of the open branch matter."""
    for branch in (0, 1):
        closed = MODULATION.at[..., 1 - branch, :].set(0)
        for vector in (2, 3, 4, 5):
            moved = np.abs(adaln(closed.at[..., vector, :].add(1.0)) - adaln(closed)).max()
            assert (moved > 1e-3) == (vector % 2 == branch)
    # A scale of -1 wipes the input of the branch out, so that only the shift is left.
    only_shift = MODULATION.at[..., 2:4, :].set(-1)
    y = adaln(only_shift)
    np.testing.assert_allclose(y - X, (y - X)[:, :1].repeat(LENGTH, axis=1), atol=1e-4)


def test_dropout_is_on_only_when_asked_and_differs_between_layers_and_keys():
    first, second = adaln(MODULATION, jax.random.key(0)), adaln(MODULATION, jax.random.key(1))
    np.testing.assert_array_equal(first, adaln(MODULATION, jax.random.key(0)))
    assert np.abs(first - second).max() > 1e-3
    assert np.abs(first - adaln(MODULATION)).max() > 1e-3


def test_drop_path_grows_from_zero_at_the_first_layer():
    """A single layer has rate 0; of three, the last is dropped with the given rate."""
    params = variables(ADALN, True)
    spec = dataclasses.replace(ADALN, dropout=0.0)

    @functools.partial(jax.jit, static_argnums=0)
    def run(layers, key):
        cut = jax.tree.map(lambda x: x[:layers], params)
        stack = Stack(spec, layers, drop_path=0.9)
        return stack.apply(cut, X, modulation=MODULATION[:layers], deterministic=False, rngs={"dropout": key})[0]

    np.testing.assert_array_equal(run(1, jax.random.key(0)), run(1, jax.random.key(1)))
    assert np.abs(run(3, jax.random.key(0)) - run(3, jax.random.key(1))).max() > 1e-3


def test_l2_attention_ignores_lengths_and_caps_its_scale():
    module = Attention(num_heads=2, head_dim=8, bias="none", qk_norm="l2")
    params = nn.meta.unbox(module.init(jax.random.key(0), X))["params"]
    np.testing.assert_allclose(params["scale"], np.log(4), rtol=1e-6)
    apply = jax.jit(lambda p: module.apply({"params": p}, X)[0])
    longer = params | {"query": {"kernel": 10 * params["query"]["kernel"]}}
    np.testing.assert_allclose(apply(params), apply(longer), atol=1e-5)

    def at(value):
        return apply(params | {"scale": jnp.full(2, value)})

    np.testing.assert_allclose(at(np.log(100)), at(9.0), atol=1e-6)
    assert np.abs(at(np.log(100)) - at(np.log(50))).max() > 1e-4


def test_bias_of_the_projections():
    names = {"none": set(), "qv": {"query", "value"}, "qkv": {"query", "key", "value"}}
    for bias, expected in names.items():
        shapes = jax.eval_shape(Attention(2, 8, bias=bias).init, jax.random.key(0), X)["params"]
        assert {name for name in ("query", "key", "value", "out") if "bias" in shapes[name]} == expected
