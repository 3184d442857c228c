"""Masks as ranges: every operation equals the same operation on dense booleans."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.kernels.mask import DynamicRanges, MaskSpec
from jaxar.kernels.runs import Edge, Run, fixed

LENGTH = 13
MASKS = {
    "full": MaskSpec.full(LENGTH),
    "causal": MaskSpec.causal(LENGTH),
    "window": MaskSpec.window(LENGTH, 4),
    "wide_window": MaskSpec.window(LENGTH, 40),
    "prefix": MaskSpec.prefix(5, LENGTH),
    "block_causal": MaskSpec.block_causal((1, 4, 8)),
    "block_diagonal": MaskSpec.block_diagonal((1, 4, 8)),
    "cells": MaskSpec.cells(13, 1),
    "clean_noisy": MaskSpec.clean_noisy((1, 3), prefix_len=5),
    "clean_noisy_without_prefix": MaskSpec((*MaskSpec.clean_noisy((2, 1, 3)).runs, Run(12, 13, ())), LENGTH),
    "empty": MaskSpec.block_causal((6, 7)) & MaskSpec((Run(0, 6, (fixed(9, 12),)), Run(6, 13, (fixed(3, 9),))), LENGTH),
}
all_masks = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def _tokens(*numbers):
    """Block number of every position, blocks of the given lengths."""
    return np.repeat(np.arange(len(numbers)), numbers)


def test_constructors_state_the_published_structures():
    q, k = np.ogrid[:LENGTH, :LENGTH]
    block = _tokens(1, 4, 8)
    expected = {
        "full": np.ones((LENGTH, LENGTH), bool),
        "causal": k <= q,
        "window": (k <= q) & (q - k < 4),
        "wide_window": k <= q,
        "prefix": (k <= q) | (k < 5) & (q < 5),
        "block_causal": block[k] <= block[q],
        "block_diagonal": block[k] == block[q],
        "cells": k <= q,
    }
    for name, dense in expected.items():
        np.testing.assert_array_equal(MASKS[name].dense(), dense, err_msg=name)


def test_noisy_blocks_attend_earlier_clean_blocks_and_themselves():
    mask = MaskSpec.clean_noisy((1, 3), prefix_len=5).dense()
    block = np.concatenate([np.full(5, -1), _tokens(1, 3), _tokens(1, 3)])
    noisy = np.arange(13) >= 9
    q, k = np.ogrid[:13, :13]
    clean_rows = ~noisy[k] & (block[k] <= block[q])
    noisy_rows = np.where(noisy[k], block[k] == block[q], block[k] < block[q])
    np.testing.assert_array_equal(mask, np.where(noisy[q], noisy_rows, clean_rows))


@pytest.mark.parametrize("a,b", list(itertools.combinations_with_replacement(MASKS, 2)))
def test_intersection_equals_intersection_of_dense_masks(a, b):
    both = MASKS[a] & MASKS[b]
    np.testing.assert_array_equal(both.dense(), MASKS[a].dense() & MASKS[b].dense())


def test_long_masks_are_rules_not_lists():
    for mask in (
        MaskSpec.causal(9451),
        MaskSpec.window(9451, 300),
        MaskSpec.prefix(120, 9451),
        MaskSpec.causal(9451) & MaskSpec.window(9451, 300) & MaskSpec.prefix(120, 9451),
    ):
        assert len(mask.runs) <= 4


def test_equal_masks_are_equal_and_hash_alike():
    for mask in (MaskSpec.causal(LENGTH) & MASKS["wide_window"], MASKS["causal"] & MASKS["full"], MASKS["causal"]):
        assert mask == MaskSpec.causal(LENGTH) and hash(mask) == hash(MaskSpec.causal(LENGTH)) and mask.is_causal
    assert (MASKS["full"] & MASKS["full"]).is_full and not MASKS["causal"].is_full


@all_masks
def test_rows_and_traced_rows_are_rows_of_the_dense_mask(mask):
    dense = mask.dense()
    for first, count in ((0, 13), (0, 1), (12, 1), (3, 6), (5, 8)):
        np.testing.assert_array_equal(mask.rows(first, count).dense(), dense[first : first + count])
        shared = mask.rows_at(jnp.int32(first), count)
        np.testing.assert_array_equal(shared.dense(LENGTH), dense[first : first + count])
    per_row = mask.rows_at(jnp.array([0, 2, 7]), 4).dense(LENGTH)
    np.testing.assert_array_equal(per_row, np.stack([dense[f : f + 4] for f in (0, 2, 7)]))


@all_masks
@pytest.mark.parametrize("block_t,block_s", [(1, 1), (3, 4), (4, 3), (16, 5), (2, 16)])
def test_block_bounds_visit_exactly_the_blocks_that_hold_a_key(mask, block_t, block_s):
    shape = (-(-LENGTH // block_t), block_t, -(-LENGTH // block_s), block_s)
    padded = np.zeros((shape[0] * block_t, shape[2] * block_s), bool)
    padded[:LENGTH, :LENGTH] = mask.dense()
    holds_a_key = padded.reshape(shape).any((1, 3))
    visited = np.zeros_like(holds_a_key)
    for row, bounds in zip(visited, mask.block_bounds(block_t, block_s)):
        for start, stop in bounds:
            assert not row[start:stop].any()  # disjoint: no block is visited twice
            row[start:stop] = True
    np.testing.assert_array_equal(visited, holds_a_key)


@all_masks
def test_used_keys_drop_the_keys_that_no_query_attends(mask):
    dense = mask.dense()
    for first, count in ((0, 13), (0, 1), (9, 4), (2, 7)):
        spans, packed = mask.rows(first, count).used_keys()
        rows = dense[first : first + count]
        used = np.zeros(LENGTH, bool)
        for start, stop in spans:
            used[start:stop] = True
        np.testing.assert_array_equal(rows & ~used, False)
        if packed is not None:
            np.testing.assert_array_equal(packed.dense(), rows[:, used])
    one_block = MaskSpec.clean_noisy((4, 4)).rows(12, 4)  # two ranges, and yet nothing left to mask
    assert one_block.used_keys() == (((0, 4), (12, 16)), MaskSpec.full(4, 8))


def test_malformed_masks_are_refused():
    with pytest.raises(ValueError, match="without gaps"):
        MaskSpec((Run(1, 3, ()),), 3)
    with pytest.raises(ValueError, match=r"within 0\.\.3"):
        MaskSpec((Run(0, 3, (fixed(0, 4),)),), 3)
    with pytest.raises(ValueError, match="disjoint"):
        MaskSpec((Run(0, 3, (fixed(0, 2), fixed(1, 3))),), 3)
    with pytest.raises(ValueError, match="within"):
        MaskSpec((Run(0, 3, ((Edge(0), Edge(2, follows=True)),)),), 3)
    with pytest.raises(ValueError, match="cannot be intersected"):
        MaskSpec.causal(3) & MaskSpec.causal(4)
    with pytest.raises(ValueError, match="not among the 3"):
        MaskSpec.causal(3).rows(2, 2)


def test_cache_lengths_per_row_or_shared():
    keys = np.arange(5)
    per_row = DynamicRanges.below(jnp.array([2, 5]), 3).dense(5)
    np.testing.assert_array_equal(per_row, np.broadcast_to(keys < np.array([2, 5])[:, None, None], (2, 3, 5)))
    shared = DynamicRanges.below(jnp.int32(4), 3).dense(5)
    np.testing.assert_array_equal(shared, np.broadcast_to(keys < 4, (3, 5)))


def test_left_padding_is_hidden_and_attends_itself_alone():
    padding = np.array([0, 2, 4])
    causal = np.tril(np.ones((6, 6), bool))
    expected = (causal & (np.arange(6) >= padding[:, None, None])) | np.eye(6, dtype=bool)
    dynamic = DynamicRanges.left_padded(jnp.array(padding), 6, 6) & MaskSpec.causal(6)
    np.testing.assert_array_equal(dynamic.dense(6), expected)
    for first in range(5):  # the same rows, decoded two at a time against the cache
        rows = DynamicRanges.left_padded(jnp.array(padding), 2, 6, jnp.full(3, first))
        rows = MaskSpec.causal(6).rows_at(jnp.int32(first), 2) & rows
        np.testing.assert_array_equal(rows.dense(6), expected[:, first : first + 2])


@all_masks
def test_dynamic_ranges_intersect_with_static_masks(mask):
    start = jnp.array([[[0] * 13], [[3] * 13]])
    stop = jnp.array([[[9] * 13], [list(range(13))]])
    extra = jnp.asarray(np.random.default_rng(0).random((13, 13)) < 0.7)
    dynamic = DynamicRanges(start, stop, extra)
    expected = np.asarray(dynamic.dense(13)) & mask.dense()
    np.testing.assert_array_equal((dynamic & mask).dense(13), expected)
    np.testing.assert_array_equal((mask & dynamic).dense(13), expected)
    both = dynamic & DynamicRanges.below(jnp.int32(7), 13)
    np.testing.assert_array_equal(both.dense(13), np.asarray(dynamic.dense(13)) & (np.arange(13) < 7))
    with pytest.raises(ValueError, match="cannot be intersected"):
        mask & DynamicRanges.below(jnp.int32(7), 1)
