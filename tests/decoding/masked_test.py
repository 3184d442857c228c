"""The masked decode loop against enumerated laws: toy models whose conditionals are tables."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.decoding import mask_schedules, masked
from tests.enumerated import BASE, LENGTH, SEQUENCES, VOCAB, by_order, conditionals, over_orders, p_values, table

PLAIN = lg.Sampling()

COND, NULL = table(0), table(1)
JOINT = scipy.special.softmax(2 * np.random.default_rng(2).normal(size=(VOCAB,) * LENGTH))
CONSISTENT = conditionals(JOINT)


def predict_with(tables, state, step, segment):
    """A model in table form; `extra` holds which table a row reads."""
    code = jnp.where(state.known, state.tokens, VOCAB) @ jnp.asarray(BASE)
    return jnp.asarray(tables)[state.extra, code], state.extra


def start(batch, halves=1, known=None):
    tokens = jnp.zeros((batch, LENGTH), jnp.int32)
    none = jnp.zeros((batch, LENGTH), bool)
    return masked.State(tokens, none if known is None else known, jnp.repeat(jnp.arange(halves), batch))


def sampler(model, counts, rules, options=PLAIN, begin=start):
    """A compiled `keys -> ids`; `rules(keys, remaining)` gives the arguments `choose` and `keep`."""
    scales = lg.guidance_scales(options, len(counts))
    halves = 2 if lg.is_guided(scales) else 1
    predict = masked.guided(functools.partial(predict_with, np.stack([model, NULL])), scales)

    @jax.jit
    def sample(keys):
        state = begin(len(keys), halves)
        rest = rules(keys, masked.by_table(counts, state.known))
        pieces = mask_schedules.segments(counts, 1)
        return masked.decode(masked.token_law(predict, options), state, keys, pieces, **rest).tokens

    return sample


def in_order(priority):
    def rules(keys, remaining):
        order = jnp.broadcast_to(jnp.asarray(priority, jnp.float32), (len(keys), LENGTH))
        return {"choose": masked.next_in_order(order, remaining)}

    return rules


def in_random_order(keys, remaining):
    return {"choose": masked.next_in_order(masked.random_priority(keys, LENGTH), remaining)}


def by_confidence(noise):
    return lambda keys, remaining: {"keep": masked.most_confident(remaining, np.full(LENGTH, noise))}


def most_confident_first(model):
    """Probabilities when every masked token is drawn and the one with the likeliest id is kept, step after step."""
    probs = scipy.special.softmax(model.astype(np.float64), axis=-1)
    result = {tuple(np.full(LENGTH, VOCAB)): 1.0}
    for _ in range(LENGTH):
        following = {}
        for state, mass in result.items():
            law, free = probs[np.dot(state, BASE)], [i for i in range(LENGTH) if state[i] == VOCAB]
            for ids in itertools.product(range(VOCAB), repeat=len(free)):
                each = [law[i, v] for i, v in zip(free, ids)]
                best = int(np.argmax(each))
                after = tuple(ids[best] if i == free[best] else s for i, s in enumerate(state))
                following[after] = following.get(after, 0) + mass * np.prod(each)
        result = following
    return np.array([result[tuple(ids)] for ids in SEQUENCES])


ONE_BY_ONE = mask_schedules.one_by_one(LENGTH)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_fixed_order_gives_the_product_of_conditionals(order):
    sample = sampler(COND, ONE_BY_ONE, in_order(-np.argsort(order)))
    assert (p_values(sample, by_order(COND, order)) > 1e-4).all()
    assert (p_values(sample, by_order(COND, (1, 0, 2))) < 1e-4).all()


def test_a_random_order_gives_the_mean_over_orders():
    sample = sampler(COND, ONE_BY_ONE, in_random_order)
    assert (p_values(sample, over_orders(COND)) > 1e-4).all()
    assert (p_values(sample, by_order(COND, (0, 1, 2))) < 1e-4).all()


def at_levels(*levels):
    return lambda keys, remaining: {
        "choose": masked.at_levels(masked.random_priority(keys, LENGTH), np.array(levels), np.zeros((1, LENGTH), bool))
    }


def test_levels_reveal_each_token_independently():
    """Two steps with a third of the tokens masked in between: the first step reveals any set S of them."""
    level, law = 1 / 3, np.zeros(len(SEQUENCES))
    for size in range(LENGTH + 1):
        for order in itertools.permutations(range(LENGTH)):
            weight = (1 - level) ** size * level ** (LENGTH - size) / math.factorial(size)
            law += weight / math.factorial(LENGTH - size) * by_order(COND, order, (size, LENGTH - size))
    sample = sampler(COND, np.zeros((2, LENGTH + 1), np.int32), at_levels(level, 0.0))
    assert (p_values(sample, law) > 1e-4).all()
    assert (p_values(sample, over_orders(COND)) < 1e-4).all()
    fine = sampler(COND, ONE_BY_ONE, at_levels(*np.linspace(1, 0, 301)[1:]))
    assert (p_values(fine, over_orders(COND)) > 1e-4).all()


def test_levels_leave_no_step_idle_and_keep_their_times():
    priority = jnp.array([[0.95, 0.05, 0.45, 0.48], [0.2, 0.9, 0.8, 0.1]])
    known = jnp.array([[False, False, False, False], [False, True, False, False]])
    choose = masked.at_levels(priority, np.array([0.75, 0.5, 0.25, 0.0]), known)
    turns = [np.asarray(choose(~known, step, None)) for step in range(3)]
    np.testing.assert_array_equal([t[0] for t in turns], np.eye(3, dtype=bool)[:, [0, 2, 1, 1]])
    np.testing.assert_array_equal([t[1] for t in turns][:2], [[0, 0, 1, 0], [1, 0, 0, 1]])


def test_confidence_of_noise_alone_is_a_random_order():
    assert (p_values(sampler(COND, ONE_BY_ONE, by_confidence(np.inf)), over_orders(COND)) > 1e-4).all()


def test_confidence_without_noise_prefers_likely_ids():
    """Its law is known, and it is not the model's joint even where all conditionals agree on one."""
    sample = sampler(CONSISTENT, ONE_BY_ONE, by_confidence(0.0))
    assert (p_values(sample, most_confident_first(CONSISTENT)) > 1e-4).all()
    assert (p_values(sample, JOINT.ravel()) < 1e-4).all()


