"""The bidirectional transformer: what it reads and its size; tests/interop compares it with the official one."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.models.bidirectional import BidirectionalTransformer, Sizes

GRID, VOCAB, CLASSES = (2, 3), 11, 5
SIZES = Sizes(num_layers=2, width=16, num_heads=2, dropout=0.0)
IDS = jnp.array([[3, 1, 4, 10, 5, 9], [2, 7, 1, 8, 0, 6]])
KNOWN = jnp.array([[True, False, True, False, False, True], [False] * 6])
LABEL = jnp.array([4, 0])


def network(**changes):
    return BidirectionalTransformer(dataclasses.replace(SIZES, **changes), VOCAB, GRID, CLASSES)


@functools.cache
def variables():
    boxed = jax.eval_shape(network().init, jax.random.key(0), IDS, KNOWN, LABEL)
    leaves, tree = jax.tree.flatten(nn.meta.unbox(boxed))
    rng = np.random.default_rng(0)
    return tree.unflatten([jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves])


apply = jax.jit(network().apply)


def test_masked_ids_are_not_read_and_known_ones_are_seen_everywhere():
    base = apply(variables(), IDS, KNOWN, LABEL)
    assert base.shape == (2, 6, VOCAB) and base.dtype == jnp.float32
    np.testing.assert_array_equal(apply(variables(), jnp.where(KNOWN, IDS, 7), KNOWN, LABEL), base)
    changed = np.asarray(apply(variables(), IDS.at[0, 5].set(2), KNOWN, LABEL) != base)
    assert changed[0].all() and not changed[1].any()
    changed = np.asarray(apply(variables(), IDS, KNOWN, LABEL.at[1].set(3)) != base)
    assert changed[1].all() and not changed[0].any()


def test_the_sequence_is_class_then_tokens_and_the_null_class_is_a_mask():
    net = network()
    assert net.mask_id == VOCAB + CLASSES
    sequence = jnp.concatenate([VOCAB + LABEL[:, None], jnp.where(KNOWN, IDS, net.mask_id)], axis=1)
    full = jax.jit(functools.partial(net.apply, method="sequence_logits"))
    np.testing.assert_allclose(
        full(variables(), sequence)[:, 1:, :VOCAB], apply(variables(), IDS, KNOWN, LABEL), rtol=1e-5, atol=1e-5
    )
    null = full(variables(), sequence.at[:, 0].set(net.mask_id))[:, 1:, :VOCAB]
    np.testing.assert_allclose(null, apply(variables(), IDS, KNOWN, jnp.full(2, CLASSES)), rtol=1e-5, atol=1e-5)


BEFORE = jnp.array([[True, False, True, False, False, True], [False, True, True, True, False, False]])
AFTER = BEFORE.at[0, 1].set(True).at[1, 0].set(True)
MASKED, DUE = jnp.array([[3, 4], [4, 5]]), jnp.array([[3, 4, 1], [4, 5, 0]])


@functools.cache
def masked_logits_with_reuse(num_layers):
    """Of the masked tokens once a token of each row has become known: from everything, with reuse, and of a wrong twin
    that keeps keys and values of masks for the new tokens; the largest difference of whole passes."""
    net, of_all = network(num_layers=num_layers), variables()["params"]
    layers = jax.tree.map(lambda leaf: leaf[:num_layers], of_all["stack"]["layers"])
    own = {"params": {**of_all, "stack": {"layers": layers}}}

    @jax.jit
    def run(own):
        extend = functools.partial(net.apply, own, method="extend")
        everywhere = jnp.broadcast_to(jnp.arange(6), IDS.shape)
        whole, cache = extend(IDS, BEFORE, LABEL, everywhere, net.init_cache(2), True)
        parts = (extend(IDS, AFTER, LABEL, positions, cache, False)[0][:, :2] for positions in (DUE, MASKED))
        exact = jnp.take_along_axis(net.apply(own, IDS, AFTER, LABEL), MASKED[..., None], axis=1)
        return exact, *parts, jnp.abs(whole - net.apply(own, IDS, BEFORE, LABEL)).max()

    return run(own)


def test_old_keys_and_values_are_exact_in_one_layer_and_those_of_masks_are_not():
    exact, reused, twin, whole = masked_logits_with_reuse(1)
    np.testing.assert_allclose(reused, exact, rtol=1e-5, atol=1e-5)
    assert np.abs(twin - exact).max() > 0.05 and whole < 1e-5


def test_old_keys_and_values_are_an_approximation_in_two_layers():
    exact, reused, _, whole = masked_logits_with_reuse(2)
    assert np.abs(reused - exact).max() > 1e-3 and whole < 1e-5


def test_layers_recomputed_in_the_backward_pass_change_nothing():
    def loss(net, variables):
        return jnp.sum(net.apply(variables, IDS, KNOWN, LABEL) ** 2)

    plain, again = (jax.jit(jax.grad(functools.partial(loss, network(remat=r))))(variables()) for r in ("none", "full"))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_alone():
    net = network(dropout=0.5)
    np.testing.assert_array_equal(
        jax.jit(net.apply)(variables(), IDS, KNOWN, LABEL), apply(variables(), IDS, KNOWN, LABEL)
    )
    train = jax.jit(functools.partial(net.apply, deterministic=False))
    a, b = (train(variables(), IDS, KNOWN, LABEL, rngs={"dropout": jax.random.key(i)}) for i in (0, 1))
    assert (a != b).any()


def test_the_published_size_has_172_million_parameters():
    """The paper's 227M count the 54.5M of its tokenizer."""
    net = BidirectionalTransformer(Sizes(), 1024, (16, 16), 1000)
    ids = jnp.zeros((1, 256), jnp.int32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), ids, ids > 0, ids[:, 0])
    layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    rest = 2025 * 768 + 257 * 768 + 768 * 768 + 768 + 4 * 768 + 2025
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 24 * layer + rest == 172_457_193


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="model.width=18"):
        dataclasses.replace(SIZES, width=18, num_heads=4)
    with pytest.raises(ConfigError, match="model.dropout=1.0"):
        dataclasses.replace(SIZES, dropout=1.0)
