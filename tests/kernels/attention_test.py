"""Every implementation of attention against the oracle, and what each promises beside the numbers."""

import functools
import math

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.kernels import xla
from jaxar.kernels.attention import attention
from jaxar.kernels.mask import DynamicRanges, MaskSpec
from jaxar.kernels.runs import Run, fixed

IMPLEMENTATIONS = ("xla", "sliced")
LENGTH = 13
MASKS = {
    "full": MaskSpec.full(LENGTH),
    "cross": MaskSpec.full(5, LENGTH),
    "causal": MaskSpec.causal(LENGTH),
    "causal_rows": MaskSpec.causal(LENGTH).rows(8, 5),
    "window": MaskSpec.window(LENGTH, 4),
    "prefix": MaskSpec.prefix(5, LENGTH),
    "block_causal": MaskSpec.block_causal((1, 4, 8)),
    "block_diagonal": MaskSpec.block_diagonal((1, 4, 8)),
    "cells": MaskSpec.cells(4, 3),
    "clean_noisy": MaskSpec.clean_noisy((1, 3), prefix_len=5),
    "empty_rows": MaskSpec((Run(0, 6, ()), Run(6, 11, (fixed(3, 9), fixed(10, 12))), Run(11, 13, ())), LENGTH),
    "nothing": MaskSpec((Run(0, 7, ()),), LENGTH),
}
SCALES_256PX = tuple(side * side for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))

implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
all_masks = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


@pytest.fixture(autouse=True)
def _slices_of_few_tokens(monkeypatch):
    monkeypatch.setattr(xla, "MASKED_QUERIES", 5)


def _inputs(mask, dtype=jnp.float32, heads=4, kv_heads=2, head_dim=8):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(2, mask.num_queries, heads, head_dim)] + [(2, mask.kv_len, kv_heads, head_dim)] * 2
    q, k, v = (jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes))
    return q, k, v, jax.random.normal(keys[3], q.shape, dtype)


@functools.partial(jax.jit, static_argnames=("mask", "implementation", "scale"))
def _out_and_gradients(q, k, v, cotangent, dynamic=None, *, mask, implementation, scale=None):
    """[out, dq, dk, dv]."""

    def run(q, k, v):
        return attention(q, k, v, mask, dynamic, scale=scale, implementation=implementation)

    out, pullback = jax.vjp(run, q, k, v)
    return out, *pullback(cotangent)


def _assert_like_oracle(inputs, dynamic=None, tolerance=2e-5, **kwargs):
    exact = [x.astype(jnp.float32) for x in inputs]
    got = _out_and_gradients(*inputs, dynamic, **kwargs)
    expected = _out_and_gradients(*exact, dynamic, **{**kwargs, "implementation": "reference"})
    for name, actual, want, like in zip(("out", "dq", "dk", "dv"), got, expected, inputs[:1] + inputs[:3]):
        assert actual.dtype == like.dtype
        error = np.abs(actual.astype(jnp.float32) - want).max() / max(1.0, np.abs(want).max())
        assert error < tolerance, f"{name} is off by {error}"


@implementations
@all_masks
def test_output_and_gradients_equal_the_oracle(implementation, mask):
    _assert_like_oracle(_inputs(mask), mask=mask, implementation=implementation, scale=0.7)


