"""The bidirectional transformer: what it reads, its size, and the official MaskGIT's numbers."""

import dataclasses
import functools
import json
import pathlib

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.decoding import mask_schedules, masked
from jaxar.models.bidirectional import BidirectionalTransformer, Sizes

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
GRID, VOCAB, CLASSES = (2, 3), 11, 5
SIZES = Sizes(num_layers=2, width=16, num_heads=2, dropout=0.0)
IDS = jnp.array([[3, 1, 4, 10, 5, 9], [2, 7, 1, 8, 0, 6]])
KNOWN = jnp.array([[True, False, True, False, False, True], [False] * 6])
LABEL = jnp.array([4, 0])


def network(**changes):
    return BidirectionalTransformer(dataclasses.replace(SIZES, **changes), VOCAB, GRID, CLASSES)


@functools.cache
def variables():
    boxed = jax.eval_shape(network().init, jax.random.key(0), IDS, KNOWN, LABEL)
    leaves, tree = jax.tree.flatten(nn.meta.unbox(boxed))
    rng = np.random.default_rng(0)
    return tree.unflatten([jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves])


apply = jax.jit(network().apply)


def test_masked_ids_are_not_read_and_known_ones_are_seen_everywhere():
    base = apply(variables(), IDS, KNOWN, LABEL)
    assert base.shape == (2, 6, VOCAB) and base.dtype == jnp.float32
    np.testing.assert_array_equal(apply(variables(), jnp.where(KNOWN, IDS, 7), KNOWN, LABEL), base)
    changed = np.asarray(apply(variables(), IDS.at[0, 5].set(2), KNOWN, LABEL) != base)
    assert changed[0].all() and not changed[1].any()
    changed = np.asarray(apply(variables(), IDS, KNOWN, LABEL.at[1].set(3)) != base)
    assert changed[1].all() and not changed[0].any()


def test_the_sequence_is_class_then_tokens_and_the_null_class_is_a_mask():
    net = network()
    assert net.mask_id == VOCAB + CLASSES
    sequence = jnp.concatenate([VOCAB + LABEL[:, None], jnp.where(KNOWN, IDS, net.mask_id)], axis=1)
    full = jax.jit(functools.partial(net.apply, method="sequence_logits"))
    np.testing.assert_allclose(
        full(variables(), sequence)[:, 1:, :VOCAB], apply(variables(), IDS, KNOWN, LABEL), rtol=1e-5, atol=1e-5
    )
    null = full(variables(), sequence.at[:, 0].set(net.mask_id))[:, 1:, :VOCAB]
    np.testing.assert_allclose(null, apply(variables(), IDS, KNOWN, jnp.full(2, CLASSES)), rtol=1e-5, atol=1e-5)


def test_layers_recomputed_in_the_backward_pass_change_nothing():
    def loss(net, variables):
        return jnp.sum(net.apply(variables, IDS, KNOWN, LABEL) ** 2)

    plain, again = (jax.jit(jax.grad(functools.partial(loss, network(remat=r))))(variables()) for r in ("none", "full"))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_alone():
    net = network(dropout=0.5)
    np.testing.assert_array_equal(
        jax.jit(net.apply)(variables(), IDS, KNOWN, LABEL), apply(variables(), IDS, KNOWN, LABEL)
    )
    train = jax.jit(functools.partial(net.apply, deterministic=False))
    a, b = (train(variables(), IDS, KNOWN, LABEL, rngs={"dropout": jax.random.key(i)}) for i in (0, 1))
    assert (a != b).any()


def test_the_published_size_has_172_million_parameters():
    """The paper's 227M count the 54.5M of its tokenizer."""
    net = BidirectionalTransformer(Sizes(), 1024, (16, 16), 1000)
    ids = jnp.zeros((1, 256), jnp.int32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), ids, ids > 0, ids[:, 0])
    layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    rest = 2025 * 768 + 257 * 768 + 768 * 768 + 768 + 4 * 768 + 2025
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 24 * layer + rest == 172_457_193


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="model.width=18"):
        dataclasses.replace(SIZES, width=18, num_heads=4)
    with pytest.raises(ConfigError, match="model.dropout=1.0"):
        dataclasses.replace(SIZES, dropout=1.0)


# The official implementation. What may change legitimately: parameter paths (then change the table), the order of float
# operations (within the stored tolerance). Ids may never change.

# (our path, official path); "{}" is the layer, ours are stacked.
NAMES = (
    ("token_embedding", "Embed_0/word_embeddings"),
    ("position_embedding", "Embed_0/position_embeddings"),
    ("embedding_norm", "Embed_0/embeddings_ln"),
    ("head_dense", "MlmLayer_0/mlm_dense"),
    ("head_norm", "MlmLayer_0/mlm_ln"),
    *(
        (f"stack/layers/attention/{part}", "TransformerLayer_{}/Attention_0/self_attention/" + part)
        for part in ("query", "key", "value", "out")
    ),
    ("stack/layers/attention_norm", "TransformerLayer_{}/Attention_0/attention_output_ln"),
    ("stack/layers/mlp/up", "TransformerLayer_{}/Mlp_0/intermediate_output"),
    ("stack/layers/mlp/down", "TransformerLayer_{}/Mlp_0/layer_output"),
    ("stack/layers/mlp_norm", "TransformerLayer_{}/Mlp_0/layer_output_ln"),
)


