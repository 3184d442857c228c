"""Markovian scales and the masked branch: what a scale sees, and which layers are whose."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxar.kernels.attention import attention
from jaxar.kernels.mask import MaskSpec
from jaxar.models.hmar import MaskedBranch, branch_of, shared_layers, shared_variables
from jaxar.models.next_scale import NextScaleTransformer, Sizes

SCALES, VOCAB, CLASSES, CHANNELS = (1, 4, 9), 7, 5, 3
LEVEL = np.repeat(np.arange(3), SCALES)
SIZES = Sizes(num_layers=3, width=16, num_heads=2)
NETWORK = NextScaleTransformer(SIZES, VOCAB, SCALES, CHANNELS, CLASSES, markov=True)
BRANCH = MaskedBranch(dataclasses.replace(SIZES, num_layers=2), VOCAB)
FEATURES = jnp.asarray(np.random.default_rng(3).normal(size=(2, 13, CHANNELS)), jnp.float32)
LABELS = jnp.array([4, CLASSES])


def filled(init, *args):
    boxed = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0), *args))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32), boxed)


@functools.cache
def variables():
    return filled(NETWORK.init, FEATURES, LABELS)


@functools.cache
def logits():
    return jax.jit(NETWORK.apply)(variables(), FEATURES, LABELS)


def test_the_mask_is_one_block_per_scale_and_equals_the_dense_one():
    mask = MaskSpec.block_diagonal(SCALES)
    dense = LEVEL[:, None] == LEVEL
    np.testing.assert_array_equal(mask.dense(), dense)
    np.testing.assert_array_equal(mask.visited_blocks(1, 1), dense)  # no tile without an attended pair
    published = MaskSpec.block_diagonal(tuple(p * p for p in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)))
    assert published.dense().sum() == sum(p**4 for p in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    q, k, v = jnp.asarray(np.random.default_rng(1).normal(size=(3, 1, len(LEVEL), 2, 4)), jnp.float32)
    scores = np.einsum("bthe,bshe->bhts", q, k) / 2
    weights = np.where(dense, np.exp(scores), 0)
    expected = np.einsum("bhts,bshe->bthe", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(attention(q, k, v, mask), expected, atol=1e-5)


def test_a_scale_by_itself_equals_the_forward_of_all_scales():
    """No cache is handed on: what a scale knows of the others is in its input."""

    @jax.jit
    def run(variables):
        condition = NETWORK.apply(variables, LABELS, method="condition")
        parts = [(None, 0), (FEATURES[:, :4], 1), (FEATURES[:, 4:], 2)]
        pieces = [NETWORK.apply(variables, x, k, condition, None, method="extend") for x, k in parts]
        assert all(cache is None for _, cache in pieces)
        return jnp.concatenate([piece for piece, _ in pieces], axis=1)

    assert NETWORK.init_cache(2) is None
    np.testing.assert_allclose(run(variables()), logits(), rtol=1e-4, atol=1e-4)


def test_gradients_stay_within_a_scale():
    apply = lambda variables, x: NETWORK.apply(variables, x, LABELS[:1])[0].sum(-1)  # noqa: E731
    gradient = jax.jit(jax.jacrev(apply, argnums=1))(variables(), FEATURES[:1])[:, 0]
    np.testing.assert_array_equal((gradient != 0).any(-1), LEVEL[None, 1:] == LEVEL[:, None])


@functools.cache
def masked_forward():
    mask = MaskSpec.block_diagonal(SCALES)

    @jax.jit
    def run(model, branch, own, hidden):
        shared, of_shared = shared_layers(NETWORK, BRANCH), shared_variables(model, BRANCH)
        condition = shared.apply(of_shared, LABELS, method="condition")
        summed, added = BRANCH.apply(branch, FEATURES, own, hidden, method="streams")
        x, _ = shared.apply(of_shared, summed, condition, added=added, method="activations")
        return BRANCH.apply(branch, x, condition.start, mask)

    return run


@functools.cache
def fresh_branch():
    """The branch that copies the network's last layers, with a mask vector that is not zero."""
    vector = jnp.asarray(np.random.default_rng(5).normal(size=16), jnp.float32)
    return {"params": {**branch_of(variables()["params"], BRANCH), "mask_embedding": vector}}


def test_a_fresh_branch_repeats_the_network_where_tokens_tell_nothing():
    """Shared layers, the copied ones and the head are together the network; every parameter is used."""
    seen = jnp.zeros((2, 13), bool)
    same = masked_forward()(variables(), fresh_branch(), jnp.zeros_like(FEATURES), seen)
    np.testing.assert_allclose(same, logits(), rtol=1e-4, atol=1e-4)
    told = masked_forward()(variables(), fresh_branch(), jnp.ones_like(FEATURES), seen)
    assert np.abs(told - same)[:, 1:].max() > 0.1
    shapes = jax.eval_shape(BRANCH.init, jax.random.key(0), jnp.zeros((1, 1, 16)), jnp.zeros((1, 16)))
    assert jax.tree.map(jnp.shape, fresh_branch()) == jax.tree.map(jnp.shape, nn.meta.unbox(shapes))


def test_hidden_tokens_tell_nothing_and_are_told_apart_from_absent_ones():
    own = jnp.asarray(np.random.default_rng(7).normal(size=FEATURES.shape), jnp.float32)
    hidden = jnp.arange(13) % 3 == 0
    rows = jnp.broadcast_to(hidden, (2, 13))
    result = masked_forward()(variables(), fresh_branch(), own, rows)
    changed = masked_forward()(variables(), fresh_branch(), jnp.where(hidden[:, None], 9.0, own), rows)
    np.testing.assert_array_equal(result, changed)
    absent = masked_forward()(variables(), fresh_branch(), jnp.where(hidden[:, None], 0.0, own), rows & False)
    assert np.abs(result - absent).max() > 0.1
