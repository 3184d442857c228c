"""Masked diffusion: its loss against the enumerated bound, both samplers against enumerated laws, exact draws."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxar.config import ConfigError, parse
from jaxar.decoding import logits as lg
from jaxar.decoding import masked
from jaxar.methods import mdm
from jaxar.models import bidirectional
from jaxar.tokenizers.base import Tokens
from tests.enumerated import (
    COUNT,
    LENGTH,
    SEQUENCES,
    TableNetwork,
    by_order,
    conditionals,
    over_orders,
    p_values,
    table,
)

COND, NULL = table(0), table(1)
JOINT = scipy.special.softmax(2 * np.random.default_rng(2).normal(size=(3,) * LENGTH))


def method(*tables, **options):
    return mdm.MDM(TableNetwork(*tables), mdm.Config(**options))


def sampler(method, options):
    def sample(keys):
        cond = {"label": jnp.zeros(len(keys), jnp.int32)}
        return method.sample({"model": {}}, cond, keys, options).ids

    return jax.jit(sample)


@pytest.mark.parametrize("process", ["count", "linear", "cosine", "poly2"])
def test_the_loss_estimates_the_any_order_bound(process):
    rows = np.repeat(SEQUENCES[[3, 11, 22]], 400, axis=0)
    batch = {"ids": jnp.asarray(rows), "label": jnp.zeros(len(rows), jnp.int32)}
    toy = method(COND, NULL, process=process, label_drop=0.0)
    losses = jax.vmap(lambda key: toy.loss({"model": {}}, batch, key, 0)[0])(jax.random.split(jax.random.key(0), 50))
    orders = [np.log(by_order(COND, order))[[3, 11, 22]] for order in itertools.permutations(range(LENGTH))]
    error = losses.std() / np.sqrt(len(losses))
    bound = -np.mean(orders) / LENGTH
    assert abs(losses.mean() - bound) < 4 * error
    likelihood = -np.log(over_orders(COND))[[3, 11, 22]].mean() / LENGTH
    assert losses.mean() - likelihood > 4 * error  # the bound is not tight for this model: power


def test_counts_of_masked_tokens_are_spread_over_the_batch_and_any_subset_is_as_likely():
    hidden, weight = method(COND, NULL).hide(jax.random.key(0), 3 * 700)
    count = np.asarray(hidden).sum(axis=1)
    np.testing.assert_array_equal(np.bincount(count), [0, 700, 700, 700])
    np.testing.assert_allclose(weight, 1 / count)
    pairs = np.asarray(hidden)[count == 2].sum(axis=0)
    assert (np.abs(pairs - 1400 / 3) < 4 * np.sqrt(1400 / 9)).all()


def test_labels_are_dropped_and_invalid_samples_do_not_count():
    batch = {"ids": jnp.asarray(SEQUENCES[:2]), "label": jnp.zeros(2, jnp.int32), "valid": jnp.array([True, False])}
    one = jax.tree.map(lambda x: x[jnp.zeros(2, jnp.int32)], batch) | {"valid": jnp.array([True, False])}
    key = jax.random.key(1)
    dropped, kept = method(COND, NULL, label_drop=1.0), method(NULL, COND, label_drop=0.0)
    for toy in (dropped, kept):
        value = toy.loss({"model": {}}, batch, key, 0)[0]
        np.testing.assert_allclose(value, dropped.loss({"model": {}}, one, key, 0)[0], rtol=1e-6)


def test_the_first_hitting_sampler_draws_from_the_random_order_law():
    sample = sampler(method(COND, NULL), mdm.Sampling())
    assert (p_values(sample, over_orders(COND)) > 1e-4).all()
    assert (p_values(sample, by_order(COND, (0, 1, 2))) < 1e-4).all()


def test_the_first_hitting_sampler_draws_from_the_joint_of_consistent_conditionals():
    sample = sampler(method(conditionals(JOINT), NULL), mdm.Sampling())
    assert (p_values(sample, JOINT.ravel()) > 1e-4).all()


@functools.cache
def ancestral(num_steps, schedule="cosine"):
    return sampler(method(conditionals(JOINT), NULL), mdm.Sampling(num_steps=num_steps, schedule=schedule))


def test_the_ancestral_sampler_agrees_in_many_steps_and_not_in_one():
    assert (p_values(ancestral(300, "linear"), JOINT.ravel()) > 1e-4).all()
    alone = functools.reduce(np.multiply.outer, [JOINT.sum((1, 2)), JOINT.sum((0, 2)), JOINT.sum((0, 1))]).ravel()
    assert (p_values(ancestral(1), alone) > 1e-4).all()
    assert (p_values(ancestral(1), JOINT.ravel()) < 1e-4).all()


def test_the_ancestral_sampler_follows_its_schedule(monkeypatch):
    seen, at_levels = [], masked.at_levels
    monkeypatch.setattr(masked, "at_levels", lambda *args: seen.append(args[1]) or at_levels(*args))
    for schedule in ("linear", "poly2"):
        options = mdm.Sampling(num_steps=4, schedule=schedule)
        sampler(method(COND, NULL), options).lower(jax.random.split(jax.random.key(0), 2))
    np.testing.assert_allclose(seen, [[0.75, 0.5, 0.25, 0], [0.75**2, 0.5**2, 0.25**2, 0]], atol=1e-6)


def test_guidance_goes_from_the_null_class_past_the_asked_one():
    sample = sampler(method(COND, NULL), mdm.Sampling(guidance_scale=2.0))
    assert (p_values(sample, over_orders(NULL + 2 * (COND - NULL))) > 1e-4).all()
    assert (p_values(sample, over_orders(COND)) < 1e-4).all()


def test_the_network_is_called_once_per_time_at_which_something_changes():
    toy = method(COND, NULL)
    assert [toy.network_calls(mdm.Sampling(num_steps=n)) for n in (None, 2, 1000)] == [LENGTH, 2, LENGTH]


@pytest.mark.parametrize("num_steps", [None, 2])
def test_known_tokens_stay_and_condition_the_others(num_steps):
    toy = method(conditionals(JOINT), NULL)

    @jax.jit
    def sample(keys):
        known = jnp.broadcast_to(jnp.array([True, False, True]), (len(keys), LENGTH))
        tokens = Tokens(ids=jnp.full(known.shape, 2))
        cond = {"label": jnp.zeros(len(keys), jnp.int32)}
        return toy.complete({"model": {}}, tokens, known, cond, keys, mdm.Sampling(num_steps=num_steps)).ids

    law = np.where((SEQUENCES[:, ::2] == 2).all(axis=1), JOINT.ravel(), 0)
    assert (p_values(sample, law / law.sum()) > 1e-4).all()


@pytest.mark.slow
def test_reuse_of_keys_and_values_is_exact_in_one_layer():
    sizes = bidirectional.Sizes(1, 16, 2, dropout=0.0)
    toy = mdm.MDM(bidirectional.BidirectionalTransformer(sizes, 7, (2, 3), 5), mdm.Config())
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(toy.init, jax.random.key(0)))
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)

    def draw(**options):
        keys, cond = jax.random.split(jax.random.key(1), 4), {"label": jnp.arange(4)}
        return jax.jit(lambda v: toy.sample(v, cond, keys, mdm.Sampling(**options)).ids)(variables)

    np.testing.assert_array_equal(draw(refresh_every=4, segments=3), draw())


# Draws in float32.


def truncated_law(probs, most):
    """The law of argmax(log p + g) where Gumbel noise g is cut off above `most`; `probs` fall."""
    eps, total = np.exp(-most), np.cumsum(probs)
    following = np.append(probs[1:], 0)
    with np.errstate(divide="ignore"):
        pieces = np.exp(-eps * total / probs) - np.exp(-eps * total / following)
    pieces *= np.exp(eps * np.arange(1, len(probs) + 1)) / total
    return probs * np.cumsum(pieces[::-1])[::-1]


LARGEST_LOW = -np.log(-np.log1p(-(2.0**-23)))


def test_noise_that_ends_makes_rare_ids_rarer():
    probs, most = np.array([0.6, 0.3, 0.1]), 1.0
    uniform = np.random.default_rng(0).uniform(0, np.exp(-np.exp(-most)), (1_000_000, 3))
    drawn = np.bincount(np.argmax(np.log(probs) - np.log(-np.log(uniform)), axis=1), minlength=3) / 1e6
    law = truncated_law(probs, most)
    np.testing.assert_allclose(drawn, law, atol=0.003)
    assert law.sum() == pytest.approx(1) and law[2] < 0.08
    np.testing.assert_allclose(truncated_law(probs, 30.0), probs, rtol=1e-9)


def test_one_draw_of_mask_or_token_would_lose_tokens_and_exact_noise_does_not_end_early():
    """A step that reveals a token with probability 1e-7: with noise of 23 bits it happens less than half as often."""
    rare = np.array([1 - 1e-7, 0.6e-7, 0.4e-7])
    assert truncated_law(rare, LARGEST_LOW)[1:].sum() < 0.6e-7
    np.testing.assert_allclose(truncated_law(rare, 32.0)[1:], rare[1:], rtol=1e-3)
    low, high = (jax.random.gumbel(jax.random.key(0), (2**24,), mode=mode).max() for mode in ("low", "high"))
    assert low <= LARGEST_LOW * (1 + 1e-6) < high


def test_a_sampler_that_draws_mask_or_token_at_once_from_short_noise_is_rejected():
    """Every step draws the mask or an id; its noise is cut off at 2 in place of 15.95, which needs fewer samples."""
    levels = np.linspace(1, 0, 25)

    def sample(keys, most):
        toy = TableNetwork(conditionals(JOINT), NULL)
        ids, known = jnp.zeros((COUNT, LENGTH), jnp.int32), jnp.zeros((COUNT, LENGTH), bool)
        for k in range(24):
            reveal = 1 - levels[k + 1] / levels[k]
            logits = jax.nn.log_softmax(toy.apply({}, ids, known, jnp.zeros(COUNT, jnp.int32))) + np.log(reveal)
            mask = jnp.full((COUNT, LENGTH, 1), np.log1p(-reveal) if reveal < 1 else -jnp.inf)
            uniform = jax.random.uniform(jax.random.fold_in(keys[0], k), (COUNT, LENGTH, 4), minval=1e-30)
            noise = -jnp.log(-jnp.log(uniform * np.exp(-np.exp(-most))))
            drawn = jnp.argmax(jnp.concatenate([logits, mask], axis=-1) + noise, axis=-1)
            new = ~known & (drawn < 3)
            ids, known = jnp.where(new, drawn, ids), known | new
        return ids

    assert (p_values(jax.jit(functools.partial(sample, most=2.0)), JOINT.ravel()) < 1e-4).all()


def test_the_sampler_uses_exact_draws(monkeypatch):
    seen, draw = [], lg.draw
    monkeypatch.setattr(lg, "draw", lambda *args: seen.append(args[4]) or draw(*args))
    sampler(method(COND, NULL), mdm.Sampling()).lower(jax.random.split(jax.random.key(0), 2))
    assert seen == [True]


@pytest.mark.parametrize(
    "section, values, message",
    [
        ("method", {"process": "sine"}, "method.process='sine'"),
        ("method", {"label_drop": 1.5}, "method.label_drop=1.5"),
        ("sample", {"num_steps": 0}, "sample.num_steps=0"),
        ("sample", {"schedule": "count"}, "sample.schedule='count'"),
        ("sample", {"refresh_every": 0}, "sample.refresh_every=0"),
        ("sample", {"refresh_every": 2, "num_steps": 4}, "sample.refresh_every=2 needs to know"),
    ],
)
def test_options_that_make_no_sense_are_refused(section, values, message):
    with pytest.raises(ConfigError, match=message):
        parse({"method": mdm.Config, "sample": mdm.Sampling}[section], values, section)