def test_one_token_per_step_is_exact_in_any_order_for_a_consistent_model():
    assert (p_values(sampler(CONSISTENT, ONE_BY_ONE, in_random_order), JOINT.ravel()) > 1e-4).all()
    at_once = mask_schedules.masked_counts("linear", 1, LENGTH)
    independent = functools.reduce(np.multiply.outer, [JOINT.sum((1, 2)), JOINT.sum((0, 2)), JOINT.sum((0, 1))])
    sample = sampler(CONSISTENT, at_once, in_random_order)
    assert (p_values(sample, independent.ravel()) > 1e-4).all()
    assert (p_values(sample, JOINT.ravel()) < 1e-4).all()


def test_tokens_of_one_step_are_independent_given_the_known_ones():
    counts = np.array([[0, 1, 2, 2], [0, 0, 0, 0]], np.int32)  # one token, then two
    sample = sampler(COND, counts, in_order([1, 2, 3]))
    assert (p_values(sample, by_order(COND, (2, 0, 1), groups=(1, 2))) > 1e-4).all()
    assert (p_values(sample, by_order(COND, (2, 0, 1))) < 1e-4).all()


def test_guidance_follows_the_steps():
    options = lg.Sampling(guidance_scale=3.0, guidance_schedule="linear", temperature=0.8)
    sample = sampler(COND, ONE_BY_ONE, in_order([3, 2, 1]), options)
    decided = (np.arange((VOCAB + 1) ** LENGTH)[:, None] // BASE % (VOCAB + 1) != VOCAB).sum(axis=1)
    scales = (1.0 + decided)[:, None, None].clip(max=3)  # 1, 2, 3
    law = by_order((NULL + scales * (COND - NULL)) / 0.8, (0, 1, 2))
    assert (p_values(sample, law) > 1e-4).all()
    assert (p_values(sample, by_order((NULL + 3 * (COND - NULL)) / 0.8, (0, 1, 2))) < 1e-4).all()


def test_known_tokens_stay_and_condition_the_others():
    def begin(batch, halves):
        state = start(batch, halves, known=jnp.zeros((batch, LENGTH), bool).at[:, 1].set(True))
        return state._replace(tokens=state.tokens.at[:, 1].set(2))

    law = np.where(SEQUENCES[:, 1] == 2, JOINT.ravel(), 0)
    sample = sampler(CONSISTENT, ONE_BY_ONE, in_random_order, begin=begin)
    assert (p_values(sample, law / law.sum()) > 1e-4).all()
    kept = sampler(CONSISTENT, ONE_BY_ONE, by_confidence(1.0), begin=begin)
    assert (np.asarray(kept(jax.random.split(jax.random.key(0), 100)))[:, 1] == 2).all()


def test_a_sampler_that_reuses_its_key_is_rejected(monkeypatch):
    draw = lg.draw
    monkeypatch.setattr(lg, "draw", lambda logits, keys, positions, *rest: draw(logits, keys, 0 * positions, *rest))
    counts = np.zeros((1, LENGTH + 1), np.int32)
    sample = sampler(COND, counts, in_random_order)
    assert (p_values(sample, by_order(COND, (0, 1, 2), groups=(3,))) < 1e-4).all()


@pytest.mark.parametrize("rules", [in_random_order, by_confidence(1.0)])
def test_samples_do_not_depend_on_the_batch(rules):
    keys = jax.random.split(jax.random.key(3), 32)
    sample = sampler(COND, ONE_BY_ONE, rules, lg.Sampling(guidance_scale=1.5))
    np.testing.assert_array_equal(sample(keys)[10:14], sample(keys[10:14]))


@pytest.mark.parametrize("confident", [False, True])
@pytest.mark.parametrize("pieces", [1, 3])
def test_every_step_decides_what_the_table_says_within_the_static_bounds(pieces, confident):
    """A law over 40 tokens that counts; samples begin with 0, 10, ... known ones. Continuous tokens."""
    num, steps = 40, 6
    counts = mask_schedules.masked_counts("cosine", steps, num)
    cut = mask_schedules.segments(counts, pieces)
    known = jnp.arange(num) < jnp.array([0, 10, 25, 40])[:, None]

    def law(state, chosen, step, keys, segment):
        fits = (state.known.sum(axis=1) <= segment.known) & (confident | (chosen.sum(axis=1) <= segment.new))
        noise = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, (2,))))(masked.fold_positions(keys, num))
        seen = state.extra.at[step].set(jnp.where(fits, state.known.sum(axis=1), -1))
        return masked.Drawn(noise, noise[..., 0], seen)

    @jax.jit
    def run(keys):
        state = masked.State(jnp.full((4, num, 2), 9.0), known, jnp.zeros((steps, 4), jnp.int32))
        remaining = masked.by_table(counts, known)
        rules = in_random_rules(keys, num, remaining) if not confident else {}
        if confident:
            rules = {"keep": masked.most_confident(remaining, np.zeros(steps))}
        return masked.decode(law, state, keys, cut, **rules)

    state = run(jax.random.split(jax.random.key(0), 4))
    begun = np.asarray((~known).sum(axis=1))
    np.testing.assert_array_equal(state.extra[0], num - begun)
    np.testing.assert_array_equal(state.extra[1:], num - counts[:-1, begun])
    assert state.known.all()
    np.testing.assert_array_equal(jnp.all(state.tokens == 9.0, axis=-1), known)
    assert len(np.unique(np.asarray(state.tokens)[~np.asarray(known)])) == 2 * begun.sum()


