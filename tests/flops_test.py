"""FLOPs from the jaxpr, against closed forms and against XLA on an unrolled model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxar import flops
from jaxar.methods.base import LossAux, LossSpec
from jaxar.models.causal import CausalTransformer, Sizes
from jaxar.nn.transformer import split_layers


def test_products_convolutions_and_loops_count_in_closed_form():
    a, b = jnp.zeros((3, 4, 5)), jnp.zeros((3, 5, 7))
    assert flops.count(lambda a, b: a @ b, a, b) == 2 * 3 * 4 * 5 * 7

    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert flops.count(convolve, jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 10))) == 2 * (2 * 4 * 4 * 10) * (9 * 3)

    def loop(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, length=6)[0]

    assert flops.count(jax.jit(jax.checkpoint(loop)), jnp.zeros((4, 4))) == 6 * 2 * 4**3


def test_a_loop_of_unknown_length_is_refused_rather_than_miscounted():
    with pytest.raises(ValueError, match="no static FLOP count"):
        flops.count(lambda x: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ c, x), jnp.ones((2, 2)))


def test_a_scanned_transformer_counts_what_xla_counts_when_it_is_unrolled():
    sizes = Sizes(num_layers=3, width=32, num_heads=2, hidden_multiple=32, dropout=0.0)
    net = CausalTransformer(sizes, 64, (4, 4), num_classes=5)
    ids, cond = jnp.zeros((2, 16), jnp.int32), {"label": jnp.zeros(2, jnp.int32)}
    variables = jax.eval_shape(net.init, jax.random.key(0), ids, cond)
    ours = flops.count(net.apply, variables, ids, cond)
    split = jax.eval_shape(lambda variables: split_layers(nn.meta.unbox(variables)), variables)
    unrolled = jax.jit(net.clone(unroll=True).apply).lower(split, ids, cond).compile()
    # XLA also counts elementwise work and the softmax; the products dominate already at this size.
    assert 0.75 < ours / unrolled.cost_analysis()["flops"] <= 1.0


def test_a_train_step_is_three_forward_passes_plus_the_encoder():
    def loss(variables, batch, key, step):
        return jnp.sum(batch["x"] @ variables["model"]["w"]), LossAux({})

    def encode(variables, batch, key):
        return {"x": batch["image"] @ variables["tokenizer"]["e"]}

    variables = {"model": {"w": jnp.zeros((5, 6))}, "tokenizer": {"e": jnp.zeros((4, 5))}}
    spec = LossSpec("loss", loss, ("model",))
    count = flops.training_step(variables, {"image": jnp.zeros((3, 4))}, encode, [spec])
    assert count == 2 * 3 * 4 * 5 + 3 * (2 * 3 * 5 * 6)
