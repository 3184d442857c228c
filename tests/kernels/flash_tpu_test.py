"""The TPU kernel, interpreted on CPUs, against attention in float64; what it visits, how it is split, how it lowers."""

import functools
import importlib.util
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, NamedSharding, PartitionSpec

from jaxar.kernels.attention import FLASH_TPU_LENGTH, attention
from jaxar.kernels.flash_tpu import flash_attention
from jaxar.kernels.mask import DynamicRanges, MaskSpec
from jaxar.kernels.runs import Run, fixed
from jaxar.partition import MeshConfig, make_mesh

BLOCK = 8
SCALES = (1, 4, 9, 16)
LENGTH = sum(SCALES)  # 30: the last block of 8 is not full
MASKS = {
    "full": MaskSpec.full(LENGTH),
    "cross": MaskSpec.full(21, 27),
    "causal": MaskSpec.causal(LENGTH),
    "causal_rows": MaskSpec.causal(LENGTH).rows(17, 6),
    "window": MaskSpec.window(LENGTH, 7),
    "prefix": MaskSpec.prefix(5, LENGTH),
    "block_causal": MaskSpec.block_causal(SCALES),
    "block_diagonal": MaskSpec.block_diagonal(SCALES),
    "clean_noisy": MaskSpec.clean_noisy((1, 4, 9), prefix_len=2),
    "empty_rows": MaskSpec((Run(0, 17, ()), Run(17, 27, (fixed(3, 9), fixed(18, 20))), Run(27, 30, ())), LENGTH),
    "nothing": MaskSpec((Run(0, 7, ()),), LENGTH),
}
ROWS = jnp.arange(LENGTH)
DYNAMIC = {
    "shared_length": DynamicRanges.below(jnp.int32(19), LENGTH),
    "length_per_row": DynamicRanges.below(jnp.array([0, 17]), LENGTH),
    "left_padding": DynamicRanges.left_padded(jnp.array([0, 4]), LENGTH, LENGTH),
    "two_ranges": DynamicRanges(jnp.stack([0 * ROWS, ROWS + 9])[None], jnp.stack([ROWS - 3, ROWS + 99])[None]),
}


@functools.partial(jax.jit, static_argnames=("mask", "block_t", "block_s"))
def _flash(q, k, v, cotangent, dynamic=None, *, mask, block_t=BLOCK, block_s=BLOCK):
    """[out, dq, dk, dv] of the interpreted kernel."""

    def run(q, k, v):
        return flash_attention(
            q, k, v, mask, dynamic, q.shape[-1] ** -0.5, block_t=block_t, block_s=block_s, interpret=True
        )

    out, pullback = jax.vjp(run, q, k, v)
    return out, *pullback(cotangent)


def _exact(q, k, v, cotangent, allowed):
    """[out, dq, dk, dv] in float64 from the closed form of softmax attention; `allowed` is bool [b or 1, t, s]."""
    groups, scale = q.shape[2] // k.shape[2], q.shape[3] ** -0.5
    q, k, v, cotangent = (np.asarray(x, np.float64) for x in (q, k, v, cotangent))
    kk, vv = (np.repeat(x, groups, axis=2) for x in (k, v))
    weights = np.exp(scale * np.einsum("bthe,bshe->bhts", q, kk)) * allowed[:, None]
    total = weights.sum(-1, keepdims=True)
    p = weights / np.where(total > 0, total, 1)
    out = np.einsum("bhts,bshe->bthe", p, vv)
    dp = np.einsum("bthe,bshe->bhts", cotangent, vv)
    d_logits = scale * p * (dp - (dp * p).sum(-1, keepdims=True))
    dq = np.einsum("bhts,bshe->bthe", d_logits, kk)
    dk, dv = np.einsum("bhts,bthe->bshe", d_logits, q), np.einsum("bhts,bthe->bshe", p, cotangent)
    return out, dq, *(x.reshape(*k.shape[:3], groups, -1).sum(3) for x in (dk, dv))


def _inputs(mask, dtype=jnp.float32, heads=4, kv_heads=2, head_dim=32, peaked=1.0):
    rng = np.random.default_rng(0)
    queries, keys = (2, mask.num_queries, heads, head_dim), (2, mask.kv_len, kv_heads, head_dim)
    q, k, v, cotangent = (rng.standard_normal(shape) for shape in (queries, keys, keys, queries))
    return [jnp.asarray(x, dtype) for x in (peaked * q, k, v, cotangent)]