def in_random_rules(keys, num, remaining):
    return {"choose": masked.next_in_order(masked.random_priority(keys, num), remaining)}


def test_largest_marks_exactly_as_many_even_among_equals():
    scores = jnp.array([[1.0, 3.0, 3.0, 3.0], [0.0, -jnp.inf, 2.0, 1.0]])
    expected = [[False, True, True, False], [True, False, True, True]]
    np.testing.assert_array_equal(masked.largest(scores, jnp.array([2, 3])), expected)


def test_positions_of_chosen_tokens_are_padded():
    chosen = jnp.array([[False, True, False, True], [False, False, True, False]])
    positions, valid = masked.positions_of(chosen, 2)
    np.testing.assert_array_equal(positions, [[1, 3], [2, 0]])
    np.testing.assert_array_equal(valid, [[True, True], [True, False]])


def test_confidence_is_the_logarithm_of_the_filtered_law():
    state = start(2)
    law = masked.token_law(functools.partial(predict_with, COND[None]), lg.Sampling(temperature=0.5, top_k=2))
    drawn = law(state, ~state.known, 0, jax.random.split(jax.random.key(0), 2), None)
    logits = COND[(VOCAB + 1) ** LENGTH - 1] / 0.5
    logits = np.where(logits >= np.sort(logits)[:, 1:2], logits, -np.inf)
    expected = np.take_along_axis(scipy.special.log_softmax(logits, axis=-1)[None], drawn.tokens[..., None], axis=-1)
    np.testing.assert_allclose(drawn.log_prob, expected[..., 0], rtol=1e-5)


