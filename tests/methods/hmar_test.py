"""HMAR: its losses, the step from one network to the other, and sampling, which is exact where a law is known."""

import dataclasses
import functools
import itertools
import types

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.decoding import mask_schedules, masked
from jaxar.methods import hmar, next_scale
from jaxar.methods.base import Task
from jaxar.nn.convnet import ConvStack
from jaxar.tokenizers import multiscale_vq
from jaxar.tokenizers._quantizers import VQ
from jaxar.tokenizers.base import ImageSpec, Tokens

CLASSES = 5
CONFIG = multiscale_vq.Config(
    quantizer=VQ(vocab_size=9, channels=3),
    stack=ConvStack(4, (1, 1), num_res_blocks=1, groups=2),
    scales=(1, 2, 4),
    num_phi=2,
)
TOKENIZER = multiscale_vq.build(CONFIG, ImageSpec(8, 3))
LENGTHS, TOKENS = TOKENIZER.spec.scale_lengths, TOKENIZER.spec.num_tokens
SIZES = hmar.Model(num_layers=2, width=16, num_heads=2)
TASK = Task(ImageSpec(8, 3), CLASSES, TOKENIZER.spec, TOKENIZER)
BATCH = {
    "ids": jnp.asarray(np.random.default_rng(1).integers(9, size=(2, TOKENS))),
    "label": jnp.array([4, 0]),
}
LABEL = {"label": BATCH["label"]}
NULL = jnp.full(2, CLASSES)
METHOD = hmar.build(hmar.Config(label_drop=0.0, refiner_layers=1, refine_start=7), SIZES, TASK)


@functools.cache
def variables():
    shapes = jax.eval_shape(lambda key: {**METHOD.init(key), "tokenizer": TOKENIZER.init(key)}, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.6 * rng.normal(size=leaf.shape), jnp.float32), nn.meta.unbox(shapes))


@functools.cache
def streams():
    return jax.jit(METHOD.streams)(variables()["tokenizer"], BATCH["ids"])


@functools.cache
def masked_logits():
    return jax.jit(METHOD.masked_logits)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


# Training.


def test_scales_weigh_as_published():
    lengths = tuple(p * p for p in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    weights = hmar.token_weights(lengths)
    of_scale = [part.sum() for part in np.split(weights, np.cumsum(lengths)[:-1])]
    published = [0.0247, 0.0642, 0.1150, 0.1379, 0.1402, 0.1329, 0.1208, 0.1054, 0.0882, 0.0709]
    np.testing.assert_allclose(of_scale, published, atol=5e-5)
    assert weights.sum() == pytest.approx(1)
    assert all(np.ptp(part) == 0 for part in np.split(weights, np.cumsum(lengths)[:-1]))


def test_losses_are_weighted_and_masked_means_of_the_log_likelihood():
    key = jax.random.key(3)
    hidden_key = jax.random.split(key, 3)[0]
    dropping = dataclasses.replace(METHOD, config=dataclasses.replace(METHOD.config, label_drop=1.0))

    @jax.jit
    def run(v):
        loss, masked_loss, dropped = (
            fn(v, BATCH, key, 0)[0] for fn in (METHOD.loss, METHOD.masked_loss, dropping.masked_loss)
        )
        null = METHOD.masked_loss(v, {**BATCH, "label": NULL}, key, 0)[0]
        return loss, masked_loss, dropped, null, METHOD.evaluate(v, BATCH, hidden_key)

    loss, masked_loss, dropped, null, figures = run(variables())
    np.testing.assert_allclose(dropped, null, rtol=1e-6)
    assert abs(null - masked_loss) > 1e-3
    features, own = streams()
    logits = jax.jit(METHOD.network.apply)(variables()["model"], features, BATCH["label"])
    nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(BATCH["ids"])[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss, (nll * hmar.token_weights(LENGTHS)).sum(1).mean(), rtol=1e-5)
    hidden = hmar.random_hidden(hidden_key, LENGTHS[1:])
    logits = masked_logits()(variables(), features, own, hidden, BATCH["label"])
    nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(BATCH["ids"])[..., None], -1)[..., 0]
    nll = nll[:, 1:][:, np.asarray(hidden)]
    np.testing.assert_allclose(masked_loss, nll.mean(), rtol=1e-5)
    np.testing.assert_allclose(figures["masked_bits_per_token"], nll.mean(axis=1) / np.log(2), rtol=1e-5)
    right = (jnp.argmax(logits, axis=-1) == BATCH["ids"])[:, 1:][:, np.asarray(hidden)]
    np.testing.assert_allclose(figures["masked_accuracy"], right.mean(axis=1), rtol=1e-5)