def test_the_oracle_is_softmax_attention():
    mask = MASKS["clean_noisy"]
    q, k, v, _ = _inputs(mask, heads=4, kv_heads=2)
    out = attention(q, k, v, mask, implementation="reference")
    for head in range(4):
        logits = np.einsum("bte,bse->bts", q[:, :, head], k[:, :, head // 2]) / math.sqrt(8)
        weights = np.exp(logits) * mask.dense()
        expected = np.einsum("bts,bse->bte", weights / weights.sum(-1, keepdims=True), v[:, :, head // 2])
        np.testing.assert_allclose(out[:, :, head], expected, atol=1e-5)


@pytest.mark.parametrize("implementation", ("reference", *IMPLEMENTATIONS))
def test_queries_without_keys_give_zeros_and_zero_gradients(implementation):
    mask = MASKS["empty_rows"]
    out, dq, dk, dv = _out_and_gradients(*_inputs(mask), mask=mask, implementation=implementation)
    empty_query = ~mask.dense().any(1)
    unseen_key = ~mask.dense().any(0)
    assert empty_query.sum() == 8 and unseen_key.sum() == 5
    for gradient, unused in ((out, empty_query), (dq, empty_query), (dk, unseen_key), (dv, unseen_key)):
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[:, unused], 0)
        assert (np.abs(gradient[:, ~unused]).max(-1) > 0).all()


@implementations
def test_large_masked_logits_leave_gradients_finite(implementation):
    mask = MASKS["block_diagonal"]
    q, k, v, cotangent = _inputs(mask)
    k = k.at[:, 5:].multiply(1e4)  # unseen by the first five queries; overflows exp where the mask comes too late
    cotangent = cotangent.at[:, 5:].set(0)
    _assert_like_oracle((q, k, v, cotangent), mask=mask, implementation=implementation)


@pytest.mark.parametrize("implementation", ("reference", *IMPLEMENTATIONS))
def test_bfloat16_inputs_accumulate_in_float32(implementation):
    mask = MASKS["prefix"]
    inputs = _inputs(mask, jnp.bfloat16)
    _assert_like_oracle(inputs, mask=mask, implementation=implementation, tolerance=1.5e-2)


@implementations
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_key_value_heads_are_shared_by_neighbouring_heads(implementation, kv_heads):
    mask = MASKS["causal"]
    _assert_like_oracle(_inputs(mask, kv_heads=kv_heads), mask=mask, implementation=implementation)


DYNAMIC = {
    "shared_length": DynamicRanges.below(jnp.int32(9), LENGTH),
    "length_per_row": DynamicRanges.below(jnp.array([0, 7]), LENGTH),
    "left_padding": DynamicRanges.left_padded(jnp.array([0, 4]), LENGTH, LENGTH),
    "two_ranges": DynamicRanges(
        jnp.array([[[0] * LENGTH, [8] * LENGTH]]), jnp.array([[list(range(LENGTH)), [11] * LENGTH]]) - 2
    ),
    "draft_tree": DynamicRanges(
        jnp.zeros((1, LENGTH), int), jnp.full((1, LENGTH), 99), jnp.tril(jnp.ones((LENGTH, LENGTH), bool), -1)
    ),
}
USES_DATA = ("xla",)


@pytest.mark.parametrize("implementation", USES_DATA)
@pytest.mark.parametrize("dynamic", DYNAMIC.values(), ids=DYNAMIC)
@pytest.mark.parametrize(
    "mask", [MASKS["full"], MASKS["causal"], MASKS["clean_noisy"]], ids=["full", "causal", "noisy"]
)
def test_ranges_that_are_data_equal_the_oracle(implementation, dynamic, mask):
    _assert_like_oracle(_inputs(mask), dynamic, mask=mask, implementation=implementation)


@pytest.mark.parametrize(
    "mask", [MASKS["causal"], MASKS["window"], MASKS["prefix"]], ids=["causal", "window", "prefix"]
)
def test_decoding_row_by_row_equals_the_whole_sequence(mask):
    q, k, v, _ = _inputs(mask)
    padding = jnp.array([0, 4])
    whole = attention(q, k, v, mask, DynamicRanges.left_padded(padding, LENGTH, LENGTH))

    @jax.jit
    def step(position):  # positions differ between the rows of the batch
        dynamic = mask.rows_at(position, 1) & DynamicRanges.left_padded(padding, 1, LENGTH, position)
        query = jnp.take_along_axis(q, position[:, None, None, None], axis=1)
        return attention(query, k, v, dynamic=dynamic)[:, 0]

    for first in range(LENGTH):
        positions = jnp.array([first, LENGTH - 1 - first])
        np.testing.assert_allclose(step(positions), whole[jnp.arange(2), positions], atol=1e-5)


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _equations(inner)


def _dot_flops(fn, *args):
    total = 0
    for equation in _equations(jax.make_jaxpr(fn)(*args).jaxpr):
        if equation.primitive.name == "dot_general":
            (contracting, _), _ = equation.params["dimension_numbers"]
            lhs = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(lhs[axis] for axis in contracting)
    return total


@pytest.mark.parametrize(
    "constructor,saved", [(MaskSpec.block_causal, 1.57), (MaskSpec.block_diagonal, 3.6)], ids=["causal", "diagonal"]
)
def test_slicing_leaves_out_masked_work(monkeypatch, constructor, saved):
    monkeypatch.setattr(xla, "MASKED_QUERIES", 160)
    mask = constructor(SCALES_256PX)
    q = k = v = jax.ShapeDtypeStruct((1, 680, 2, 8), jnp.float32)

    def gradients(implementation):
        def loss(q, k, v):
            return attention(q, k, v, mask, implementation=implementation).sum()

        return jax.grad(loss, (0, 1, 2))

    ratio = _dot_flops(gradients("xla"), q, k, v) / _dot_flops(gradients("auto"), q, k, v)
    assert ratio == pytest.approx(saved, rel=0.02)


def test_pieces_group_small_scales_and_cut_long_causal_runs(monkeypatch):
    monkeypatch.setattr(xla, "MASKED_QUERIES", 160)
    assert xla.pieces(MaskSpec.block_causal(SCALES_256PX)) == [(0, 155), (155, 255), (255, 424), (424, 680)]
    assert xla.pieces(MaskSpec.full(5000)) == [(0, 5000)]
    assert xla.pieces(MaskSpec.causal(400)) == [(0, 160), (160, 320), (320, 400)]
    assert len(xla.pieces(MaskSpec.causal(9451))) == xla.MAX_PIECES


def test_a_full_mask_builds_no_mask():
    shapes = [jax.ShapeDtypeStruct((2, n, 4, 8), jnp.float32) for n in (1, 4096, 4096)]
    equations = _equations(jax.make_jaxpr(attention)(*shapes).jaxpr)
    assert not any(out.aval.dtype == bool for equation in equations for out in equation.outvars)


@pytest.mark.parametrize("implementation", ("reference", *IMPLEMENTATIONS))
def test_forward_mode_agrees_with_finite_differences(implementation):
    mask = MASKS["block_causal"]
    q, k, v, tangent = _inputs(mask)

    def run(q):
        return attention(q, k, v, mask, implementation=implementation)

    _, slope = jax.jvp(run, (q,), (tangent,))
    difference = (run(q + 1e-2 * tangent) - run(q - 1e-2 * tangent)) / 2e-2
    np.testing.assert_allclose(slope, difference, atol=1e-3)


def test_mistakes_are_named():
    q, k, v, _ = _inputs(MASKS["full"])
    with pytest.raises(ConfigError, match="heads=3 is not a multiple of kv_heads=2"):
        attention(q[:, :, :3], k, v)
    with pytest.raises(ConfigError, match="mask is for 5 queries and 13 keys, q and k have 13 and 13"):
        attention(q, k, v, MASKS["cross"])
    with pytest.raises(ConfigError, match=r"dynamic\.start has shape \(1, 4\); it must be"):
        attention(q, k, v, dynamic=DynamicRanges.below(jnp.int32(3), 4))
    with pytest.raises(ConfigError, match=r"dynamic\.extra has shape"):
        attention(
            q, k, v, dynamic=DynamicRanges(jnp.zeros((1, 13), int), jnp.ones((1, 13), int), jnp.ones((2, 2), bool))
        )
    with pytest.raises(ConfigError, match=r"unknown attention implementation 'slice'.*did you mean 'sliced'"):
        attention(q, k, v, implementation="slice")
    with pytest.raises(ConfigError, match=r"'cudnn' needs bfloat16 or float16, got float32.*use 'auto'"):
        attention(q, k, v, implementation="cudnn")
    with pytest.raises(ConfigError, match="'sliced' slices by static masks alone"):
        attention(q, k, v, dynamic=DynamicRanges.below(jnp.int32(3), 13), implementation="sliced")
    with pytest.raises(ConfigError, match=r"'flash_tpu' needs one type for q, k and v, got bfloat16, float32.*'auto'"):
        attention(q.astype(jnp.bfloat16), k, v, implementation="flash_tpu")
    with pytest.raises(ConfigError, match="'flash_tpu' takes ranges alone, and dynamic.extra is given"):
        attention(q, k, v, dynamic=DYNAMIC["draft_tree"], implementation="flash_tpu")
