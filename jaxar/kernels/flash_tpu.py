"""Flash attention for TPUs in Pallas, with key ranges per query: forward and backward never visit a masked block.

The static mask says which blocks of keys each block of queries must visit; their numbers are prefetched as scalars, so
the grid runs over visited blocks alone, in the forward kernel, in that of dq and, transposed, in that of dk and dv.
Inside a block, positions are compared with the ranges of each query, which may be narrower than the static mask: that
is how ranges that are data come in.

The tests interpret it, lower it for TPUs and, where libtpu is installed, compile it ahead of time for a v5e; it has not
run on a device, and no timing stands behind the block sizes. They follow from arithmetic: a grid step costs about 0.35
us, and 512 x 512 with head_dim 64 is the first tile whose matmuls take as long on a v5e (197 TFLOP/s).

Reference: Dao, FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning, 2023.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxar.kernels.mask import DynamicRanges, MaskSpec
from jaxar.typing import Array, Float, Int, typechecked

LANES = 128
MAX_BLOCK = 512
_LOWEST = -1e30  # logit of masked keys; finite, so that differences of two of them are not NaN


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is static in a call: the mask tiled in blocks of queries and keys."""

    mask: MaskSpec
    scale: float
    block_t: int
    block_s: int
    interpret: bool

    def visits(self, of_keys: bool) -> tuple[np.ndarray, np.ndarray]:
        """Blocks to visit: for each block of queries those of keys, or for each block of keys those of queries.

        Returns:
          int32 [blocks, most visits] block numbers, the last one repeated to the end so that nothing is fetched twice,
          and int32 [blocks], how many of them count.
        """
        visited = self.mask.visited_blocks(self.block_t, self.block_s)
        visited = visited.T if of_keys else visited
        count = visited.sum(1).astype(np.int32)
        index = np.zeros((len(visited), max(1, count.max())), np.int32)
        for row, blocks in zip(index, map(np.flatnonzero, visited)):
            row[:] = np.pad(blocks, (0, len(row) - len(blocks)), mode="edge") if len(blocks) else 0
        return index, count


@typechecked
def flash_attention(
    q: Float[Array, "b t h e"],
    k: Float[Array, "b s k e"],
    v: Float[Array, "b s k e"],
    mask: MaskSpec,
    dynamic: DynamicRanges | None,
    scale: float,
    *,
    block_t: int | None = None,
    block_s: int | None = None,
    interpret: bool = False,
) -> Float[Array, "b t h e"]:
    """Softmax attention without an array of queries by keys; see `attention.attention`.

    Args:
      q, k, v, mask, scale: as there; lengths need not be multiples of a block.
      dynamic: without `extra`.
      block_t, block_s: queries and keys per tile, multiples of 128 on a TPU; None chooses.
      interpret: run on any platform, slowly, for tests.
    """
    t, s = q.shape[1], k.shape[1]
    block_t, block_s = block_t or default_block(t), block_s or default_block(s)
    plan = _Plan(mask, scale, block_t, block_s, interpret)
    q, k, v = (_padded(x.swapaxes(1, 2), 2, block) for x, block in ((q, block_t), (k, block_s), (v, block_s)))
    out = _flash(q, k, v, _padded(_packed_ranges(mask, dynamic), 1, block_t), plan)
    return out[:, :, :t].swapaxes(1, 2)


