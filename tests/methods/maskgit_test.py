"""MaskGIT: what training masks and averages, its likelihood bound, sampling and completion of known tokens."""

import dataclasses
import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar import flops
from jaxar.config import ConfigError, parse
from jaxar.decoding import logits as lg
from jaxar.decoding import mask_schedules, masked
from jaxar.methods import maskgit
from jaxar.methods.base import Task, TextSpec
from jaxar.models.bidirectional import BidirectionalTransformer
from jaxar.models.multimodal import Options
from jaxar.tokenizers.base import ImageSpec, Tokens, TokenSpec

GRID, VOCAB, CLASSES = (2, 3), 7, 5
TOKENS = GRID[0] * GRID[1]
SPEC = TokenSpec("discrete", (GRID,), channels=4, vocab_size=VOCAB)
SIZES = maskgit.Model(num_layers=1, width=16, num_heads=2, dropout=0.0)
BATCH = {"ids": jnp.array([[3, 1, 4, 1, 5, 6], [2, 6, 1, 3, 2, 0], [1, 6, 1, 0, 0, 3]]), "label": jnp.array([4, 0, 2])}
LABEL = {"label": BATCH["label"]}
PLAIN = maskgit.Sampling(num_steps=3)


def build(**options):
    return maskgit.build(maskgit.Config(**options), SIZES, Task(ImageSpec(32, 3), CLASSES, SPEC))


