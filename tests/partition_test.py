"""The rules table is strict: nothing is silently replicated."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxar import partition
from jaxar.config import ConfigError
from jaxar.partition import MeshConfig, make_mesh, resolve


def test_names_resolve_to_the_axes_of_the_table():
    assert resolve(("batch", "length", "act_embed")) == P(("data", "fsdp"), None, None)
    assert resolve(("layers", "embed", "heads", "head_dim")) == P(None, "fsdp", "tensor", None)
    assert resolve((None, "vocab")) == P(None, "tensor")


def test_unknown_names_and_axes_used_twice_are_errors():
    with pytest.raises(ConfigError, match="unknown logical axis 'embde'.*did you mean 'embed'"):
        resolve(("embde",))
    with pytest.raises(ConfigError, match="'heads' and 'mlp'.*both map to mesh axis 'tensor'"):
        resolve(("heads", "mlp"))


def test_a_mesh_takes_all_devices_or_says_what_would_fit():
    assert dict(make_mesh(MeshConfig(fsdp=2)).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    with pytest.raises(ConfigError, match="needs 3 devices, 8 are visible; choose sizes whose product is 8"):
        make_mesh(MeshConfig(data=3))
    with pytest.raises(ConfigError, match="mesh.tensor=0 must be at least 1"):
        MeshConfig(tensor=0)


def test_parameters_get_the_layout_of_their_names_and_indivisible_ones_are_named():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))

    def box(*shape):
        return {"kernel": nn.LogicallyPartitioned(jnp.zeros(shape), ("embed", "mlp"), rules=()), "step": jnp.zeros(())}

    shardings = partition.shardings_of(jax.eval_shape(lambda: box(4, 6)), mesh)
    assert shardings["kernel"].spec == P("fsdp", "tensor") and shardings["step"].spec == P()
    with pytest.raises(ConfigError, match=r"kernel.*mlp=7, not divisible by mesh tensor=2"):
        partition.shardings_of(jax.eval_shape(lambda: box(4, 7)), mesh)


def test_constrain_pins_the_layout_inside_jit_and_is_silent_without_a_mesh():
    x = jnp.zeros((8, 3))
    assert partition.constrain(x, "batch", "act_embed") is x
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    with jax.set_mesh(mesh):
        pinned = jax.jit(lambda x: partition.constrain(x + 1, "batch", "act_embed"))(x)
        assert pinned.sharding.spec == P(("data", "fsdp"))
        odd = jax.jit(lambda x: partition.constrain(x + 1, "batch", "act_embed"))(jnp.zeros((3, 3)))
        assert odd.shape == (3, 3)
        with pytest.raises(ValueError, match="rank 2"):
            jax.jit(lambda x: partition.constrain(x, "batch"))(x)
