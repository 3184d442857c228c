"""Device meshes and the one table that says how every array is laid out on them.

Parameters and activations carry logical axis names; `RULES` maps each name to mesh axes. Changing the sharding strategy
means changing this table. Unlike Linen's own resolver, an unknown name or a mesh axis used twice is an error, never a
silent replication.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxar.config import ConfigError, unknown
from jaxar.typing import Array

AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. Embedding tables shard on one axis only ("vocab" with "embed_table", or "classes" with
# "embed"): a gather from a table split both ways forces a full rematerialization.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "conv_out": ("fsdp",),
    "layers": (),
    "length": (),
    "head_dim": (),
    "act_embed": (),
    "embed_table": (),
    "classes": (),
    "conv_in": (),
    "conv_window": (),
    "scales": (),
    "norm": (),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes. `data=None` takes all devices that `fsdp` and `tensor` leave."""

    data: int | None = None
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        for axis in AXES:
            size = getattr(self, axis)
            if size is not None and size < 1:
                raise ConfigError(f"mesh.{axis}={size} must be at least 1")


def make_mesh(config: MeshConfig = MeshConfig(), devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes data, fsdp, tensor over `devices` (default: all of them).

    Raises:
      ConfigError: the axis sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    rest = config.fsdp * config.tensor
    data = config.data if config.data is not None else max(len(devices) // rest, 1)
    if data * rest != len(devices):
        raise ConfigError(
            f"mesh data={config.data} fsdp={config.fsdp} tensor={config.tensor} needs {data * rest} devices, "
            f"{len(devices)} are visible; choose sizes whose product is {len(devices)}"
        )
    shape = (data, config.fsdp, config.tensor)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def resolve(names: Sequence[str | None]) -> PartitionSpec:
    """Mesh axes of an array whose dimensions carry these logical names.

    Args:
      names: one logical name per dimension; None leaves a dimension unsharded.
    Raises:
      ConfigError: a name that `RULES` lacks, or two names that want the same mesh axis.
    """
    spec, seen = [], {}
    for name in names:
        if name is not None and name not in RULES:
            raise unknown("logical axis", name, RULES)
        axes = RULES[name] if name is not None else ()
        for axis in axes:
            if axis in seen:
                raise ConfigError(
                    f"logical axes {seen[axis]!r} and {name!r} of {tuple(names)} both map to mesh axis {axis!r}"
                )
            seen[axis] = name
        spec.append(axes if len(axes) > 1 else (axes[0] if axes else None))
    return PartitionSpec(*spec)


def constrain(x: Array, *names: str | None) -> Array:
    """Pins the layout of an activation inside jit; a no-op where no mesh is set.

    Dimensions that the mesh axes do not divide stay unconstrained (a batch of one while sampling, say).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    if len(names) != x.ndim:
        raise ValueError(f"{len(names)} logical axes {names} for an array of rank {x.ndim} and shape {x.shape}")
    return jax.lax.with_sharding_constraint(x, fit(names, x.shape))


def fit(names: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
    """As `resolve`, on the mesh in scope; dimensions that its axes do not divide stay whole."""
    mesh = jax.sharding.get_abstract_mesh()
    return PartitionSpec(
        *(axes if size % _size(axes, mesh) == 0 else None for size, axes in zip(shape, resolve(names)))
    )


def _size(axes: Any, mesh: Any) -> int:
    axes = (axes,) if isinstance(axes, str) else (axes or ())
    return math.prod(mesh.shape[a] for a in axes)


def shardings_of(boxed: Any, mesh: Mesh) -> Any:
    """A `NamedSharding` per leaf of an abstract tree whose parameters still carry their logical names.

    Args:
      boxed: shapes from `jax.eval_shape` of an init; leaves without metadata are replicated.
      mesh: where they will live.
    Returns:
      The tree of `nn.unbox(boxed)` with a sharding at each leaf.
    Raises:
      ConfigError: a dimension that its mesh axes do not divide, naming the parameter.
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        names = leaf.names if isinstance(leaf, nn.meta.AxisMetadata) else ()
        shape = leaf.unbox().shape if isinstance(leaf, nn.meta.AxisMetadata) else leaf.shape
        spec = resolve(names)
        for size, name, axes in zip(shape, names, spec):
            ways = _size(axes, mesh)
            if size % ways:
                allowed = ", ".join(str(d) for d in range(1, size + 1) if size % d == 0 and d <= mesh.size)
                raise ConfigError(
                    f"{jax.tree_util.keystr(path)} has {name}={size}, not divisible by mesh "
                    f"{'*'.join(axes) if isinstance(axes, tuple) else axes}={ways}; use a size in {{{allowed}}} "
                    f"or change the model's {name}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))


def logical(init: Any, *names: str | None) -> Any:
    """An initializer whose parameter carries logical axis names.

    The metadata gets empty rules: with the real ones, `nn.DenseGeneral` constrains its flattened kernel by the
    unflattened names and crashes.
    """
    return nn.with_logical_partitioning(init, names, rules=())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Layout of a batch: leading axis over data and fsdp."""
    return NamedSharding(mesh, resolve(("batch",)))


def batch_ways(mesh: Mesh) -> int:
    """Into how many parts a batch is cut; batch sizes are multiples of it."""
    return _size(RULES["batch"], mesh)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


@functools.cache
def single_device_mesh() -> Mesh:
    """The mesh of one device of this process, for notebooks, tests and work that processes share out by files."""
    return make_mesh(MeshConfig(data=1), jax.local_devices()[:1])