def test_training_hides_the_same_share_of_every_scale_anywhere():
    draws = np.asarray(jax.vmap(lambda key: hmar.random_hidden(key, (4, 9)))(keys(4000)))
    first, second = draws[:, :4].sum(1), draws[:, 4:].sum(1)
    assert set(first) == {1, 2, 3, 4} and set(second) == set(range(1, 10))
    # ceil(4 p) and ceil(9 p) of one p: their intervals of p overlap.
    assert all(max((a - 1) / 4, (b - 1) / 9) < min(a / 4, b / 9) for a, b in zip(first, second))
    np.testing.assert_allclose(np.bincount(second)[1:] / 4000, 1 / 9, atol=4 * np.sqrt(8 / 81 / 4000))
    where = draws[:, :4][first == 2]
    assert len({tuple(row) for row in where}) == 6


def test_hidden_tokens_tell_nothing():
    features, own = streams()
    everything = jnp.ones(own.shape[1], bool)
    results = [masked_logits()(variables(), features, x, everything, BATCH["label"]) for x in (own, 0 * own)]
    np.testing.assert_array_equal(*results)
    told = masked_logits()(variables(), features, own, ~everything, BATCH["label"])
    assert np.abs(told - results[0])[:, 1:].max() > 0.1


def test_the_refiner_is_trained_with_dropout():
    method = hmar.build(METHOD.config, dataclasses.replace(SIZES, dropout=0.5), TASK)
    features, own = streams()
    run = jax.jit(lambda v, key: method.masked_logits(v, features, own, features[0, :, 0] > 0, BATCH["label"], key))
    first, second = (run(variables(), key) for key in keys(2))
    assert (first != second).any()


@flax.struct.dataclass
class Player:
    params: dict
    emas: dict


@flax.struct.dataclass
class State:
    players: dict


def test_the_second_stage_starts_from_the_average_and_its_last_layers():
    stages = METHOD.stages()
    assert [(stage.start, stage.losses) for stage in stages] == [(0, ("nll",)), (7, ("masked_nll",))]
    assert METHOD.active(6) == ("nll",) and METHOD.active(7) == ("masked_nll",)
    alone, never = (
        dataclasses.replace(METHOD, config=dataclasses.replace(METHOD.config, refine_start=k)) for k in (0, None)
    )
    assert [stage.losses for stage in alone.stages()] == [("masked_nll",)]
    assert [stage.losses for stage in never.stages()] == [("nll",)]
    assert [loss.updates for loss in METHOD.losses()] == [("model",), ("refiner",)]
    own = {name: value["params"] for name, value in variables().items()}
    slow = jax.tree.map(lambda x: 2 * x, own["model"])
    state = State(
        {
            "model": Player(own["model"], {"0.9": own["model"], "0.99": slow}),
            "refiner": Player(own["refiner"], {"0.9": own["refiner"]}),
        }
    )
    after = stages[1].enter(state).players
    for params in (after["model"].params, *after["model"].emas.values()):
        jax.tree.map(np.testing.assert_array_equal, params, slow)
    refiner = after["refiner"]
    jax.tree.map(np.testing.assert_array_equal, refiner.params, refiner.emas["0.9"])
    np.testing.assert_array_equal(refiner.params["mask_embedding"], own["refiner"]["mask_embedding"])
    for name in ("stack", "modulation"):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[1:]), refiner.params[name], slow[name])
    jax.tree.map(np.testing.assert_array_equal, refiner.params["head"], slow["head"])


# Sampling with the networks.


@functools.cache
def sampler(options):
    return jax.jit(lambda v, cond, keys: METHOD.sample(v, cond, keys, options).ids)


OPTIONS = hmar.Sampling(guidance_scale=2.0, temperature=0.9, top_p=0.9)


def test_one_pass_per_scale_is_next_scale_sampling():
    plain = next_scale.NextScale(METHOD.network, next_scale.Config(), TOKENIZER)
    expected = jax.jit(lambda v, k: plain.sample(v, LABEL, k, OPTIONS).ids)(variables(), keys(2))
    np.testing.assert_array_equal(sampler(OPTIONS)(variables(), LABEL, keys(2)), expected)
    full = dataclasses.replace(OPTIONS, mask_schedule=tuple((n,) for n in LENGTHS))
    assert METHOD.network_calls(full) == METHOD.network_calls(OPTIONS) == 3
    assert METHOD.kept(full) == METHOD.kept(OPTIONS)


REFINING = hmar.Sampling(temperature=0.9, top_k=5, mask_schedule=((1,), (1, 3)))


