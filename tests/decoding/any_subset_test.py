"""Speculation with drafts of the model itself, against the enumerated product of its conditionals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.decoding import any_subset
from jaxar.decoding import logits as lg
from tests.enumerated import BASE, LENGTH, SEQUENCES, VOCAB, by_order, p_values, table

COND = 2 * table(0)
PLAIN = lg.Sampling()


def conditionals(model, ids, ranks, seen):
    code = jnp.where(jnp.arange(LENGTH) < seen[..., None], ids[:, None], VOCAB) @ jnp.asarray(BASE)
    return jnp.asarray(model)[code, ranks]


@functools.cache
def sampler(draft, options=PLAIN, model=0):
    toy = functools.partial(conditionals, (COND, np.zeros_like(COND) + np.arange(VOCAB, dtype=np.float32))[model])

    def sample(keys):
        start = jnp.zeros((len(keys), LENGTH), jnp.int32), jnp.zeros(len(keys), jnp.int32)
        return any_subset.speculate(toy, *start, keys, draft, options)

    return jax.jit(sample)


def keys(count):
    return jax.random.split(jax.random.key(0), count)


@pytest.mark.parametrize("draft", [1, 2, 3, 5])
def test_samples_follow_the_sequential_law(draft):
    def sample(keys):
        return sampler(draft)(keys)[0]

    assert (p_values(sample, by_order(COND, (0, 1, 2))) > 1e-4).all()
    assert (p_values(sample, by_order(COND, (0, 1, 2), groups=(1, 2))) < 1e-4).all()


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("_residual", lambda log_p, log_q: log_q),
        ("_accepted", lambda log_p, log_q, drafts, keys: jnp.full(len(drafts), drafts.shape[1])),
    ],
)
def test_sloppy_acceptance_or_replacement_is_rejected(monkeypatch, name, wrong):
    monkeypatch.setattr(any_subset, name, wrong)
    sample = sampler.__wrapped__(3)
    assert (p_values(lambda keys: sample(keys)[0], by_order(COND, (0, 1, 2))) < 1e-4).all()


def test_filtering_is_part_of_the_law():
    options = lg.Sampling(temperature=0.7, top_k=2)
    logits = COND / 0.7
    logits = np.where(logits >= np.sort(logits)[..., 1:2], logits, -np.inf)
    assert (p_values(lambda keys: sampler(3, options)(keys)[0], by_order(logits, (0, 1, 2))) > 1e-4).all()


def test_the_greedy_sequence_is_the_one_of_sequential_decoding():
    options, state = lg.Sampling(greedy=True), np.full(LENGTH, VOCAB)
    for i in range(LENGTH):
        state[i] = np.argmax(COND[state @ BASE, i])
    np.testing.assert_array_equal(sampler(3, options)(keys(5))[0], np.tile(state, (5, 1)))


def test_there_are_never_more_calls_than_tokens_and_fewer_where_drafts_are_right():
    calls = {draft: np.asarray(sampler(draft)(keys(2000))[1]) for draft in (1, 2, 3)}
    assert (calls[1] == LENGTH).all() and (calls[2] == LENGTH).all()  # two in two calls, the last one in one
    assert calls[3].max() == LENGTH and 2 < calls[3].mean() < LENGTH
    assert (np.asarray(sampler(3, model=1)(keys(2000))[1]) == 2).all()  # independent tokens: every draft is right


def test_decided_tokens_stay_and_samples_do_not_depend_on_the_batch():
    toy = functools.partial(conditionals, COND)

    @jax.jit
    def sample(decided, keys):
        ids = jnp.broadcast_to(jnp.array([2, 1, 0]), (len(keys), LENGTH))
        return any_subset.speculate(toy, ids, decided, keys, 2, PLAIN)

    decided = jnp.arange(40) % 4
    ids, calls = sample(decided, keys(40))
    kept = np.arange(LENGTH) < np.asarray(decided)[:, None]
    np.testing.assert_array_equal(np.where(kept, ids, 0), np.where(kept, [2, 1, 0], 0))
    np.testing.assert_array_equal(calls, LENGTH - decided)
    np.testing.assert_array_equal(sample(decided[5:7], keys(40)[5:7])[0], ids[5:7])


def test_tokens_after_the_decided_ones_follow_their_conditional_law():
    def sample(keys):
        ids = jnp.broadcast_to(jnp.array([1, 0, 0]), (len(keys), LENGTH))
        decided = jnp.ones(len(keys), jnp.int32)
        return any_subset.speculate(functools.partial(conditionals, COND), ids, decided, keys, 2, PLAIN)[0]

    law = np.where(SEQUENCES[:, 0] == 1, by_order(COND, (0, 1, 2)), 0)
    assert (p_values(jax.jit(sample), law / law.sum()) > 1e-4).all()