def _assert_exact(mask, dynamic=None, blocks=(BLOCK, BLOCK), tolerance=2e-6, **shapes):
    inputs = _inputs(mask, **shapes)
    allowed = mask.dense()[None]
    if dynamic is not None:
        allowed = allowed & np.asarray(dynamic.dense(mask.kv_len)).reshape(-1, *allowed.shape[1:])
    got = _flash(*inputs, dynamic, mask=mask, block_t=blocks[0], block_s=blocks[1])
    for name, actual, want in zip(("out", "dq", "dk", "dv"), got, _exact(*inputs, allowed)):
        assert actual.dtype == inputs[0].dtype
        error = np.abs(np.asarray(actual, np.float64) - want).max() / max(1.0, np.abs(want).max())
        assert error < tolerance, f"{name} is off by {error}"


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_output_and_gradients_under_every_mask(mask):
    _assert_exact(mask)


@pytest.mark.parametrize("dynamic", DYNAMIC.values(), ids=DYNAMIC)
def test_ranges_that_are_data_narrow_the_mask(dynamic):
    _assert_exact(MASKS["causal" if dynamic.start.shape[0] == 2 else "clean_noisy"], dynamic)


@pytest.mark.parametrize("shapes", [{"head_dim": 64, "kv_heads": 4}, {"head_dim": 128, "kv_heads": 1}], ids=str)
def test_head_dims_and_groups(shapes):
    _assert_exact(MASKS["block_causal"], **shapes)


@pytest.mark.parametrize("blocks", [(16, 8), (8, 24), (None, None)], ids=str)
def test_block_sizes_change_nothing(blocks):
    _assert_exact(MASKS["block_causal"], blocks=blocks)


