"""The raster method: loss, label drop, and sampling through the cache with and without guidance."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar import flops, optim
from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.methods import _conditions as conditions
from jaxar.methods import ar
from jaxar.methods.base import Task, TextSpec
from jaxar.tokenizers.base import ImageSpec, TokenSpec

GRID, VOCAB, CLASSES = (2, 3), 11, 5
TOKENS = GRID[0] * GRID[1]
SPEC = TokenSpec("discrete", (GRID,), channels=4, vocab_size=VOCAB)
SIZES = ar.Model(num_layers=2, width=16, num_heads=2, hidden_multiple=8, dropout=0.0)
BATCH = {"ids": jnp.array([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 2, 8], [1, 6, 1, 8, 0, 3]]), "label": jnp.array([4, 0, 2])}
LABEL = {"label": BATCH["label"]}


def build(label_drop=0.1):
    return ar.build(ar.Config(label_drop), SIZES, Task(ImageSpec(32, 3), CLASSES, SPEC))


def randomized(method):
    boxed = jax.eval_shape(method.init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(nn.meta.unbox(boxed))
    rng = np.random.default_rng(0)
    return tree.unflatten([jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves])


METHOD = build()
VARIABLES = randomized(METHOD)


@functools.cache
def sampler(options, method=METHOD):
    return jax.jit(lambda variables, cond, keys: method.sample(variables, cond, keys, options).ids)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_first_loss_is_ln_v_exactly():
    fresh = nn.meta.unbox(jax.jit(METHOD.init)(jax.random.key(1)))
    loss, _ = jax.jit(METHOD.loss)(fresh, BATCH, jax.random.key(0), jnp.int32(0))
    assert float(loss) == pytest.approx(math.log(VOCAB), abs=1e-6)
    figures = jax.jit(METHOD.evaluate)(fresh, BATCH, jax.random.key(0))
    np.testing.assert_allclose(figures["bits_per_token"], math.log2(VOCAB), rtol=1e-6)


def test_loss_and_figures_are_the_mean_log_likelihood():
    method = build(label_drop=0.0)
    loss, _ = jax.jit(method.loss)(VARIABLES, BATCH, jax.random.key(0), jnp.int32(0))
    figures = jax.jit(method.evaluate)(VARIABLES, BATCH, jax.random.key(0))
    logits = np.asarray(jax.jit(method.network.apply)(VARIABLES["model"], BATCH["ids"], LABEL), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_probs, np.asarray(BATCH["ids"])[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(loss, -picked.mean(), rtol=1e-5)
    np.testing.assert_allclose(figures["bits_per_token"], -picked.mean(1) / np.log(2), rtol=1e-5)
    np.testing.assert_allclose(figures["accuracy"], (logits.argmax(-1) == BATCH["ids"]).mean(1))
    batch = {**BATCH, "valid": jnp.array([True, False, True])}
    loss, _ = jax.jit(method.loss)(VARIABLES, batch, jax.random.key(0), jnp.int32(0))
    np.testing.assert_allclose(loss, -picked[::2].mean(), rtol=1e-5)


def test_labels_are_dropped_at_the_given_rate():
    cond = {"label": jnp.arange(4000) % CLASSES}
    dropped = conditions.drop(cond, jax.random.key(0), 0.1, CLASSES)["label"] == CLASSES
    assert abs(float(dropped.mean()) - 0.1) < 4 * np.sqrt(0.09 / 4000)
    assert not (conditions.drop(cond, jax.random.key(0), 0.0, CLASSES)["label"] == CLASSES).any()
    all_null = build(label_drop=1.0)
    other = {**BATCH, "label": (BATCH["label"] + 1) % CLASSES}
    loss = [jax.jit(all_null.loss)(VARIABLES, b, jax.random.key(0), jnp.int32(0))[0] for b in (BATCH, other)]
    assert loss[0] == loss[1]


def test_null_conditions_follow_the_conditional_ones():
    both = conditions.doubled(LABEL, CLASSES)
    np.testing.assert_array_equal(both["label"], [4, 0, 2, CLASSES, CLASSES, CLASSES])
    text = {"label": jnp.arange(2), "text": jnp.ones((2, 3, 4)), "text_mask": jnp.ones((2, 3), bool)}
    both = conditions.doubled(text, None)
    np.testing.assert_array_equal(both["text_null"], [False, False, True, True])
    assert both["text_mask"].shape == (4, 3)


@pytest.mark.parametrize("scale, segments", [(1.0, 1), (2.0, 3)])
def test_sampling_draws_from_the_guided_full_forward(scale, segments):
    """Feeding the samples back: every token is the one that its key draws from the uncached, guided logits."""
    options = ar.Sampling(guidance_scale=scale, temperature=0.9, top_k=7, segments=segments, unroll=False)
    ids = sampler(options)(VARIABLES, LABEL, keys(3))

    @jax.jit
    def redraw(ids):
        both = conditions.doubled(LABEL, CLASSES)
        logits = METHOD.network.apply(VARIABLES["model"], jnp.concatenate([ids, ids]), both)
        cond, uncond = jnp.split(logits, 2)
        return lg.draw(uncond + scale * (cond - uncond), keys(3), jnp.arange(TOKENS), options)

    np.testing.assert_array_equal(redraw(ids), ids)
    assert len({tuple(row) for row in np.asarray(ids)}) > 1


def test_scale_one_is_the_conditional_path_and_zero_the_null_model():
    null = {"label": jnp.full(3, CLASSES)}
    plain = sampler(ar.Sampling(unroll=False))
    np.testing.assert_array_equal(
        sampler(ar.Sampling(guidance_scale=0.0, unroll=False))(VARIABLES, LABEL, keys(3)),
        plain(VARIABLES, null, keys(3)),
    )
    assert (plain(VARIABLES, LABEL, keys(3)) != plain(VARIABLES, null, keys(3))).any()
    # Off means off: half the products, since no null half is computed.
    guided = ar.Sampling(guidance_scale=1.5, unroll=False)
    assert cost(guided) == pytest.approx(2 * cost(ar.Sampling(unroll=False)), rel=0.01)


def cost(options):
    return flops.count(lambda v: METHOD.sample(v, LABEL, keys(3), options).ids, VARIABLES)


def test_a_sample_depends_on_its_own_key_and_condition_alone():
    options = ar.Sampling(guidance_scale=1.5, unroll=False)
    whole = sampler(options)(VARIABLES, LABEL, keys(3))
    alone = sampler(options)(VARIABLES, {"label": LABEL["label"][1:2]}, keys(3)[1:2])
    np.testing.assert_array_equal(whole[1:2], alone)


def test_layers_in_a_straight_line_sample_the_same():
    options = ar.Sampling(guidance_scale=1.5, segments=2, unroll=False)
    unrolled = dataclasses.replace(options, unroll=True)
    np.testing.assert_array_equal(
        sampler(options)(VARIABLES, LABEL, keys(3)), sampler(unrolled)(VARIABLES, LABEL, keys(3))
    )


def test_decoding_compiles_once_and_traces_each_piece_once(monkeypatch):
    traced = []
    decoder = ar.AR.decoder

    def counting(self, *args):
        extend, cache = decoder(self, *args)
        return lambda ids, step, cache, stop: traced.append(stop) or extend(ids, step, cache, stop), cache

    monkeypatch.setattr(ar.AR, "decoder", counting)
    options = ar.Sampling(segments=2, unroll=False)
    sample = jax.jit(lambda variables, cond, keys: METHOD.sample(variables, cond, keys, options).ids)
    for seed in range(3):
        sample(VARIABLES, {"label": (LABEL["label"] + seed) % CLASSES}, keys(3, seed))
    assert sample._cache_size() == 1
    assert len(traced) <= 5 and set(traced) == {3, 6}  # the condition once, each of two loop bodies at most twice
    assert METHOD.network_calls(options) == TOKENS


def test_text_model_trains_and_samples_without_looking_at_padding():
    text = TextSpec(4, 6)
    method = ar.build(ar.Config(), SIZES, Task(ImageSpec(32, 3), CLASSES, SPEC, text=text))
    variables = randomized(method)
    features = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 6)), jnp.float32)
    mask = jnp.arange(4) >= jnp.array([2, 0, 3])[:, None]
    cond = {"label": BATCH["label"], "text": features, "text_mask": mask}
    loss, _ = jax.jit(method.loss)(variables, {**BATCH, **cond}, jax.random.key(0), jnp.int32(0))
    assert jnp.isfinite(loss)
    sample = sampler(ar.Sampling(guidance_scale=2.0, segments=2, unroll=False), method)
    ids = sample(variables, cond, keys(3))
    hidden = {**cond, "text": jnp.where(mask[..., None], features, 9.0)}
    np.testing.assert_array_equal(sample(variables, hidden, keys(3)), ids)
    assert (sample(variables, {**cond, "text": -features}, keys(3)) != ids).any()


def test_biases_norms_and_nothing_else_escape_weight_decay():
    shapes = jax.eval_shape(METHOD.init, jax.random.key(0))["model"]["params"]
    mask = optim.decay_mask(shapes, METHOD.players()["model"])
    for path, decays in jax.tree_util.tree_leaves_with_path(mask):
        assert decays == (path[-1].key in ("kernel", "embedding"))


def test_multiscale_tokens_are_refused():
    spec = TokenSpec("discrete", ((1, 1), (2, 2)), channels=4, vocab_size=VOCAB)
    with pytest.raises(ConfigError, match="needs discrete raster tokens"):
        ar.build(ar.Config(), SIZES, Task(ImageSpec(32, 3), CLASSES, spec))
