"""The decode loops against enumerated laws: toy models whose conditionals are tables."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxar.decoding import ar
from jaxar.decoding import logits as lg

VOCAB, LENGTH, COUNT, SEEDS = 3, 4, 50_000, 3
SEQUENCES = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)))


def table(seed):
    """Logits [step, history, v] of every conditional; a history is its ids read as a number in base v."""
    return np.random.default_rng(seed).normal(size=(LENGTH, VOCAB ** (LENGTH - 1), VOCAB)).astype(np.float32)


COND, NULL = table(0), table(1)


def extend(tables, ids, step, state, stop):
    """A model in table form. The state holds which table a row reads (0 or 1) and the history so far."""
    which, history = state
    if ids is not None:
        history = history * VOCAB + ids[:, 0]
    logits = jnp.asarray(tables)[which, step, history][:, None]
    return jnp.where(step < stop, logits, jnp.nan), (which, history)


def drawn(options):
    return functools.partial(lg.draw, options=options)


def start(batch, halves=1):
    return jnp.repeat(jnp.arange(halves), batch), jnp.zeros(halves * batch, jnp.int32)


def joint(tables):
    """Probabilities of all sequences under per-step logits [step, history, v]."""
    log_probs = scipy.special.log_softmax(tables.astype(np.float64), axis=-1)
    total = np.zeros(len(SEQUENCES))
    for i in range(LENGTH):
        history = SEQUENCES[:, :i] @ VOCAB ** np.arange(i)[::-1] if i else np.zeros(len(SEQUENCES), int)
        total += log_probs[i, history.astype(int), SEQUENCES[:, i]]
    return np.exp(total)


def p_values(sample, law):
    """Of Pearson's test that `sample(keys) -> ids` follows `law`, for several seeds."""
    result = []
    for seed in range(SEEDS):
        ids = np.asarray(sample(jax.random.split(jax.random.key(seed), COUNT)))
        code = ids @ VOCAB ** np.arange(ids.shape[1])[::-1]
        result.append(pearson(np.bincount(code, minlength=len(law)), COUNT * law))
    return np.array(result)


def pearson(observed, expected):
    """Cells that expect fewer than five samples are pooled."""
    rare = expected < 5
    pooled = [np.append(x[~rare], x[rare].sum()) if rare.any() else x for x in (observed, expected)]
    return scipy.stats.chisquare(pooled[0], pooled[1] * pooled[0].sum() / pooled[1].sum()).pvalue


def sampler(options, segments=1, tables=(COND, NULL)):
    scales = lg.guidance_scales(options, LENGTH)
    halves = 2 if lg.is_guided(scales) else 1
    step = ar.guided(functools.partial(extend, np.stack(tables)), scales)

    @jax.jit
    def sample(keys):
        return ar.next_token(step, None, start(len(keys), halves), keys, LENGTH, drawn(options), segments)

    return sample


def test_unguided_sampling_is_exact():
    plain = lg.Sampling(top_k=VOCAB, top_p=1.0)
    assert (p_values(sampler(plain), joint(COND)) > 1e-4).all()
    # Power: a sharper law, and a sampler that draws all positions with one key.
    assert (p_values(sampler(plain), joint(1.1 * COND)) < 1e-4).all()


def test_a_sampler_that_reuses_its_key_is_rejected(monkeypatch):
    draw = lg.draw
    monkeypatch.setattr(lg, "draw", lambda logits, keys, positions, options: draw(logits, keys, 0 * positions, options))
    assert (p_values(sampler(lg.Sampling()), joint(COND)) < 1e-4).all()


def test_guided_and_tempered_sampling_is_exact():
    options = lg.Sampling(guidance_scale=2.0, guidance_schedule="linear", temperature=0.8)
    scales = lg.guidance_scales(options, LENGTH)[:, None, None]
    guided = NULL + scales * (COND - NULL)
    assert (p_values(sampler(options), joint(guided / 0.8)) > 1e-4).all()
    constant = lg.Sampling(guidance_scale=2.0, temperature=0.8)
    assert (p_values(sampler(constant), joint(guided / 0.8)) < 1e-4).all()


def test_scale_zero_samples_the_null_model():
    sample = sampler(lg.Sampling(guidance_scale=0.0))
    assert (p_values(sample, joint(NULL)) > 1e-4).all()
    assert (p_values(sample, joint(COND)) < 1e-4).all()


@pytest.mark.parametrize("segments", [2, 3, 4, 9])
def test_segments_change_nothing(segments):
    """Each piece is told a bound above its steps: the toy answers NaN otherwise."""
    keys = jax.random.split(jax.random.key(0), 64)
    options = lg.Sampling(guidance_scale=1.5)
    np.testing.assert_array_equal(sampler(options, segments)(keys), sampler(options, 1)(keys))


