"""The next-scale transformer: causality over scales, cached scales, inputs, initialisation."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.models.next_scale import NextScaleTransformer, Sizes
from jaxar.nn.transformer import split_layers

SCALES, VOCAB, CLASSES, CHANNELS = (4, 9, 16), 7, 5, 3  # the first scale is 2x2
TOKENS, LEVEL = sum(SCALES), np.repeat(np.arange(3), SCALES)
SIZES = Sizes(num_layers=2, width=16, num_heads=2)
FEATURES = jnp.asarray(np.random.default_rng(3).normal(size=(2, TOKENS - SCALES[0], CHANNELS)), jnp.float32)
LABELS = jnp.array([4, CLASSES])


def network(**changes):
    return NextScaleTransformer(dataclasses.replace(SIZES, **changes), VOCAB, SCALES, CHANNELS, CLASSES)


@functools.cache
def variables(shared=False):
    boxed = jax.eval_shape(network(shared_adaln=shared).init, jax.random.key(0), FEATURES, LABELS)
    leaves, tree = jax.tree.flatten(nn.meta.unbox(boxed))
    rng = np.random.default_rng(0)
    return tree.unflatten([jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves])


@functools.cache
def logits(shared=False):
    return jax.jit(network(shared_adaln=shared).apply)(variables(shared), FEATURES, LABELS)


@pytest.mark.parametrize("changes", [{}, {"shared_adaln": True}, {"unroll": True}], ids=str)
def test_cached_scales_equal_the_full_forward(changes):
    shared, unroll = changes.get("shared_adaln", False), changes.get("unroll", False)
    net = network(shared_adaln=shared).clone(unroll=unroll)

    @jax.jit
    def run(variables):
        variables = split_layers(variables) if unroll else variables
        condition = net.apply(variables, LABELS, method="condition")
        cache, pieces = net.init_cache(2), []
        for scale, inputs in enumerate((None, FEATURES[:, :9], FEATURES[:, 9:])):
            piece, cache = net.apply(variables, inputs, scale, condition, cache, method="extend")
            pieces.append(piece)
        return jnp.concatenate(pieces, axis=1)

    np.testing.assert_allclose(run(variables(shared)), logits(shared), rtol=1e-4, atol=1e-4)


def test_a_scale_sees_the_inputs_of_its_own_and_coarser_scales_alone():
    apply = lambda variables, x: network().apply(variables, x, LABELS[:1])[0].sum(-1)  # noqa: E731
    gradient = jax.jit(jax.jacrev(apply, argnums=1))(variables(), FEATURES[:1])[:, 0]  # [n, m, c]
    seen = np.asarray((gradient != 0).any(-1))
    np.testing.assert_array_equal(seen, LEVEL[None, SCALES[0] :] <= LEVEL[:, None])


def test_modulations_come_from_the_label_alone_and_are_computed_once():
    condition = jax.jit(lambda v: network().apply(v, LABELS, method="condition"))(variables())
    assert condition.layers.shape == (2, 2, 1, 6, 16) and condition.head.shape == (2, 1, 2, 16)
    # `extend` takes them as given: no multiplication with the adaLN kernels is left in it.
    net = network()

    def extend(variables, condition):
        return net.apply(variables, FEATURES[:, :9], 1, condition, net.init_cache(2), method="extend")[0]

    without = {"params": {k: v for k, v in variables()["params"].items() if "modulation" not in k}}
    jax.eval_shape(extend, without, condition)


def test_initialisation_is_the_published_one():
    params = nn.meta.unbox(
        jax.jit(network(width=192, num_heads=3, num_layers=8).init)(jax.random.key(0), FEATURES, LABELS)
    )
    params, std = params["params"], np.sqrt(1 / (3 * 192))
    layers = params["stack"]["layers"]
    expected = [
        (layers["attention"]["query"]["kernel"], std),
        (layers["mlp"]["up"]["kernel"], std),
        (layers["attention"]["out"]["kernel"], std / 4),  # sqrt(2 depth) = 4
        (layers["mlp"]["down"]["kernel"], std / 4),
        (params["head"]["kernel"], 0.02 * std),
        (params["head_modulation"]["kernel"], 0.5 * std),
        (params["modulation"]["kernel"][..., : 2 * 192], 1e-3 * std),
        (params["modulation"]["kernel"][..., 2 * 192 :], 0.5 * std),
        (params["positions"], std),
        (params["class_embedding"]["embedding"], std),
    ]
    for kernel, stddev in expected:
        np.testing.assert_allclose(kernel.std(), stddev, rtol=0.1)
    np.testing.assert_allclose(layers["attention"]["scale"], np.log(4), rtol=1e-6)
    for bias in (layers["attention"]["query"]["bias"], params["modulation"]["bias"], params["head"]["bias"]):
        np.testing.assert_array_equal(bias, 0)


def test_bfloat16_is_finite_and_close():
    half = jax.jit(network(dtype="bfloat16").apply)(variables(), FEATURES, LABELS)
    assert half.dtype == jnp.float32 and jnp.isfinite(half).all()
    assert 1e-4 < np.abs(half - logits()).max() / logits().std() < 0.2


def test_published_sizes():
    """VAR-d16 has 310 million parameters."""
    net = NextScaleTransformer(
        Sizes(), 4096, tuple(s * s for s in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)), channels=32, num_classes=1000
    )
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 679, 32)), jnp.zeros(1, jnp.int32))
    assert round(sum(x.size for x in jax.tree.leaves(shapes)) / 1e6) == 310


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"model.width=17 must be a multiple of num_heads=2; use width=16"):
        dataclasses.replace(SIZES, width=17)
