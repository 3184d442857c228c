"""Meissonic's transformer: what is read and what is not, rotary positions, squares of neighbours, options."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError, parse
from jaxar.methods import maskgit
from jaxar.models.bidirectional import Sizes
from jaxar.models.multimodal import MultimodalTransformer, Options, gather_squares, rotary, scatter_squares
from jaxar.nn import rope

GRID, VOCAB, TEXT = (4, 6), 7, (4, 5)
SIZES = Sizes(num_layers=2, width=16, num_heads=2, dropout=0.0)
FULL = Options(joint_layers=1, compress=True, micro=(32.0, 0.0, 6.0))
PLAIN = Options(joint_layers=1, micro=FULL.micro)
IDS = jnp.asarray(np.random.default_rng(1).integers(VOCAB, size=(2, GRID[0] * GRID[1])))
KNOWN = jnp.asarray(np.random.default_rng(2).random(IDS.shape) < 0.5)
COND = {
    "text": jnp.asarray(np.random.default_rng(5).normal(size=(2, *TEXT)), jnp.float32),
    "text_mask": jnp.array([[False, False, True, True], [True] * 4]),
    "text_null": jnp.zeros(2, bool),
    "micro": jnp.broadcast_to(jnp.array(FULL.micro), (2, 3)),
}


def network(options):
    return MultimodalTransformer(SIZES, options, VOCAB, GRID, text=TEXT)


@functools.cache
def variables(options):
    """Weights large enough for the logits to depend on every input."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        scale = np.sqrt(leaf.shape[-2]) if path[-1].key == "kernel" else 2
        return jnp.asarray(rng.normal(size=leaf.shape) / scale + (path[-1].key == "scale"), jnp.float32)

    shapes = jax.eval_shape(network(options).init, jax.random.key(0), IDS, KNOWN, COND)
    return jax.tree_util.tree_map_with_path(fill, nn.meta.unbox(shapes))


@functools.cache
def apply(options):
    return jax.jit(lambda cond, ids=IDS, known=KNOWN, v=None: network(options).apply(v, ids, known, cond))


def logits(options, cond=COND, weights=None, **inputs):
    return apply(options)(cond, **inputs, v=variables(options) if weights is None else weights)


def test_padding_of_the_text_and_ids_of_masked_tokens_have_no_influence_and_words_have():
    base = logits(FULL)
    assert base.shape == (*IDS.shape, VOCAB) and base.dtype == jnp.float32
    noise = {**COND, "text": COND["text"].at[0, :2].set(9.0)}
    np.testing.assert_array_equal(logits(FULL, noise), base)
    np.testing.assert_array_equal(logits(FULL, ids=jnp.where(KNOWN, IDS, 0)), base)
    other = logits(FULL, {**COND, "text": COND["text"].at[0, 2].add(1.0)})
    assert np.abs(other - base)[0].max() > 1e-3
    np.testing.assert_array_equal(other[1], base[1])
    assert np.abs(logits(FULL, ids=jnp.where(KNOWN, (IDS + 1) % VOCAB, IDS)) - base).max() > 1e-3


def test_a_null_caption_replaces_the_text():
    null = logits(FULL, {**COND, "text_null": jnp.array([True, False])})
    text = COND["text"].at[0].set(variables(FULL)["params"]["null_text"])
    np.testing.assert_array_equal(null, logits(FULL, {**COND, "text": text}))
    assert np.abs(null - logits(FULL))[0].max() > 1e-3


def test_words_reach_the_image_through_the_multimodal_blocks_alone():
    """Other words of the same mean: without the gates of multi-modal blocks nobody notices."""
    shift = jnp.asarray(np.random.default_rng(6).normal(size=TEXT[1]), jnp.float32)
    cond = {**COND, "text": COND["text"].at[:, 2].add(shift).at[:, 3].add(-shift)}
    params = variables(FULL)["params"]
    closed = {"params": {**params, "image_modulation": jax.tree.map(jnp.zeros_like, params["image_modulation"])}}
    np.testing.assert_allclose(logits(FULL, cond, closed), logits(FULL, weights=closed), rtol=1e-3, atol=1e-3)
    assert np.abs(logits(FULL, cond) - logits(FULL)).max() > 1e-2


def test_micro_conditions_change_the_logits_and_are_by_default_what_the_options_say():
    base = logits(FULL)
    for i in range(3):
        other = logits(FULL, {**COND, "micro": COND["micro"].at[0, i].add(1.0)})
        assert np.abs(other - base)[0].max() > 1e-3, i
        np.testing.assert_array_equal(other[1], base[1])
    micro = functools.partial(network(FULL).apply, variables(FULL), batch=2, method="_micro")
    np.testing.assert_array_equal(micro({}), COND["micro"])
    with pytest.raises(ConfigError, match="must hold a default for each of the 2 micro-conditions"):
        micro({"micro": COND["micro"][:, :2]})


