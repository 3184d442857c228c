"""The raster transformer: causality, cached decoding, grouped queries, padded captions."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.models.causal import CausalTransformer, Sizes

GRID, VOCAB, CLASSES, TEXT = (2, 3), 11, 5, (4, 6)
TOKENS = GRID[0] * GRID[1]
SIZES = Sizes(num_layers=2, width=16, num_heads=4, num_kv_heads=2, hidden_multiple=8, dropout=0.0)
IDS = jnp.array([[3, 1, 4, 10, 5, 9], [2, 7, 1, 8, 0, 6]])
LABEL = {"label": jnp.array([4, 0])}
TEXT_COND = {
    "text": jnp.asarray(np.random.default_rng(5).normal(size=(2, *TEXT)), jnp.float32),
    "text_mask": jnp.array([[False, False, True, True], [True] * 4]),
    "text_null": jnp.array([False, False]),
}


def network(kind="class", **changes):
    sizes = dataclasses.replace(SIZES, **changes)
    if kind == "class":
        return CausalTransformer(sizes, VOCAB, GRID, num_classes=CLASSES)
    return CausalTransformer(sizes, VOCAB, GRID, text=TEXT)


def cond_of(kind):
    return LABEL if kind == "class" else TEXT_COND


@functools.cache
def variables(kind):
    """Random weights everywhere, the zero head included."""
    boxed = jax.eval_shape(network(kind).init, jax.random.key(0), IDS, cond_of(kind))
    leaves, tree = jax.tree.flatten(nn.meta.unbox(boxed))
    rng = np.random.default_rng(0)
    return tree.unflatten([jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves])


@functools.cache
def logits(kind):
    return jax.jit(network(kind).apply)(variables(kind), IDS, cond_of(kind))


def test_the_head_starts_at_zero_so_the_first_loss_is_ln_v():
    net = network()
    fresh = nn.meta.unbox(jax.jit(net.init)(jax.random.key(0), IDS, LABEL))
    np.testing.assert_array_equal(jax.jit(net.apply)(fresh, IDS, LABEL), 0)
    assert fresh["params"]["token_embedding"]["embedding"].std() > 0.01


@pytest.mark.parametrize("kind", ["class", "text"])
def test_cached_decoding_equals_the_full_forward(kind):
    """Prefill, then single tokens and a piece of three, each reading just as much of the cache as is filled."""
    net, cond = network(kind), cond_of(kind)
    pad = None if kind == "class" else jnp.array([2, 0])

    @jax.jit
    def run(variables):
        piece, cache = net.apply(variables, cond, net.init_cache(2), net.prefix_len, method="prefill")
        pieces, begin = [piece], 0
        for count in (1, 1, 3):
            x = net.apply(variables, IDS[:, begin : begin + count], method="embed_tokens")
            begin += count
            piece, cache = net.apply(variables, x, cache, pad, net.prefix_len + begin, method="extend")
            pieces.append(piece)
        return jnp.concatenate(pieces, axis=1)

    np.testing.assert_allclose(run(variables(kind)), logits(kind), rtol=1e-4, atol=1e-4)


def test_rejected_drafts_leave_no_trace_and_samples_advance_at_their_own_pace():
    """A wrong draft of three tokens, of which the samples keep two and none; then the right tokens."""
    net = network()

    @jax.jit
    def run(variables):
        _, cache = net.apply(variables, LABEL, net.init_cache(2), method="prefill")
        wrong = IDS.at[0, 2].set(0).at[1].set(3)[:, :3]
        embed = functools.partial(net.apply, variables, method="embed_tokens")
        _, cache = net.apply(variables, embed(wrong), cache, method="extend")
        cache = cache.truncate(jnp.array([3, 1]))
        right = jnp.stack([IDS[0, 2:5], IDS[1, :3]])
        return net.apply(variables, embed(right), cache, method="extend")[0]

    result, expected = run(variables("class")), logits("class")
    np.testing.assert_allclose(result[0], expected[0, 3:], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(result[1], expected[1, 1:4], rtol=1e-4, atol=1e-4)


def test_no_position_sees_its_own_token_or_a_later_one():
    """Every id occurs once per row, so the row of the table that it reads shows which positions saw it."""
    net = network()

    def row(variables, table):
        variables = {"params": variables["params"] | {"token_embedding": {"embedding": table}}}
        return net.apply(variables, IDS[:1], jax.tree.map(lambda x: x[:1], LABEL))[0].sum(-1)

    table = variables("class")["params"]["token_embedding"]["embedding"]
    gradient = jax.jit(jax.jacrev(row, argnums=1))(variables("class"), table)  # [position, vocab, width]
    seen = np.asarray((gradient != 0).any(-1))[:, np.asarray(IDS[0])]
    np.testing.assert_array_equal(seen, np.tril(np.ones((TOKENS, TOKENS), bool), -1))


def test_grouped_queries_equal_repeated_heads():
    repeated = jax.tree.map(lambda x: x, variables("class"))
    attention = repeated["params"]["stack"]["layers"]["attention"]
    for name in ("key", "value"):
        attention[name] = {"kernel": jnp.repeat(attention[name]["kernel"], 2, axis=2)}
    result = jax.jit(network(num_kv_heads=None).apply)(repeated, IDS, LABEL)
    np.testing.assert_allclose(result, logits("class"), rtol=1e-4, atol=1e-4)


def test_padding_of_a_caption_does_not_matter():
    net = network("text")
    apply = jax.jit(net.apply)
    other = {**TEXT_COND, "text": TEXT_COND["text"].at[0, :2].set(100.0)}
    np.testing.assert_array_equal(apply(variables("text"), IDS, other)[0], logits("text")[0])
    other = {**TEXT_COND, "text": TEXT_COND["text"].at[0, 2].add(1.0)}
    assert np.abs(apply(variables("text"), IDS, other)[0] - logits("text")[0]).max() > 1e-2
    # The caption without its padding, in a model for captions of that length.
    short = CausalTransformer(SIZES, VOCAB, GRID, text=(2, TEXT[1]))
    cut = {"text": TEXT_COND["text"][:1, 2:]}
    params = variables("text")["params"] | {"null_text": jnp.zeros((2, TEXT[1]))}
    np.testing.assert_allclose(
        jax.jit(short.apply)({"params": params}, IDS[:1], cut)[0], logits("text")[0], rtol=1e-4, atol=1e-4
    )


def test_a_null_caption_replaces_the_text():
    apply = jax.jit(network("text").apply)
    null = apply(variables("text"), IDS, {**TEXT_COND, "text_null": jnp.array([True, False])})
    np.testing.assert_array_equal(null[1], logits("text")[1])
    text = TEXT_COND["text"].at[0].set(variables("text")["params"]["null_text"])
    np.testing.assert_allclose(null[0], apply(variables("text"), IDS, {**TEXT_COND, "text": text})[0], rtol=1e-5)


def test_bfloat16_is_finite_and_close():
    half = jax.jit(network(dtype="bfloat16").apply)(variables("class"), IDS, LABEL)
    assert half.dtype == jnp.float32 and jnp.isfinite(half).all()
    assert 1e-4 < np.abs(half - logits("class")).max() / logits("class").std() < 0.15


def test_hidden_width_is_rounded_up():
    assert Sizes(width=768, num_heads=12).hidden == 2048
    assert Sizes(width=1280, num_heads=20).hidden == 3584  # int(8 * 1280 / 3) = 3413
    assert Sizes(width=48, num_heads=3, hidden_multiple=32).hidden == 128


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": 18}, "model.width=18"),
        ({"num_kv_heads": 3}, "model.num_kv_heads=3"),
        ({"dropout": 1.0}, "model.dropout=1.0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SIZES, **changes)