def randomized(method, stddev=1.0):
    """Weights large enough for the logits to depend on every input."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        return jnp.asarray(stddev * rng.normal(size=leaf.shape) + (path[-1].key == "scale"), jnp.float32)

    boxed = jax.eval_shape(method.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(fill, nn.meta.unbox(boxed))


METHOD = build()
VARIABLES = randomized(METHOD)


@functools.cache
def sampler(options):
    return jax.jit(lambda variables, cond, keys: METHOD.sample(variables, cond, keys, options).ids)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


class Recorder:
    """In place of the network: knows nothing and remembers what it was asked."""

    def __init__(self, logits):
        self.logits, self.vocab_size, self.num_classes, self.num_tokens = logits, VOCAB, CLASSES, TOKENS

    def apply(self, variables, ids, known, label, **options):
        self.known, self.label = known, label
        return jnp.broadcast_to(self.logits, (*ids.shape, VOCAB))


def batch_of(count):
    rng = np.random.default_rng(1)
    return {"ids": jnp.asarray(rng.integers(VOCAB, size=(count, TOKENS))), "label": jnp.zeros(count, jnp.int32)}


def test_training_masks_as_many_tokens_as_the_cosine_says_anywhere_and_drops_labels():
    count = 6000
    recorder = Recorder(jnp.zeros(VOCAB))
    method = maskgit.MaskGIT(recorder, maskgit.Config(label_drop=0.1))
    method.loss({"model": {}}, batch_of(count), jax.random.key(0), 0)
    hidden = ~np.asarray(recorder.known)
    # ceil(n cos(pi r / 2)) = m where r lies between the arc cosines of m / n and (m - 1) / n.
    edges = 2 / np.pi * np.arccos(np.arange(TOKENS + 1) / TOKENS)
    expected = -np.diff(edges)
    share = np.bincount(hidden.sum(1), minlength=TOKENS + 1)[1:] / count
    assert (np.abs(share - expected) < 4 * np.sqrt(expected / count)).all() and hidden.any(1).all()
    where = hidden[hidden.sum(1) == 2]
    assert len({tuple(row) for row in where}) == math.comb(TOKENS, 2)
    assert abs(np.mean(recorder.label == CLASSES) - 0.1) < 4 * np.sqrt(0.09 / count)


def test_loss_is_the_smoothed_cross_entropy_of_masked_tokens_averaged_per_sample():
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(3, TOKENS, VOCAB)), jnp.float32)
    recorder = Recorder(logits)
    method = maskgit.MaskGIT(recorder, maskgit.Config(smoothing=0.2))
    loss, _ = method.loss({"model": {}}, BATCH, jax.random.key(0), 0)
    hidden = ~np.asarray(recorder.known)
    log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    right = np.take_along_axis(log_probs, np.asarray(BATCH["ids"])[..., None], -1)[..., 0]
    each = -(0.8 * right + 0.2 * log_probs.mean(-1))
    rows = np.array([row[m].mean() for row, m in zip(each, hidden)])
    assert len(set(hidden.sum(1))) > 1
    np.testing.assert_allclose(loss, rows.mean(), rtol=1e-5)
    valid = {**BATCH, "valid": jnp.array([True, False, True])}
    loss, _ = method.loss({"model": {}}, valid, jax.random.key(0), 0)
    np.testing.assert_allclose(loss, rows[::2].mean(), rtol=1e-5)


class Guesser(Recorder):
    """In place of the network: the more it knows, late positions above all, the surer it is of the right ids."""

    def apply(self, variables, ids, known, label):
        sure = known.astype(jnp.float32) @ jnp.arange(TOKENS, dtype=jnp.float32)
        return sure[:, None, None] * jax.nn.one_hot(ids, VOCAB)


def test_validation_estimates_the_any_order_bound():
    """Against the mean over all orders of the log-likelihood of drawing one token after another."""
    method, count = maskgit.MaskGIT(Guesser(None), maskgit.Config()), 4000
    figures = method.evaluate({"model": {}}, batch_of(count), jax.random.key(0))["bits_per_token"]
    assert figures.shape == (count,)

    def bits(known):
        sure = sum(known)
        return (np.log(np.exp(sure) + VOCAB - 1) - sure) / np.log(2)

    orders = list(itertools.permutations(range(TOKENS)))
    bound = np.mean([bits(order[:i]) for order in orders for i in range(TOKENS)])
    error = figures.std() / np.sqrt(count)
    assert abs(figures.mean() - bound) < 4 * error
    # Power: with all subsets as likely it would be something else.
    subsets = [s for i in range(TOKENS) for s in itertools.combinations(range(TOKENS), i)]
    assert abs(np.mean([bits(s) for s in subsets]) - bound) > 8 * error


def test_the_last_step_draws_from_the_guided_network_given_all_others():
    """Greedy, with one step: every token is the largest guided logit of a sequence of masks."""
    options = maskgit.Sampling(num_steps=1, greedy=True, guidance_scale=2.0)
    ids = sampler(options)(VARIABLES, LABEL, keys(3))
    apply = functools.partial(METHOD.network.apply, VARIABLES["model"], ids, jnp.zeros(ids.shape, bool))
    cond, null = apply(LABEL["label"]), apply(jnp.full(3, CLASSES))
    np.testing.assert_array_equal(ids, jnp.argmax(null + 2.0 * (cond - null), axis=-1))
    assert (ids != jnp.argmax(cond, axis=-1)).any()


def test_known_tokens_stay_and_guide_the_others():
    known = jnp.arange(TOKENS) % 2 == jnp.array([0, 1, 2])[:, None]  # half, the other half, none

    @jax.jit
    def complete(tokens, keys):
        return METHOD.complete(VARIABLES, Tokens(ids=tokens), known, LABEL, keys, PLAIN).ids

    first = complete(BATCH["ids"], keys(3))
    np.testing.assert_array_equal(jnp.where(known, first, 0), jnp.where(known, BATCH["ids"], 0))
    np.testing.assert_array_equal(complete(jnp.where(known, BATCH["ids"], 2), keys(3)), first)  # hidden ids: not read
    other = complete((BATCH["ids"] + 1) % VOCAB, keys(3))
    assert (jnp.where(known, 0, other) != jnp.where(known, 0, first))[:2].any()
    np.testing.assert_array_equal(other[2], first[2])
    np.testing.assert_array_equal(first[2], sampler(PLAIN)(VARIABLES, LABEL, keys(3))[2])


def test_scale_one_computes_no_null_half():
    def cost(options):
        return flops.count(lambda v: METHOD.sample(v, LABEL, keys(3), options).ids, VARIABLES)

    guided = maskgit.Sampling(num_steps=3, guidance_scale=1.5)
    assert cost(guided) == pytest.approx(2 * cost(PLAIN), rel=0.01)
    assert METHOD.network_calls(guided) == 3


def test_confident_decoding_at_one_is_the_schedule_and_at_zero_a_single_step():
    schedule = {"num_steps": 3, "choice_temperature": 1.0}
    usual, never, at_once = (
        sampler(maskgit.Sampling(sure_above=at, **schedule))(VARIABLES, LABEL, keys(3)) for at in (None, 1.0, 0.0)
    )
    np.testing.assert_array_equal(usual, never)
    assert (at_once != usual).any()
    known, first = jnp.zeros((3, TOKENS), bool), jax.vmap(jax.random.fold_in, (0, None))(keys(3), 0)
    logits = METHOD.network.apply(VARIABLES["model"], at_once, known, LABEL["label"])
    draws = lg.draw(logits, jax.vmap(jax.random.fold_in, (0, None))(first, 1), jnp.arange(TOKENS), lg.Sampling())
    np.testing.assert_array_equal(at_once, draws)


# Reuse of keys and values.

KNOWN = jnp.zeros((3, TOKENS), bool).at[2, :2].set(True)  # the last sample is given two tokens


@functools.cache
def reusing(num_layers, every):
    """Ids drawn in four guided steps by a network of so many layers; in the last two, five tokens are due at most."""
    sizes = dataclasses.replace(SIZES, num_layers=num_layers)
    method = maskgit.build(maskgit.Config(), sizes, Task(ImageSpec(32, 3), CLASSES, SPEC))
    options = maskgit.Sampling(num_steps=4, refresh_every=every, segments=2, guidance_scale=1.5)

    def sample(variables):
        return method.complete(variables, Tokens(ids=BATCH["ids"]), KNOWN, LABEL, keys(3), options).ids

    return np.asarray(jax.jit(sample)(randomized(method)))


@pytest.mark.parametrize("num_layers, every", [pytest.param(2, 1, marks=pytest.mark.slow), (1, 9)])
def test_reuse_is_exact_if_all_is_refreshed_or_keys_depend_on_their_token_alone(num_layers, every):
    np.testing.assert_array_equal(reusing(num_layers, every), reusing(num_layers, None))


@pytest.mark.slow
def test_reuse_in_deeper_networks_is_an_approximation():
    assert (reusing(2, 9) != reusing(2, None)).any()


def test_a_step_with_reuse_computes_as_many_tokens_as_are_due(monkeypatch):
    """Operations of a step fall by the same number for each token that is settled, to less than a third."""
    monkeypatch.setattr(jax.lax, "cond", lambda refresh, whole, part, state: part(state))
    predict, memory = METHOD.reusing_predictor(VARIABLES["model"], LABEL, np.ones(5), 9)
    state = masked.State(BATCH["ids"], KNOWN, memory)
    bounds = mask_schedules.unbounded(5, TOKENS)
    cost = [
        flops.count(lambda s: predict(s, 1, bounds._replace(due=m))[0], state)  # noqa: B023 - called at once
        for m in range(1, TOKENS + 1)
    ]
    whole = flops.count(lambda ids: METHOD.network.apply(VARIABLES["model"], ids, KNOWN, BATCH["label"]), state.tokens)
    assert np.ptp(np.diff(cost)) == 0 and cost[0] * TOKENS == cost[-1] < whole


def test_noise_on_the_confidence_fades_to_nothing():
    noise = maskgit.Sampling(num_steps=4, choice_temperature=2.0).confidence_noise()
    np.testing.assert_allclose(noise, [1.5, 1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    "section, values, message",
    [
        ("method", {"schedule": "sine"}, "method.schedule='sine'"),
        ("method", {"smoothing": 1.0}, "method.smoothing=1.0"),
        ("method", {"label_drop": -0.1}, "method.label_drop=-0.1"),
        ("sample", {"schedule": "pow"}, "sample.schedule='pow'"),
        ("sample", {"num_steps": 0}, "sample.num_steps=0"),
        ("sample", {"choice_temperature": -1.0}, "sample.choice_temperature=-1.0"),
        ("sample", {"sure_above": 1.5}, "sample.sure_above=1.5"),
        ("sample", {"top_k": 0}, "sample.top_k=0"),
        ("sample", {"refresh_every": 0}, "sample.refresh_every=0"),
        ("sample", {"segments": 0}, "sample.segments=0"),
        ("sample", {"refresh_every": 2, "sure_above": 0.9}, "sample.refresh_every=2 needs to know"),
    ],
)
def test_options_that_make_no_sense_are_refused(section, values, message):
    with pytest.raises(ConfigError, match=message):
        parse({"method": maskgit.Config, "sample": maskgit.Sampling}[section], values, section)


def test_multiscale_tokens_are_refused():
    spec = TokenSpec("discrete", ((1, 1), (2, 2)), channels=4, vocab_size=VOCAB)
    with pytest.raises(ConfigError, match="needs discrete raster tokens"):
        maskgit.build(maskgit.Config(), SIZES, Task(ImageSpec(32, 3), CLASSES, spec))


# Meissonic's network.

MAP = TokenSpec("discrete", ((2, 4),), channels=4, vocab_size=VOCAB)


def multimodal(text=None, joint=1, single=0, **options):
    sizes = dataclasses.replace(SIZES, num_layers=joint + single, multimodal=Options(joint_layers=joint, **options))
    return maskgit.build(maskgit.Config(label_drop=0.5), sizes, Task(ImageSpec(32, 3), CLASSES, MAP, text=text))


@pytest.mark.slow
def test_a_text_model_trains_and_samples_without_looking_at_labels_and_padding():
    method = multimodal(TextSpec(3, 6), joint=2, single=1, compress=True, micro=(8.0, 6.0))
    weights = randomized(method, 0.3)
    mask = jnp.array([[False, True, True], [True] * 3, [False, False, True]])
    features = jnp.asarray(np.random.default_rng(7).normal(size=(3, 3, 6)), jnp.float32)
    cond = {**LABEL, "text": features, "text_mask": mask}
    batch = {"ids": jnp.resize(BATCH["ids"], (3, 8)), **cond, "micro": jnp.ones((3, 2))}
    loss = lambda v: method.loss({"model": v}, batch, jax.random.key(1), 0)[0]  # noqa: E731
    value, grads = jax.jit(jax.value_and_grad(loss))(weights["model"])
    unread = [jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_leaves_with_path(grads) if not np.any(g)]
    assert np.isfinite(value) and not unread

    @jax.jit
    def sample(cond):
        options = maskgit.Sampling(num_steps=3, guidance_scale=2.0)
        return method.sample(weights, cond, keys(3), options).ids

    ids = sample(cond)
    assert ids.shape == (3, 8)
    other = {"label": cond["label"] * 0, "text": jnp.where(mask[..., None], features, 9.0), "text_mask": mask}
    np.testing.assert_array_equal(sample(other), ids)
    assert (sample({**cond, "text": -features}) != ids).any()


def test_a_class_model_is_guided_by_the_null_class():
    method = multimodal()
    weights, cond = randomized(method, 0.3), {"label": jnp.arange(2)}
    options = maskgit.Sampling(num_steps=1, greedy=True, guidance_scale=2.0)
    ids = jax.jit(lambda cond: method.sample(weights, cond, keys(2), options).ids)(cond)
    known = jnp.zeros(ids.shape, bool)
    apply = jax.jit(lambda label: method.network.apply(weights["model"], ids, known, {"label": label}))
    with_class, null = apply(cond["label"]), apply(jnp.full(2, CLASSES))
    np.testing.assert_array_equal(ids, jnp.argmax(null + 2.0 * (with_class - null), axis=-1))
    assert (ids != jnp.argmax(with_class, axis=-1)).any()


def test_without_the_section_the_network_is_that_of_maskgit_even_where_there_is_text():
    method = maskgit.build(maskgit.Config(), SIZES, Task(ImageSpec(32, 3), CLASSES, SPEC, text=TextSpec(3, 6)))
    assert method.network == BidirectionalTransformer(SIZES, VOCAB, GRID, CLASSES)


def test_maps_without_squares_cannot_be_compressed():
    sizes = dataclasses.replace(SIZES, multimodal=Options(joint_layers=1, compress=True))
    with pytest.raises(ConfigError, match="needs maps of even height and width"):
        maskgit.build(maskgit.Config(), sizes, Task(ImageSpec(32, 3), CLASSES, TokenSpec("discrete", ((2, 3),), 4, 7)))