def counting(predict):
    """`predict` that counts its calls in `State.extra`."""
    return lambda state, step, segment: (predict(state, step, segment)[0], state.extra + 1)


def confidently(model, threshold, options=PLAIN):
    """`keys -> (ids, calls)`; one token per step unless the model is sure, and no noise on the confidence."""
    predict = counting(lambda state, step, segment: predict_with(model[None], state._replace(extra=0), step, segment))

    @jax.jit
    def sample(keys):
        state = start(len(keys))._replace(extra=jnp.zeros((), jnp.int32))
        remaining = masked.at_least_one(masked.by_table(ONE_BY_ONE, state.known))
        keep = masked.confident(masked.most_confident(remaining, np.zeros(LENGTH)), threshold)
        law, pieces = masked.token_law(predict, options, unfiltered=True), mask_schedules.segments(ONE_BY_ONE, 1)
        state = masked.decode(law, state, keys, pieces, keep=keep, stop_early=True)
        assert state.known.shape == (len(keys), LENGTH)
        return state.tokens, state.extra

    return sample


def test_confident_decoding_is_the_usual_rule_at_one_and_a_single_step_at_zero():
    assert (p_values(lambda keys: confidently(COND, 1.0)(keys)[0], most_confident_first(COND)) > 1e-4).all()
    alone = by_order(COND, (0, 1, 2), groups=(3,))
    assert (p_values(lambda keys: confidently(COND, 0.0)(keys)[0], alone) > 1e-4).all()
    keys = jax.random.split(jax.random.key(0), 50)
    assert [int(confidently(COND, at)(keys)[1]) for at in (0.0, 1.0)] == [1, LENGTH]


def test_confident_decoding_calls_the_network_until_it_is_sure():
    """One sample at a time: never more calls at a lower threshold; a model that is sure needs one."""
    keys, sharp = jax.random.split(jax.random.key(1), 40), 4 * COND
    samplers = [confidently(sharp, at) for at in (0.3, 0.7, 0.95)]
    calls = np.array([np.mean([int(sample(key[None])[1]) for key in keys]) for sample in samplers])
    assert 1 < calls[0] <= calls[1] <= calls[2] < LENGTH and calls[0] < calls[2]
    surest = np.where(COND.max(axis=-1, keepdims=True) == COND, 30.0, 0.0).astype(np.float32)
    assert int(confidently(surest, 0.95)(keys)[1]) == 1


def test_confidence_for_the_threshold_is_that_of_the_unfiltered_model():
    """Top-1 makes every id certain to be drawn, but the model is not sure of any."""
    flat, keys = 0.01 * COND, jax.random.split(jax.random.key(1), 4)
    ids, calls = confidently(flat, 0.95, options=lg.Sampling(top_k=1))(keys)
    assert int(calls) == LENGTH and (ids == ids[0]).all()


# Schedules.


def test_schedules_begin_with_all_and_end_with_none():
    total = np.full(1, 256.0)
    ratio = np.array([1e-9, 0.5, 1.0])
    for name, half in (("cosine", 0.5**0.5), ("linear", 0.5), ("pow2.5", 1 - 0.5**2.5), ("log", 1 / 8)):
        np.testing.assert_allclose(mask_schedules.masked_share(name, ratio, total), [1, half, 1e-6], atol=1e-6)
    np.testing.assert_allclose(mask_schedules.masked_share("exp", ratio, total), [1 - 2**-8, 1 - 2**-4, 1e-6])
    np.testing.assert_allclose(mask_schedules.masked_share("log", np.array([1 / 256]), np.array([256.0])), [1.0])