@pytest.mark.parametrize("scale, unroll", [pytest.param(1.0, False, marks=pytest.mark.slow), (2.0, True)])
def test_a_mask_pass_draws_from_the_forward_of_training(scale, unroll):
    """Of the 2x2 map the most confident token stays, and the others are drawn given it: by the whole forward."""
    options = dataclasses.replace(REFINING, mask_guidance_scale=scale, unroll=unroll)
    ids = sampler(options)(variables(), LABEL, keys(2))
    assert METHOD.network_calls(options) == 4
    features, _ = jax.jit(METHOD.streams)(variables()["tokenizer"], ids)
    logits = jax.jit(METHOD.network.apply)(variables()["model"], features, BATCH["label"])
    first = lg.draw(logits, keys(2), jnp.arange(TOKENS), REFINING)
    np.testing.assert_array_equal(first[:, 0], ids[:, 0])
    confidence = lg.log_prob(lg.filtered(logits, REFINING), first)[:, 1:5]
    kept = np.asarray(confidence == confidence.max(axis=1, keepdims=True))
    assert (kept.sum(1) == 1).all() and (kept[0] != kept[1]).any()
    np.testing.assert_array_equal(ids[:, 1:5][kept], first[:, 1:5][kept])
    _, own = jax.jit(METHOD.streams)(variables()["tokenizer"], first)
    stream = masked.fold(masked.fold(masked.fold(keys(2), hmar._REFINE + 1), 0), 1)
    for row in range(2):
        hidden = jnp.zeros(TOKENS - 1, bool).at[:4].set(~kept[row])
        cond, null = (masked_logits()(variables(), features, own, hidden, label) for label in (BATCH["label"], NULL))
        logits = lg.guide(cond, null, scale)[row : row + 1, 1:5]
        again = lg.draw(logits, stream[row : row + 1], jnp.arange(4), REFINING)[0]
        np.testing.assert_array_equal(ids[row, 1:5][~kept[row]], again[~kept[row]])
    assert (ids != first).any()


def test_given_tokens_stay():
    known = jnp.asarray(np.random.default_rng(2).integers(2, size=(2, TOKENS)), bool)

    @jax.jit
    def run(v, ids, known):
        return METHOD.complete(v, Tokens(ids=ids), known, LABEL, keys(2), REFINING).ids

    ids = run(variables(), BATCH["ids"], known)
    np.testing.assert_array_equal(ids[known], BATCH["ids"][known])
    assert (ids != BATCH["ids"]).any()
    nothing = run(variables(), BATCH["ids"], jnp.zeros_like(known))
    np.testing.assert_array_equal(nothing, sampler(REFINING)(variables(), LABEL, keys(2)))


def test_sampling_keeps_no_activations_of_other_scales():
    """Nothing but ids is as long as all scales together, where a sampler with a cache has its keys and values."""

    def tokens_long(method):
        sample = lambda v: method.sample(v, LABEL, keys(2), next_scale.Sampling()).ids  # noqa: E731
        shapes = [
            var.aval.shape for eqn in _equations(jax.make_jaxpr(sample)(variables()).jaxpr) for var in eqn.outvars
        ]
        return [shape for shape in shapes if TOKENS in shape and len(shape) > 2]

    cached = dataclasses.replace(METHOD.network, markov=False)
    assert not tokens_long(next_scale.NextScale(METHOD.network, next_scale.Config(), TOKENIZER))
    assert tokens_long(next_scale.NextScale(cached, next_scale.Config(), TOKENIZER))


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


# Sampling from a teacher whose law is known. Token maps of one and of three tokens; in the second, position i is
# uniform over i + 2 of six ids, and all tokens before it say which. The fewer ids, the surer: whatever is drawn,
# confidence takes the positions in order, so that one by one the samples follow the joint law.

VOCAB, COUNT = 6, 20_000


def allowed(y, before):
    return [(y + 2 * sum(before) + len(before) + i) % VOCAB for i in range(len(before) + 2)]


def joint():
    """(y, x_0, x_1, x_2) -> probability."""
    return {
        (y, a, b, c): 1 / 48
        for y in range(2)
        for a in allowed(y, ())
        for b in allowed(y, (a,))
        for c in allowed(y, (a, b))
    }


def teacher():
    """log p(x_i | y, known ids), [2, 7^3 states, 3, 6]; 6 stands for an unknown id."""
    table = np.full((2, (VOCAB + 1) ** 3, 3, VOCAB), -np.inf, np.float32)
    for y, state in itertools.product(range(2), itertools.product(range(VOCAB + 1), repeat=3)):
        counts = np.zeros((3, VOCAB))
        for (other, *x), p in joint().items():
            if other == y and all(s in (VOCAB, v) for s, v in zip(state, x)):
                counts[range(3), x] += p
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(counts / counts.sum(1, keepdims=True))
        table[y, np.dot(state, (49, 7, 1))] = np.where(counts.sum() > 0, logs, 0)
    return table