@pytest.mark.parametrize("name", ["causal", "block_diagonal"])
def test_bfloat16_accumulates_in_float32(name):
    """Logits around 10, which differ by a tenth where they are rounded to bfloat16."""
    _assert_exact(MASKS[name], dtype=jnp.bfloat16, peaked=4.0, tolerance=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("head_dim,kv_heads", [(32, 4), (64, 2), (128, 1)])
@pytest.mark.parametrize("blocks", [(8, 16), (16, 8)], ids=str)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_every_combination(mask, blocks, head_dim, kv_heads, dtype):
    tolerance = 1e-2 if dtype == jnp.bfloat16 else 2e-6
    _assert_exact(mask, blocks=blocks, head_dim=head_dim, kv_heads=kv_heads, dtype=dtype, tolerance=tolerance)


def test_queries_without_keys_give_zeros_and_zero_gradients():
    mask = MASKS["empty_rows"]
    out, dq, dk, dv = _flash(*_inputs(mask), mask=mask)
    empty_query, unseen_key = ~mask.dense().any(1), ~mask.dense().any(0)
    assert empty_query.sum() == 20 and unseen_key.sum() == 22
    for gradient, unused in ((out, empty_query), (dq, empty_query), (dk, unseen_key), (dv, unseen_key)):
        np.testing.assert_array_equal(gradient[:, unused], 0)
        assert (np.abs(gradient[:, ~unused]).max(-1) > 0).all()


def test_large_masked_logits_leave_gradients_finite():
    """Keys that overflow exp, seen by no query whose output counts."""
    mask = MASKS["block_diagonal"]
    q, k, v, cotangent = _inputs(mask)
    k = k.at[:, 14:].multiply(1e4)
    cotangent = cotangent.at[:, 14:].set(0)
    got = _flash(q, k, v, cotangent, mask=mask)
    small = _exact(q[:, :14], k[:, :14], v[:, :14], cotangent[:, :14], mask.dense()[None, :14, :14])
    for actual, want in zip(got, small):
        assert np.isfinite(actual).all()
        np.testing.assert_allclose(actual[:, :14], want, atol=1e-5)


def _tiles(mask):
    """Which tiles of BLOCK x BLOCK hold an attended pair, from the dense mask alone."""
    t, s = mask.num_queries, mask.kv_len
    dense = np.pad(mask.dense(), ((0, -t % BLOCK), (0, -s % BLOCK)))
    return dense.reshape(-(-t // BLOCK), BLOCK, -(-s // BLOCK), BLOCK).any((1, 3))


def _poisoned(x, block):
    return x.at[:, block * BLOCK : (block + 1) * BLOCK].set(jnp.nan)


def _blocks_with_nan(x):
    return np.array([np.isnan(x[:, i : i + BLOCK]).any() for i in range(0, x.shape[1], BLOCK)])


@pytest.mark.parametrize("name", ["causal", "window", "block_causal", "clean_noisy"])
def test_exactly_the_tiles_of_the_mask_are_visited(name):
    """NaN in one block spreads to all that visit it, even through a product with zero, and to no other."""
    mask = MASKS[name]
    tiles, (q, k, v, cotangent) = _tiles(mask), _inputs(mask)
    assert not tiles.all()
    np.testing.assert_array_equal(mask.visited_blocks(BLOCK, BLOCK), tiles)
    for block in range(tiles.shape[1]):
        out, dq, _, _ = _flash(q, _poisoned(k, block), _poisoned(v, block), cotangent, mask=mask)
        np.testing.assert_array_equal(_blocks_with_nan(out), tiles[:, block])
        np.testing.assert_array_equal(_blocks_with_nan(dq), tiles[:, block])
    for block in range(tiles.shape[0]):
        _, _, dk, dv = _flash(_poisoned(q, block), k, v, _poisoned(cotangent, block), mask=mask)
        np.testing.assert_array_equal(_blocks_with_nan(dk), tiles[block])
        np.testing.assert_array_equal(_blocks_with_nan(dv), tiles[block])


@pytest.mark.sharded
@pytest.mark.parametrize("batch,kv_heads", [(4, 2), (3, 3)], ids=["divisible", "indivisible"])
def test_a_mesh_splits_batch_and_heads_and_gathers_nothing(batch, kv_heads):
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.standard_normal((batch, LENGTH, 2 * kv_heads, 8)), jnp.float32)
    k, v = jnp.asarray(rng.standard_normal((2, batch, LENGTH, kv_heads, 8)), jnp.float32)
    dynamic = DynamicRanges.left_padded(jnp.arange(batch), LENGTH, LENGTH)

    def run(q, k, v, dynamic):
        out = attention(q, k, v, MASKS["causal"], dynamic, implementation="flash_tpu")
        return (out**2).sum(), out

    gradients = jax.value_and_grad(run, (0, 1, 2), has_aux=True)
    expected = jax.jit(gradients)(q, k, v, dynamic)
    mesh = make_mesh(MeshConfig(2, 2, 2))
    divisible = kv_heads == 2
    layout = PartitionSpec(("data", "fsdp"), None, "tensor") if divisible else PartitionSpec()
    placed = jax.device_put((q, k, v), NamedSharding(mesh, layout))
    with jax.set_mesh(mesh):
        compiled = jax.jit(gradients).lower(*placed, dynamic).compile()
        got = compiled(*placed, dynamic)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)
    assert "all-gather" not in compiled.as_text()
    if divisible:
        for array in (got[0][1], *got[1]):
            assert array.sharding.shard_shape(array.shape)[::2] == (1, array.shape[2] // 2)


def _structs(length, dtype=jnp.bfloat16, head_dim=64, **kwargs):
    q = jax.ShapeDtypeStruct((2, length, 4, head_dim), dtype, **kwargs)
    k = jax.ShapeDtypeStruct((2, length, 2, head_dim), dtype, **kwargs)
    return q, k, k


def _gradients(mask, implementation):
    def loss(q, k, v):
        return attention(q, k, v, mask, implementation=implementation).astype(jnp.float32).sum()

    return jax.jit(jax.grad(loss, (0, 1, 2)))


@pytest.mark.parametrize(
    "length,implementation,calls",
    [(FLASH_TPU_LENGTH, "auto", 3), (FLASH_TPU_LENGTH - 1, "auto", 0), (680, "flash_tpu", 3)],
)
def test_lowering_for_tpus(length, implementation, calls):
    """Three kernels (forward, dq, dk with dv) lower without a TPU; `auto` takes them for long sequences."""
    device = AbstractDevice(platform="tpu", device_kind="TPU v5 lite", num_cores=1)
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        traced = _gradients(MaskSpec.causal(length), implementation).trace(*_structs(length))
        program = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert program.count("tpu_custom_call") == calls


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install jax[tpu]")
@pytest.mark.parametrize("dtype,head_dim", list(itertools.product([jnp.bfloat16, jnp.float32], [32, 64, 128])))
def test_compiling_for_four_chips_of_a_v5e(monkeypatch, dtype, head_dim):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    mesh = make_mesh(MeshConfig(data=2, tensor=2), topology.devices)
    mask = MaskSpec.block_causal(tuple(side * side for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)))
    layout = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        compiled = _gradients(mask, "flash_tpu").lower(*_structs(680, dtype, head_dim, sharding=layout)).compile()
    assert compiled.as_text().count("tpu_custom_call") == 3
    assert "all-gather" not in compiled.as_text()