@pytest.mark.parametrize("name", ["cosine", "linear", "log", "exp", "pow2.5"])
def test_shares_of_jax_are_those_of_numpy(name):
    ratio, total = np.linspace(0.05, 0.95, 7, dtype=np.float32), np.full(1, 64, np.float32)
    share = mask_schedules.masked_share(name, jnp.asarray(ratio), jnp.asarray(total))
    np.testing.assert_allclose(share, mask_schedules.masked_share(name, ratio, total), rtol=1e-5)


def test_counts_of_the_published_models():
    """MaskGIT's eight steps, and MAR's 64: one token at a time at first, seven at most."""
    assert mask_schedules.masked_counts("cosine", 8, 256)[:, 256].tolist() == [251, 236, 212, 181, 142, 97, 49, 0]
    mar = mask_schedules.cosine_counts(64, 256)[:, 256]
    new = -np.diff(mar, prepend=256)
    assert new[0] == 1 and new.max() == 7 and new.sum() == 256
    assert (-np.diff(mask_schedules.cosine_counts(256, 256)[:, 256], prepend=256) == 1).all()


def test_counts_at_two_thirds_depend_on_the_rounding():
    """The cosine of pi / 3 is 1/2 on paper; these are the published loops' numbers."""
    assert mask_schedules.masked_counts("cosine", 3, 256)[1, 256] == 127
    assert mask_schedules.cosine_counts(3, 256)[1, 256] == 128
    assert mask_schedules.cosine_counts(39, 64)[25, 64] == 31


@pytest.mark.parametrize("name", ["cosine", "linear", "log", "exp", "pow0.5"])
def test_every_step_decides_a_token_while_more_than_one_is_masked(name):
    counts = mask_schedules.masked_counts(name, 7, 20)
    before = np.concatenate([np.arange(21)[None], counts[:-1]])
    assert (counts <= before).all() and (counts[-1] == 0).all()
    assert ((counts < before) | (before <= 1)).all() and (counts[:-1, 1:] >= 1).all()


def test_one_by_one_is_a_table_of_its_own():
    counts = mask_schedules.one_by_one(4)
    np.testing.assert_array_equal(counts, [[0, 0, 1, 2, 3], [0, 0, 0, 1, 2], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]])
    linear = mask_schedules.masked_counts("linear", 3, 3)  # 3 (1 - 1/3) is below 2 in float32
    assert linear[:, 3].tolist() == [1, 1, 0]


def test_segments_bound_known_and_new_tokens():
    counts = mask_schedules.masked_counts("cosine", 8, 256)
    assert mask_schedules.segments(counts, 2, masked=256) == ((4, 44, 31, 24, 256), (8, 207, 49, 48, 212))
    assert mask_schedules.segments(counts, 1) == ((8, 256, 49, 48, 256),)
    assert [s.stop for s in mask_schedules.segments(counts, 3)] == [3, 6, 8]
    assert [s.stop for s in mask_schedules.segments(counts, 20)] == list(range(1, 9))


def test_due_tokens_are_masked_or_were_before_the_step_before():
    counts = mask_schedules.masked_counts("cosine", 8, 256)
    pieces = mask_schedules.segments(counts, 8, masked=256)
    assert [s.due for s in pieces] == [256, 256, 251, 236, 212, 181, 142, 97]
    assert [s.fresh for s in pieces] == [1, 5, 15, 24, 31, 39, 45, 48]
    assert mask_schedules.unbounded(3, 7) == (3, 7, 7, 7, 7)


@pytest.mark.parametrize("name", ["cos", "pow", "powx", "pow-1", "pownan"])
def test_unknown_schedules_are_refused(name):
    with pytest.raises(ConfigError, match="sample.schedule="):
        mask_schedules.check(name, "sample.schedule")
    mask_schedules.check("pow2.5", "sample.schedule")