def default_block(length: int) -> int:
    """The block for a sequence: all of it up to `MAX_BLOCK`, in whole vector registers."""
    return min(MAX_BLOCK, -(-length // LANES) * LANES)


def _padded(x: Array, axis: int, multiple: int) -> Array:
    width = [(0, 0)] * x.ndim
    width[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, width)


def _packed_ranges(mask: MaskSpec, dynamic: DynamicRanges | None) -> Int[Array, "#b t 2*r"]:
    """Ranges as columns start, stop, start, stop, ...: a kernel reads them by slices without a transposition."""
    ranges = mask.rows_at(0, mask.num_queries) if dynamic is None else dynamic & mask
    start, stop = jnp.broadcast_arrays(ranges.start, ranges.stop)
    columns = jnp.stack([start, stop], axis=-2)  # [*b, r, 2, t]
    columns = columns.reshape(*start.shape[:-2], -1, start.shape[-1]).swapaxes(-1, -2)
    return columns if columns.ndim == 3 else columns[None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _flash(q: Array, k: Array, v: Array, ranges: Array, plan: _Plan) -> Array:
    return _forward(q, k, v, ranges, plan)[0]


def _flash_forward(q: Array, k: Array, v: Array, ranges: Array, plan: _Plan) -> tuple[Array, Any]:
    out, log_total = _forward(q, k, v, ranges, plan)
    return out, (q, k, v, ranges, out, log_total[..., 0])


def _flash_backward(plan: _Plan, residuals: Any, d_out: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, ranges, out, log_total = residuals
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    operands = (q, k, v, d_out, log_total[..., None], delta, ranges)
    return _backward_queries(operands, plan), *_backward_keys(operands, plan), None


_flash.defvjp(_flash_forward, _flash_backward)


def _specs(plan: _Plan, head_dim: int, ranges: Array, place: Callable[..., tuple]) -> tuple[pl.BlockSpec, ...]:
    """Block specs of arrays by query [b h t e], by key [b k s e], by query row [b h t 1], and of the ranges.

    Args:
      place: (grid indices, then scalar operands) -> batch, head, kv head, query block, key block.
    """
    per_row = ranges.shape[0] > 1

    def spec(shape: tuple[int, int], *wanted: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, *shape), lambda *at: (*(place(*at)[w] for w in wanted), 0))

    queries = spec((plan.block_t, head_dim), 0, 1, 3)
    keys = spec((plan.block_s, head_dim), 0, 2, 4)
    rows = spec((plan.block_t, 1), 0, 1, 3)
    limits = pl.BlockSpec(
        (None, plan.block_t, ranges.shape[-1]), lambda *at: (place(*at)[0] if per_row else 0, place(*at)[3], 0)
    )
    return queries, keys, rows, limits


def _call(kernel: Callable, grid: tuple[int, ...], num_parallel: int, plan: _Plan, **specs: Any) -> Callable:
    """A kernel over the grid whose last axes, after the `num_parallel` first, run in order and share the scratch."""
    out_shape = specs.pop("out_shape")
    semantics = ("parallel",) * num_parallel + ("arbitrary",) * (len(grid) - num_parallel)
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(num_scalar_prefetch=2, grid=grid, **specs),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
        interpret=plan.interpret,
    )


def _by_query_block(q: Array, k: Array, ranges: Array, plan: _Plan) -> tuple[Any, tuple[int, ...], tuple]:
    """Visits, grid (batch, head, query block, visit) and block specs of the kernels that gather over keys."""
    (b, heads, _, head_dim), groups = q.shape, q.shape[1] // k.shape[1]
    visits = plan.visits(of_keys=False)

    def place(b, h, i, j, index, count):
        return b, h, h // groups, i, index[i, j]

    return visits, (b, heads, *visits[0].shape), _specs(plan, head_dim, ranges, place)


def _forward(q: Array, k: Array, v: Array, ranges: Array, plan: _Plan) -> tuple[Array, Array]:
    """Output [b h t e], and the logarithm of the softmax's denominator [b h t 1]."""
    visits, grid, (queries, keys, rows, limits) = _by_query_block(q, k, ranges, plan)
    column = pltpu.VMEM((plan.block_t, 1), jnp.float32)
    call = _call(
        _forward_kernel,
        grid,
        3,
        plan,
        in_specs=[queries, keys, keys, limits],
        out_specs=[queries, rows],
        out_shape=[q, jax.ShapeDtypeStruct((*q.shape[:3], 1), jnp.float32)],
        scratch_shapes=[column, column, pltpu.VMEM((plan.block_t, q.shape[-1]), jnp.float32)],
    )
    return call(*visits, q, k, v, ranges)


def _forward_kernel(index, count, q, k, v, ranges, out, log_total, peak, total, acc, *, plan: _Plan):
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _start():
        peak[...] = jnp.full(peak.shape, _LOWEST)
        total[...] = jnp.zeros(total.shape)
        acc[...] = jnp.zeros(acc.shape)

    @pl.when(j < count[i])
    def _visit():
        logits = plan.scale * _matmul(q[...], k[...], (1, 1))
        allowed = _allowed(ranges[...], index[i, j], plan)
        logits = jnp.where(allowed, logits, _LOWEST)
        new_peak = jnp.maximum(peak[...], logits.max(1, keepdims=True))
        weights = jnp.where(allowed, jnp.exp(logits - new_peak), 0)
        shrink = jnp.exp(peak[...] - new_peak)
        total[...] = total[...] * shrink + weights.sum(1, keepdims=True)
        acc[...] = acc[...] * shrink + _matmul(weights.astype(v.dtype), v[...], (1, 0))
        peak[...] = new_peak

    @pl.when(j == pl.num_programs(3) - 1)
    def _finish():
        divisor = jnp.where(total[...] > 0, total[...], 1)
        out[...] = (acc[...] / divisor).astype(out.dtype)
        log_total[...] = peak[...] + jnp.log(divisor)


def _backward_queries(operands: tuple[Array, ...], plan: _Plan) -> Array:
    q, k, *_, ranges = operands
    visits, grid, (queries, keys, rows, limits) = _by_query_block(q, k, ranges, plan)
    call = _call(
        _query_gradient_kernel,
        grid,
        3,
        plan,
        in_specs=[queries, keys, keys, queries, rows, rows, limits],
        out_specs=queries,
        out_shape=q,
        scratch_shapes=[pltpu.VMEM((plan.block_t, q.shape[-1]), jnp.float32)],
    )
    return call(*visits, *operands)


def _query_gradient_kernel(index, count, q, k, v, d_out, log_total, delta, ranges, dq, acc, *, plan: _Plan):
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _start():
        acc[...] = jnp.zeros(acc.shape)

    @pl.when(j < count[i])
    def _visit():
        _, d_logits = _tile_gradients(q, k, v, d_out, log_total, delta, ranges, index[i, j], plan)
        acc[...] += _matmul(d_logits.astype(k.dtype), k[...], (1, 0))

    @pl.when(j == pl.num_programs(3) - 1)
    def _finish():
        dq[...] = (plan.scale * acc[...]).astype(dq.dtype)


def _backward_keys(operands: tuple[Array, ...], plan: _Plan) -> tuple[Array, Array]:
    """dk and dv [b k s e]; the grid's inner axes are the query heads of a group and the query blocks to visit."""
    q, k, *_, ranges = operands
    (b, kv_heads, _, head_dim), groups = k.shape, q.shape[1] // k.shape[1]
    visits = plan.visits(of_keys=True)
    blocks, width = visits[0].shape

    def place(b, kv_head, i, group, j, index, count):
        return b, kv_head * groups + group, kv_head, index[i, j], i

    queries, keys, rows, limits = _specs(plan, head_dim, ranges, place)
    scratch = pltpu.VMEM((plan.block_s, head_dim), jnp.float32)
    call = _call(
        _key_gradient_kernel,
        (b, kv_heads, blocks, groups, width),
        3,
        plan,
        in_specs=[queries, keys, keys, queries, rows, rows, limits],
        out_specs=[keys, keys],
        out_shape=[k, k],
        scratch_shapes=[scratch, scratch],
    )
    return call(*visits, *operands)


def _key_gradient_kernel(index, count, q, k, v, d_out, log_total, delta, ranges, dk, dv, acc_k, acc_v, *, plan: _Plan):
    i, group, j = pl.program_id(2), pl.program_id(3), pl.program_id(4)

    @pl.when((group == 0) & (j == 0))
    def _start():
        acc_k[...] = jnp.zeros(acc_k.shape)
        acc_v[...] = jnp.zeros(acc_v.shape)

    @pl.when(j < count[i])
    def _visit():
        probabilities, d_logits = _tile_gradients(q, k, v, d_out, log_total, delta, ranges, i, plan)
        acc_v[...] += _matmul(probabilities.astype(d_out.dtype), d_out[...], (0, 0))
        acc_k[...] += _matmul(d_logits.astype(q.dtype), q[...], (0, 0))

    @pl.when((group == pl.num_programs(3) - 1) & (j == pl.num_programs(4) - 1))
    def _finish():
        dk[...] = (plan.scale * acc_k[...]).astype(dk.dtype)
        dv[...] = acc_v[...].astype(dv.dtype)


def _tile_gradients(q, k, v, d_out, log_total, delta, ranges, key_block, plan: _Plan) -> tuple[Array, Array]:
    """Probabilities of one tile, computed again, and the gradient of its scaled logits; float32 [block_t, block_s]."""
    logits = plan.scale * _matmul(q[...], k[...], (1, 1))
    allowed = _allowed(ranges[...], key_block, plan)
    probabilities = jnp.where(allowed, jnp.exp(logits - log_total[...]), 0)
    d_probabilities = _matmul(d_out[...], v[...], (1, 1))
    return probabilities, probabilities * (d_probabilities - delta[...])


def _allowed(ranges: Array, key_block: Array, plan: _Plan) -> Array:
    """Which keys of a block are in a range of their query: bool [block_t, block_s]."""
    keys = key_block * plan.block_s + jax.lax.broadcasted_iota(jnp.int32, (plan.block_t, plan.block_s), 1)
    inside = [(ranges[:, r : r + 1] <= keys) & (keys < ranges[:, r + 1 : r + 2]) for r in range(0, ranges.shape[1], 2)]
    return functools.reduce(jnp.logical_or, inside)


def _matmul(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)
