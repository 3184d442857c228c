"""Runs an opaque kernel on each device's share of the batch and heads, since the compiler cannot split it."""

from collections.abc import Callable

import jax

from jaxar.kernels.mask import DynamicRanges
from jaxar.partition import fit
from jaxar.typing import Array

Kernel = Callable[[Array, Array, Array, DynamicRanges | None], Array]


def per_shard(kernel: Kernel) -> Kernel:
    """`kernel` over shards of the mesh in scope; itself without a mesh, or inside a `shard_map` that has split already.

    Batch or heads that their mesh axes do not divide stay whole on every device. What divides the kv heads divides the
    query heads, and neighbouring heads, which share a kv head, stay together.
    """

    def run(q: Array, k: Array, v: Array, dynamic: DynamicRanges | None) -> Array:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.manual_axes:
            return kernel(q, k, v, dynamic)
        heads = fit(("batch", "length", "kv_heads", "head_dim"), k.shape)
        ranges = jax.tree.map(lambda x: fit(("batch", None, None)[-x.ndim :], x.shape), dynamic)
        sharded = jax.shard_map(kernel, in_specs=(heads, heads, heads, ranges), out_specs=heads, check_vma=False)
        return sharded(q, k, v, dynamic)

    return run