@functools.cache
def fixture():
    """Network, variables, stored tensors and entries."""
    meta, tensors = json.loads((GOLDEN / "maskgit_d2.json").read_text()), load_file(GOLDEN / "maskgit_d2.safetensors")
    model = meta["models"]["transformer"]
    given, weights = model["constructor"], {}
    for name, value in tensors.items():
        if name.startswith(model["prefix"]):
            weights[name.removeprefix(model["prefix"])] = value
    layers = range(given["num_hidden_layers"])
    params = {"head_bias": weights.pop("MlmLayer_0/mlm_bias/bias")}
    for ours, official in NAMES:
        for leaf in ("kernel", "bias", "scale", "embedding"):
            if "{}" in official and f"{official.format(0)}/{leaf}" in weights:
                params[f"{ours}/{leaf}"] = np.stack([weights.pop(f"{official.format(i)}/{leaf}") for i in layers])
            elif f"{official}/{leaf}" in weights:
                params[f"{ours}/{leaf}"] = weights.pop(f"{official}/{leaf}")
    assert not weights, weights.keys()
    sizes = Sizes(
        num_layers=len(layers),
        width=given["hidden_size"],
        num_heads=given["num_attention_heads"],
        mlp_ratio=given["intermediate_size"] / given["hidden_size"],
    )
    side = round((given["max_position_embeddings"] - 1) ** 0.5)
    net = BidirectionalTransformer(sizes, model["codebook_size"], (side, side), model["num_classes"])
    return net, {"params": flax.traverse_util.unflatten_dict(params, sep="/")}, tensors, meta["tensors"]


@pytest.mark.golden
def test_logits_of_the_official_code():
    net, weights, tensors, entries = fixture()
    sequence = jnp.where(tensors["in/ids"] < 0, net.mask_id, tensors["in/ids"])
    logits = jax.jit(functools.partial(net.apply, method="sequence_logits"))(weights, sequence)
    stored = tensors["out/logits"]
    assert np.abs(logits - stored).max() / stored.std() < entries["out/logits"]["tolerance"]["value"]


@pytest.mark.golden
def test_greedy_decoding_of_the_official_code():
    """Every iteration of the official sampler, with its draws replaced by the likeliest ids and its noise by zeros."""
    net, weights, tensors, entries = fixture()
    args = entries["out/greedy_final_seqs"]["call"]["args"]
    begin = tensors["in/start_ids"]
    known, label = jnp.asarray(begin[:, 1:] >= 0), jnp.asarray(begin[:, 0] - net.vocab_size)
    counts = mask_schedules.masked_counts(args["mask_schedule"], args["num_iter"], net.num_tokens)
    (segment,) = mask_schedules.segments(counts, 1)
    law = masked.token_law(
        lambda state, step, segment: (net.apply(weights, state.tokens, state.known, label), None),
        lg.Sampling(greedy=True),
    )
    keep = masked.most_confident(masked.by_table(counts, known), np.zeros(args["num_iter"]))

    @jax.jit
    def step_of(state, step):
        return masked.advance(law, state, step, jax.random.split(jax.random.key(0), 2), segment, keep=keep)

    state = masked.State(jnp.asarray(begin[:, 1:]), known)
    for k in range(args["num_iter"]):
        before = state
        state, drawn = step_of(state, k)
        final = np.where(before.known, before.tokens, drawn.tokens)
        np.testing.assert_array_equal(final, tensors["out/greedy_final_seqs"][:, k, 1:])
        after = np.where(state.known, state.tokens, -1)
        if k == args["num_iter"] - 1:  # the published state still masks the least confident token
            least = np.argmin(np.where(before.known, np.inf, drawn.log_prob), axis=1)
            after[np.arange(2), least] = -1
        np.testing.assert_array_equal(after, tensors["out/greedy_cur_seqs"][:, k, 1:])


@pytest.mark.golden
def test_schedules_of_the_official_code():
    _, _, tensors, entries = fixture()
    entry, stored = entries["out/schedule_rate"], tensors["out/schedule_rate"]
    ratio, total = tensors["in/schedule_ratio"], np.full(1, entry["call"]["args"]["total"], np.float32)
    for name, expected in zip(entry["call"]["args"]["methods"], stored):
        name = {"uniform": "linear"}.get(name, name)
        share = mask_schedules.masked_share(name, ratio, total)
        np.testing.assert_allclose(share, expected, rtol=entry["tolerance"]["value"])
        np.testing.assert_allclose(
            mask_schedules.masked_share(name, jnp.asarray(ratio), jnp.asarray(total)), share, rtol=1e-4, atol=1e-6
        )