def test_segment_stops_cover_the_steps_evenly():
    assert ar.segment_stops(256, 4) == (64, 128, 192, 256)
    assert ar.segment_stops(10, 3) == (4, 7, 10)
    assert ar.segment_stops(2, 8) == (1, 2)


def test_samples_do_not_depend_on_the_batch():
    keys = jax.random.split(jax.random.key(3), 32)
    sample = sampler(lg.Sampling(guidance_scale=1.5))
    np.testing.assert_array_equal(sample(keys)[10:14], sample(keys[10:14]))


def test_blocks_of_tokens_are_drawn_by_the_same_loop():
    """Two tokens per call, independent given the block before."""

    def extend_block(ids, step, history, stop):
        history = history if ids is None else ids @ jnp.array([VOCAB, 1])
        rows = jnp.asarray(COND)[jnp.stack([2 * step, 2 * step + 1])]  # [t history v]
        return jnp.moveaxis(rows[:, history], 0, 1), history

    @jax.jit
    def sample(keys):
        return ar.next_token(extend_block, None, jnp.zeros(len(keys), jnp.int32), keys, 2, drawn(lg.Sampling()), 2)

    log_probs = scipy.special.log_softmax(COND.astype(np.float64), axis=-1)
    history = SEQUENCES[:, :2] @ [VOCAB, 1]
    law = np.exp(
        sum(log_probs[i, 0, SEQUENCES[:, i]] for i in (0, 1))
        + sum(log_probs[i, history, SEQUENCES[:, i]] for i in (2, 3))
    )
    assert (p_values(sample, law) > 1e-4).all()


# Two scales of 1 and 3 tokens; the canvas is the first id.
SCALES = (1, 3)


def scale_sampler(options):
    scales = lg.guidance_scales(options, len(SCALES))
    halves = 2 if lg.is_guided(scales) else 1

    def extend_scale(inputs, scale, which):
        if inputs is None:
            return jnp.asarray([COND, NULL])[which, 0, 0][:, None], which
        return jnp.stack([jnp.asarray([COND, NULL])[which, i, inputs] for i in (1, 2, 3)], axis=1), which

    def next_input(scale, canvas, ids):
        return (ids[:, 0], ids[:, 0]) if scale == 0 else (canvas, None)

    @jax.jit
    def sample(keys):
        which = jnp.repeat(jnp.arange(halves), len(keys))
        step = ar.guided(extend_scale, scales)
        return ar.next_scale(step, next_input, jnp.zeros(len(keys), jnp.int32), which, keys, SCALES, drawn(options))

    return sample


def scale_law(logits):
    log_probs = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    first = log_probs[0, 0, SEQUENCES[:, 0]]
    return np.exp(first + sum(log_probs[i, SEQUENCES[:, 0], SEQUENCES[:, i]] for i in (1, 2, 3)))


def test_next_scale_sampling_is_exact():
    sample = scale_sampler(lg.Sampling())
    assert (p_values(lambda keys: sample(keys)[0], scale_law(COND)) > 1e-4).all()
    assert (p_values(lambda keys: sample(keys)[0], scale_law(1.1 * COND)) < 1e-4).all()


def test_guidance_grows_over_the_scales():
    options = lg.Sampling(guidance_scale=3.0, guidance_schedule="linear")
    sample = scale_sampler(options)
    scales = np.array([1, 3, 3, 3])[:, None, None]  # none at the first scale, all at the last
    assert (p_values(lambda keys: sample(keys)[0], scale_law(NULL + scales * (COND - NULL))) > 1e-4).all()


def test_tokens_of_a_scale_are_independent_given_the_coarser_ones():
    """By design of the method, and a check that no two tokens share their noise."""
    ids = np.asarray(scale_sampler(lg.Sampling())(jax.random.split(jax.random.key(7), COUNT))[0])
    for first in range(VOCAB):
        given = ids[ids[:, 0] == first]
        for a, b in itertools.combinations((1, 2, 3), 2):
            counts = np.zeros((VOCAB, VOCAB))
            np.add.at(counts, (given[:, a], given[:, b]), 1)
            assert scipy.stats.chi2_contingency(counts).pvalue > 1e-4
    assert (p_values(lambda _: np.roll(ids, 1, axis=1), scale_law(COND)) < 1e-4).all()


def test_the_canvas_is_returned():
    ids, canvas = scale_sampler(lg.Sampling())(jax.random.split(jax.random.key(0), 16))
    np.testing.assert_array_equal(canvas, ids[:, 0])