class Toy(hmar.HMAR):
    """HMAR with the teacher in place of both networks; the canvas is y."""

    def decoder(self, variables, cond, unroll):
        def extend(inputs, scale, state):
            if scale == 0:
                only_two = jnp.where(jnp.arange(VOCAB) < 2, 0.0, -jnp.inf)
                return jnp.broadcast_to(only_two, (cond["label"].shape[0], 1, VOCAB)), None
            return variables[inputs, VOCAB * 57], None

        return extend, None

    def _predictor(self, variables, cond, options):
        def of_scale(scale, inputs, passes):
            def predict(state, step, segment):
                code = jnp.where(state.known, state.tokens, VOCAB) @ jnp.array([49, 7, 1])
                return variables["model"][inputs, code], None

            return predict

        return of_scale


def toy():
    spec = types.SimpleNamespace(scales=((1, 1), (1, 3)), scale_lengths=(1, 3), grid=(1, 1), channels=1)
    tokenizer = types.SimpleNamespace(spec=spec, next_input=lambda v, scale, y, ids: (y, ids[:, 0]))
    return Toy(types.SimpleNamespace(num_classes=1), METHOD.config, tokenizer, METHOD.branch)


@functools.cache
def toy_p_value(schedule, seed):
    options = hmar.Sampling(mask_schedule=schedule)
    table = {"model": jnp.asarray(teacher()), "tokenizer": None}
    draw = jax.jit(lambda keys: toy().sample(table, {"label": jnp.zeros(COUNT, int)}, keys, options).ids)
    ids = np.asarray(draw(keys(COUNT, seed)))
    cells = {sequence: i for i, sequence in enumerate(joint())}
    outside = sum(tuple(row) not in cells for row in ids)
    observed = np.bincount([cells[tuple(row)] for row in ids if tuple(row) in cells], minlength=48)
    return 0.0 if outside else scipy.stats.chisquare(observed).pvalue


@pytest.mark.parametrize("seed", range(3))
def test_one_by_one_the_joint_law_of_a_teacher_is_met(seed):
    assert toy_p_value(((1,), (1, 1, 1)), seed) > 1e-4


@pytest.mark.parametrize("schedule", [(), ((1,), (1, 2)), ((1,), (2, 1))])
def test_fewer_passes_are_told_apart(schedule):
    assert toy_p_value(schedule, 0) < 1e-4


# Options.


def test_schedules_that_do_not_fit_are_refused():
    for schedule in (((1,), (1, 2)), ((1,), (4,), (16,), (1,)), ((2,),)):
        with pytest.raises(ConfigError, match="must have numbers that sum to 1, 4, 16, the tokens of the scales"):
            METHOD.network_calls(hmar.Sampling(mask_schedule=schedule))
    with pytest.raises(ConfigError, match="at least one per scale and all positive"):
        hmar.Sampling(mask_schedule=((1,), (0, 4)))
    alone = hmar.build(hmar.Config(refiner_layers=0), SIZES, TASK)
    assert list(alone.players()) == ["model"] and alone.network_calls(hmar.Sampling()) == 3
    with pytest.raises(ConfigError, match="this run has no refiner"):
        alone.network_calls(REFINING)


def test_a_refiner_may_replace_all_layers():
    method = hmar.build(hmar.Config(refiner_layers=2), SIZES, TASK)
    shapes = {**jax.eval_shape(method.init, jax.random.key(0)), "tokenizer": variables()["tokenizer"]}
    loss, _ = jax.eval_shape(lambda v: method.masked_loss(v, BATCH, jax.random.key(0), 0), nn.meta.unbox(shapes))
    assert loss.shape == ()


def test_refiners_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="refiner_layers=3 must be at most model.num_layers=2"):
        hmar.build(hmar.Config(refiner_layers=3), SIZES, TASK)
    with pytest.raises(ConfigError, match="shared_adaln=True leaves a refiner no adaLN"):
        hmar.build(hmar.Config(refiner_layers=1), dataclasses.replace(SIZES, shared_adaln=True), TASK)
    with pytest.raises(ConfigError, match="refine_start=5 must be a step, and needs"):
        hmar.Config(refiner_layers=0, refine_start=5)


def test_kept_counts_follow_in_proportion():
    counts = mask_schedules.kept_counts((2, 3, 4))
    assert counts[:, 9].tolist() == [7, 4, 0]
    assert counts[:, 3].tolist() == [2, 1, 0] and counts[:, 0].tolist() == [0, 0, 0]
