"""Masked diffusion processes: the bound does not depend on the schedule, and equals the mean over orders."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.diffusion import masking
from tests.enumerated import BASE, LENGTH, SEQUENCES, VOCAB, by_order, conditionals, table

SCHEDULES = ("linear", "cosine", "poly2", "poly0.5")


def hidden_nll(model, ids):
    """Sum of -log p of the hidden tokens, summed over the sets of each size: [1..LENGTH]."""
    log_probs = model - np.log(np.exp(model.astype(np.float64)).sum(-1, keepdims=True))
    result = np.zeros(LENGTH + 1)
    for hidden in itertools.product((False, True), repeat=LENGTH):
        state = np.where(hidden, VOCAB, ids)
        result[sum(hidden)] -= log_probs[state @ BASE, np.arange(LENGTH), ids][list(hidden)].sum()
    return result[1:]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_is_the_mean_over_orders_for_every_schedule(schedule):
    model, nodes = table(0), np.polynomial.legendre.leggauss(60)
    s = (nodes[0] + 1) / 2
    t, dt = s**4, 4 * s**3 * nodes[1] / 2  # roots of t become smooth
    sizes = np.arange(1, LENGTH + 1)
    share = masking.masked_share(schedule, t)[:, None]
    terms = share**sizes * (1 - share) ** (LENGTH - sizes)
    integrals = (dt * masking.weight(schedule, t)) @ terms
    counts = [1 / (n * math.comb(LENGTH, n)) for n in sizes]  # time integrated out
    np.testing.assert_allclose(integrals, counts, rtol=1e-8)
    for ids in SEQUENCES[::5]:
        row = int(ids @ VOCAB ** np.arange(LENGTH)[::-1])
        orders = [np.log(by_order(model, order)[row]) for order in itertools.permutations(range(LENGTH))]
        bound = integrals @ hidden_nll(model, ids)
        assert bound == pytest.approx(-np.mean(orders), abs=1e-6)
        assert bound > -np.log(np.mean(np.exp(orders)))


def test_the_bound_is_tight_where_the_conditionals_agree_on_one_law():
    joint = np.random.default_rng(2).dirichlet(np.ones(VOCAB**LENGTH)).reshape((VOCAB,) * LENGTH)
    counts = [1 / (n * math.comb(LENGTH, n)) for n in range(1, LENGTH + 1)]
    bounds = [counts @ hidden_nll(conditionals(joint), ids) for ids in SEQUENCES]
    np.testing.assert_allclose(bounds, -np.log(joint.ravel()), rtol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_weight_is_the_logarithmic_derivative_of_the_share(schedule):
    t, step = np.linspace(0.05, 0.95, 7), 1e-6
    share = [np.log(masking.masked_share(schedule, t + sign * step)) for sign in (-1, 1)]
    np.testing.assert_allclose(masking.weight(schedule, t), (share[1] - share[0]) / (2 * step), rtol=1e-6)
    ends = masking.masked_share(schedule, np.array([0.0, 1.0]))
    np.testing.assert_allclose(ends, [0, 1], atol=1e-12)


@pytest.mark.parametrize("name", ["cos", "poly", "poly-1", "polynan", "pow2"])
def test_unknown_schedules_are_refused(name):
    with pytest.raises(ConfigError, match="method.process="):
        masking.check(name, "method.process")


def test_odds_of_revealing_are_multiplied_and_zeros_change_no_bit():
    levels = np.sin(np.pi / 2 * (1 - np.arange(1, 5) / 4))
    np.testing.assert_array_equal(masking.with_odds(levels, jnp.zeros(3)), levels.astype(np.float32))

    def odds(levels):
        kept = levels[:3] / np.append(1.0, levels[:2])
        return (1 - kept) / kept

    log_odds = np.array([0.7, -1.2, 3.0], np.float32)
    other = np.asarray(masking.with_odds(levels, jnp.asarray(log_odds)), np.float64)
    np.testing.assert_allclose(odds(other), odds(levels) * np.exp(log_odds), rtol=1e-5)
    assert (np.diff(other, prepend=1.0) < 0).all() and other[-1] == 0