def test_the_share_of_masked_tokens_changes_the_logits():
    """Codes and mask have the same embedding, so that nothing else of the tokens can be read."""
    table = {"embedding": jnp.ones((VOCAB + 1, SIZES.width))}
    blind = {"params": {**variables(FULL)["params"], "token_embedding": table}}
    place = jnp.broadcast_to(jnp.arange(IDS.shape[1]), IDS.shape)
    few, many, as_few = (logits(FULL, weights=blind, known=known) for known in (place < 4, place < 20, place >= 20))
    assert np.abs(few - many).max() > 1e-3
    np.testing.assert_array_equal(few, as_few)


def test_squares_of_neighbours_become_rows_and_back():
    x = jnp.arange(2 * 24 * 3, dtype=jnp.float32).reshape(2, 24, 3)
    rows = gather_squares(x, GRID)
    assert rows.shape == (2, 6, 12)
    np.testing.assert_array_equal(scatter_squares(rows, GRID), x)
    np.testing.assert_array_equal(rows[:, 4].reshape(2, 4, 3), x[:, jnp.array([14, 15, 20, 21])])


@pytest.mark.parametrize("options, count", [(FULL, 6), (PLAIN, 24)])
def test_blocks_see_a_quarter_of_the_rows(options, count):
    embed = functools.partial(network(options).apply, method="_embed")
    assert jax.eval_shape(embed, variables(options), IDS, KNOWN).shape == (2, count, SIZES.width)


def test_rotary_positions_are_relative_on_the_grid_and_leave_the_text_alone():
    table = rotary((3, 4), 16, 2)
    rng = np.random.default_rng(3)
    q, k = (jnp.asarray(np.tile(rng.normal(size=16), (1, 14, 1, 1)), jnp.float32) for _ in range(2))
    turned_q, turned_k = rope.rotate(q, table)[0, :, 0], rope.rotate(k, table)[0, :, 0]
    products = np.asarray(turned_q @ turned_k.T)[2:, 2:]
    by_offset = {}
    for i, j in np.ndindex(12, 12):
        by_offset.setdefault((i // 4 - j // 4, i % 4 - j % 4), []).append(products[i, j])
    assert max(np.ptp(values) for values in by_offset.values()) < 1e-5
    means = np.array([np.mean(values) for values in by_offset.values()])
    assert np.abs(means[:, None] - means)[~np.eye(len(means), dtype=bool)].min() > 1e-4  # every offset is told apart
    np.testing.assert_array_equal(turned_q[:2], q[0, :2, 0])


def test_published_heads_are_divided_into_16_56_and_56_channels():
    table = np.asarray(rotary((2, 2), 128, 0).sin)
    turns_by_row, turns_by_column = table[2] != 0, table[1] != 0
    assert [2 * int(np.sum(x)) for x in (~turns_by_row & ~turns_by_column, turns_by_row, turns_by_column)] == [
        16,
        56,
        56,
    ]
    frequencies = 10_000.0 ** -(np.arange(28) / 28)
    np.testing.assert_allclose(table[2][turns_by_row], np.sin(frequencies), rtol=1e-5)


def test_learned_positions_take_the_place_of_rotary_ones():
    options = dataclasses.replace(PLAIN, positions="learned")
    everywhere = {"ids": jnp.ones_like(IDS), "known": jnp.ones_like(KNOWN)}
    equal = logits(options, **everywhere)
    assert np.abs(equal[:, 1:] - equal[:, :1]).max() > 1e-3
    params = variables(options)["params"]
    without = {"params": {**params, "position_embedding": jax.tree.map(jnp.zeros_like, params["position_embedding"])}}
    equal = logits(options, weights=without, **everywhere)
    np.testing.assert_allclose(equal, jnp.broadcast_to(equal[:, :1], equal.shape), atol=1e-4)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"multimodal": {"joint_layers": 0}}, "model.multimodal.joint_layers=0 must lie in 1..2"),
        ({"multimodal": {"joint_layers": 3}}, "model.multimodal.joint_layers=3 must lie in 1..2"),
        ({"multimodal": {}}, "model.multimodal.joint_layers is missing"),
        ({"multimodal": {"joint_layers": 1}, "width": 24}, "multiple of 8, which rotary positions need; use width=16"),
        ({"multimodal": {"joint_layers": 1, "positions": "none"}}, "model.multimodal.positions"),
    ],
)
def test_options_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        parse(maskgit.Model, {"num_layers": 2, "width": 16, "num_heads": 2, **values}, "model")
