"""Any-subset autoregression: what a conditional reads, densities in one pass, samples of the real network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError, parse
from jaxar.methods import any_subset
from jaxar.methods.base import Task
from jaxar.tokenizers.base import ImageSpec, Tokens, TokenSpec
from tests.enumerated import LENGTH, SEQUENCES, VOCAB, p_values
from tests.methods.maskgit_test import randomized

SPEC = TokenSpec("discrete", ((1, LENGTH),), channels=4, vocab_size=VOCAB)
SIZES = any_subset.Model(num_layers=2, width=8, num_heads=2, dropout=0.0)
METHOD = any_subset.build(any_subset.Config(), SIZES, Task(ImageSpec(32, 3), 2, SPEC))
VARIABLES = jax.tree.map(lambda x: 0.6 * x, randomized(METHOD))  # attention is not saturated
MODEL = VARIABLES["model"]


@jax.jit
def logits(ids, order, prompt, ranks, seen):
    return METHOD.network.apply(MODEL, ids, order, prompt, ranks, seen, jnp.ones(len(ids), jnp.int32))


@jax.jit
def token_nll(ids, known):
    return METHOD.token_nll(MODEL, ids, known, {"label": jnp.ones(len(ids), jnp.int32)})


def law(known=None, ids=None):
    """Probabilities of all sequences given the tokens at `known` places."""
    known = np.zeros(LENGTH, bool) if known is None else np.array(known, bool)
    nll = np.asarray(token_nll(jnp.asarray(SEQUENCES), jnp.broadcast_to(known, SEQUENCES.shape)), np.float64)
    fits = True if ids is None else (ids == SEQUENCES)[:, known].all(axis=1)
    return np.where(fits, np.exp(-nll.sum(axis=1)), 0)


def test_a_conditional_reads_the_seen_tokens_alone():
    """All 27 sequences: answers agree if and only if the seen prefixes do, also where the prompt sees itself."""
    ids = jnp.asarray(SEQUENCES)
    order = jnp.broadcast_to(jnp.array([2, 0, 1]), ids.shape)
    for prompt in (0, 2):
        for seen in range(prompt, LENGTH):
            full = jnp.full((27, 1), seen)
            got = np.asarray(logits(ids, order, jnp.full(27, prompt), full * 0 + 2, full))[:, 0]
            same = (SEQUENCES[:, None, :seen] == SEQUENCES[None, :, :seen]).all(axis=-1)
            np.testing.assert_array_equal(np.abs(got[:, None] - got[None]).max(axis=-1) < 1e-5, same)


def test_the_tokens_of_the_prompt_see_one_another():
    ids, order = jnp.asarray(SEQUENCES), jnp.broadcast_to(jnp.arange(LENGTH), SEQUENCES.shape)
    asked = jnp.full((27, 1), 2)
    together, ordered = (logits(ids, order, jnp.full(27, prompt), asked, asked) for prompt in (2, 0))
    assert np.abs(together - ordered).max() > 1e-3


@pytest.mark.parametrize("known", [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 0, 1)])
def test_one_pass_gives_the_product_of_sequential_conditionals(known):
    known = np.array(known, bool)
    order = np.concatenate([np.flatnonzero(known), np.flatnonzero(~known)])
    prompt, ranked, total = int(known.sum()), SEQUENCES[:, order], 0.0
    for rank in range(prompt, LENGTH):
        ahead = np.where(np.arange(LENGTH) < rank, ranked, 0)  # the others are not there yet
        at = jnp.full((27, 1), rank)
        given = logits(jnp.asarray(ahead), jnp.broadcast_to(order, ranked.shape), jnp.full(27, prompt), at, at)
        log_probs = np.asarray(jax.nn.log_softmax(given[:, 0]), np.float64)
        total = total + log_probs[np.arange(27), ranked[:, rank]]
    nll = np.asarray(token_nll(jnp.asarray(SEQUENCES), jnp.broadcast_to(known, SEQUENCES.shape)))
    np.testing.assert_allclose(nll.sum(axis=1), -total, rtol=1e-5, atol=1e-6)
    assert (nll[:, known] == 0).all()
    mass = np.exp(total).reshape((VOCAB,) * LENGTH).sum(axis=tuple(np.flatnonzero(~known)))
    np.testing.assert_allclose(mass, 1, rtol=1e-5)


@functools.cache
def sampler(draft, **options):
    @jax.jit
    def sample(keys, ids, known):
        cond = {"label": jnp.ones(len(keys), jnp.int32)}
        options_ = any_subset.Sampling(draft=draft, **options)
        return METHOD.speculate(MODEL, ids, known, cond, keys, options_)

    return sample


@pytest.mark.slow
def test_samples_of_the_network_follow_its_density_in_fewer_calls():
    def sample(keys):
        zeros = jnp.zeros((len(keys), LENGTH), jnp.int32)
        return sampler(3)(keys, zeros, zeros > 0)

    assert (p_values(lambda keys: sample(keys)[0], law()) > 1e-4).all()
    calls = np.asarray(sample(jax.random.split(jax.random.key(0), 2000))[1])
    assert calls.mean() < LENGTH and calls.max() == METHOD.network_calls(any_subset.Sampling(draft=3))


@pytest.mark.slow
def test_completions_of_the_network_follow_its_conditional_density():
    def sample(keys):
        known = jnp.broadcast_to(jnp.array([False, True, False]), (len(keys), LENGTH))
        return sampler(3)(keys, jnp.full(known.shape, 2), known)[0]

    conditional = law(known=(0, 1, 0), ids=np.array([2, 2, 2]))
    assert conditional.sum() == pytest.approx(1, rel=1e-5)
    assert (p_values(sample, conditional) > 1e-4).all()
    joint = np.where(SEQUENCES[:, 1] == 2, law(), 0)  # of another order, with which nothing makes this one agree
    assert (p_values(sample, joint / joint.sum()) < 1e-4).all()


def test_guidance_follows_the_ranks():
    """Greedy: the ids of largest guided logit, one after another."""
    options = any_subset.Sampling(draft=3, greedy=True, guidance_scale=4.0, guidance_schedule="linear")
    ids, zeros = np.zeros((2, LENGTH), np.int32), jnp.zeros((2, LENGTH), jnp.int32)
    label = jnp.array([1, 2])  # the class, then the null class
    both = jax.jit(METHOD.network.apply)
    for rank in range(LENGTH):
        at = jnp.full((2, 1), rank)
        order = jnp.broadcast_to(jnp.arange(LENGTH), ids.shape)
        given, null = both(MODEL, jnp.asarray(ids), order, zeros[:, 0], at, at, label)[:, 0]
        ids[:, rank] = np.argmax(null + (1.0 + 1.5 * rank) * (given - null))
    cond, keys = {"label": jnp.ones(2, jnp.int32)}, jax.random.split(jax.random.key(0), 2)
    sample = jax.jit(lambda keys: METHOD.sample(VARIABLES, cond, keys, options).ids)
    np.testing.assert_array_equal(sample(keys), ids)


def test_training_hides_everything_of_some_samples_and_at_least_the_given_share_of_others():
    config = any_subset.Config(min_masked=0.4, whole=0.25)
    spec = TokenSpec("discrete", ((2, 5),), channels=4, vocab_size=VOCAB)
    hidden = any_subset.build(config, SIZES, Task(ImageSpec(32, 3), 2, spec)).hide(jax.random.key(0), 4000)
    share = np.bincount(np.asarray(hidden).sum(axis=1), minlength=11) / 4000
    expected = np.array([0] * 5 + [0.75 / 6] * 5 + [0.75 / 6 + 0.25])  # 5 to 10 tokens
    assert (np.abs(share - expected) < 4 * np.sqrt(expected / 4000) + 1e-9).all()


def test_the_loss_is_the_mean_over_hidden_tokens_of_valid_samples():
    ids = jnp.asarray(SEQUENCES[5:8])
    batch = {"ids": ids, "label": jnp.ones(3, jnp.int32), "valid": jnp.array([True, False, True])}
    method = any_subset.AnySubset(METHOD.network, any_subset.Config(label_drop=0.0))
    loss, _ = jax.jit(method.loss)(VARIABLES, batch, jax.random.key(2), 0)
    hidden = method.hide(jax.random.split(jax.random.key(2), 3)[0], 3)
    each = np.asarray(token_nll(ids, ~hidden)).sum(axis=1) / np.asarray(hidden).sum(axis=1)
    np.testing.assert_allclose(loss, each[::2].mean(), rtol=1e-5)


def test_validation_gives_the_exact_figure_of_whole_images():
    batch = {"ids": jnp.asarray(SEQUENCES), "label": jnp.ones(27, jnp.int32)}
    figures = jax.jit(METHOD.evaluate)(VARIABLES, batch, jax.random.key(0))
    np.testing.assert_allclose(figures["bits_per_token"], -np.log2(law()) / LENGTH, rtol=1e-4)
    assert figures["half_bits_per_token"].shape == (27,)


def test_completion_is_what_the_method_offers():
    known = jnp.arange(LENGTH) == jnp.array([0, 1])[:, None]
    cond, keys = {"label": jnp.ones(2, jnp.int32)}, jax.random.split(jax.random.key(0), 2)
    tokens = Tokens(ids=jnp.full((2, LENGTH), 2))
    options = any_subset.Sampling(draft=3)
    ids = jax.jit(lambda known: METHOD.complete(VARIABLES, tokens, known, cond, keys, options).ids)(known)
    np.testing.assert_array_equal(ids, sampler(3)(keys, tokens.ids, known)[0])
    assert (ids[jnp.array([0, 1]), jnp.array([0, 1])] == 2).all()


@pytest.mark.parametrize(
    "section, values, message",
    [
        ("method", {"min_masked": 1.5}, "method.min_masked=1.5"),
        ("method", {"whole": -0.5}, "method.whole=-0.5"),
        ("sample", {"draft": 0}, "sample.draft=0"),
        ("model", {"width": 10, "num_heads": 4}, "use width=8"),
        ("model", {"dropout": 1.0}, "model.dropout=1.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(section, values, message):
    types = {"method": any_subset.Config, "sample": any_subset.Sampling, "model": any_subset.Model}
    with pytest.raises(ConfigError, match=message):
        parse(types[section], values, section)
