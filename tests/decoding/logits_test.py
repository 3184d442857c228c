"""Filters against a brute-force sort, guidance against its published spellings, draws against their law."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxar.config import ConfigError
from jaxar.decoding import logits as lg

top_k, top_p = jax.jit(lg.keep_top_k, static_argnums=1), jax.jit(lg.keep_top_p, static_argnums=1)
draw = jax.jit(lg.draw, static_argnums=3)


def rows(key=0):
    """Logits with ties, signed zeros, infinities and a wide range."""
    x = np.random.default_rng(key).normal(size=(64, 37)).astype(np.float32)
    x[:16] *= 1e-3
    x[16:24] *= 30
    x[24:40] = np.round(x[24:40])  # many ties
    x[40:44, ::3] = -np.inf
    x[44:46] = 0.0
    x[45, ::2] = -0.0  # equal to 0.0, though its bits are not
    x[48] = x[48, 0]
    return x


def sorted_top_k(x, k):
    kth = np.sort(x, axis=-1)[:, ::-1][:, min(k, x.shape[-1]) - 1]
    return np.where(x >= kth[:, None], x, -np.inf)


def sorted_top_p(x, p):
    """Keeps an id if all strictly more likely ids together hold less than p; float64."""
    probs = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    above = np.stack([[row[values > v].sum() for v in values] for row, values in zip(probs, x)])
    return np.where(above < p, x, -np.inf), above


@pytest.mark.parametrize("k", [1, 2, 5, 36, 37, 1000])
def test_top_k_is_the_sorted_one_with_ties_kept(k):
    x = rows()
    np.testing.assert_array_equal(top_k(x, k), sorted_top_k(x, k))


@pytest.mark.parametrize("p", [1e-3, 0.1, 0.5, 0.9, 0.999])
def test_top_p_is_the_sorted_one_with_ties_kept(p):
    x = rows()
    expected, above = sorted_top_p(x, p)
    undecided = np.abs(above - p) < 1e-5  # float32 sums cannot tell
    kept = np.asarray(top_p(x, p))
    np.testing.assert_array_equal(kept[~undecided], expected[~undecided])
    assert undecided.mean() < 0.05
    assert (kept.max(-1) == x.max(-1)).all()  # the best id always stays


def test_top_p_keeps_the_id_that_crosses_the_threshold():
    x = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    for p, count in ((0.4, 1), (0.6, 2), (0.79, 2), (0.81, 3), (0.96, 4)):
        assert jnp.isfinite(top_p(x, p)).sum() == count


def test_filters_are_off_at_their_limits():
    x = jnp.asarray(rows())
    options = lg.Sampling(top_k=x.shape[-1], top_p=1.0)
    np.testing.assert_array_equal(lg.filtered(x, options), x)
    np.testing.assert_array_equal(lg.filtered(x, lg.Sampling()), x)
    only_best = lg.filtered(x, lg.Sampling(top_p=1e-9))
    np.testing.assert_array_equal(jnp.isfinite(only_best), (x == x.max(-1, keepdims=True)) & jnp.isfinite(x))


def test_order_is_temperature_then_top_k_then_top_p():
    x = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
    # Of the two largest, 0.4 / 0.7 = 0.571 holds the mass 0.5 alone, which it does not among all four.
    assert jnp.isfinite(lg.filtered(x, lg.Sampling(top_k=2, top_p=0.5))).sum() == 1
    assert jnp.isfinite(lg.filtered(x, lg.Sampling(top_p=0.5))).sum() == 2
    # Temperature 0.5 squares the odds: 16 / 30 = 0.533.
    assert jnp.isfinite(lg.filtered(x, lg.Sampling(temperature=0.5, top_p=0.5))).sum() == 1


def test_the_three_published_spellings_of_guidance_agree():
    cond, uncond = jnp.asarray(rows(0)[24:40]), jnp.asarray(rows(1)[24:40]) / 3
    s = 2.5
    t = s - 1
    ours = lg.guide(cond, uncond, s)
    np.testing.assert_allclose(ours, uncond + s * (cond - uncond), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours, (1 + t) * cond - t * uncond, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours, s * cond + (1 - s) * uncond, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(lg.guide(cond, uncond, 1.0), cond)
    np.testing.assert_allclose(lg.guide(cond, uncond, 0.0), uncond, rtol=1e-6, atol=1e-6)


def test_guidance_schedules():
    constant = lg.Sampling(guidance_scale=3.0)
    np.testing.assert_array_equal(lg.guidance_scales(constant, 4), [3, 3, 3, 3])
    linear = dataclasses.replace(constant, guidance_schedule="linear")
    np.testing.assert_allclose(lg.guidance_scales(linear, 5), [1, 1.5, 2, 2.5, 3])
    assert lg.guidance_scales(linear, 1) == [1]
    middle = dataclasses.replace(constant, guidance_interval=(0.25, 0.75))
    np.testing.assert_array_equal(lg.guidance_scales(middle, 8), [1, 1, 3, 3, 3, 3, 1, 1])
    assert not lg.is_guided(lg.guidance_scales(lg.Sampling(), 8))
    assert not lg.is_guided(lg.guidance_scales(dataclasses.replace(constant, guidance_interval=(0.5, 0.5)), 8))


@pytest.mark.parametrize("last, guided", [(-1, 16), (0, 2), (6, 8), (14, 16), (99, 16)])
def test_llamagen_interval_counts_the_first_token_and_steps_up_to_the_last(last, guided):
    options = lg.Sampling(guidance_scale=2.0, guidance_interval=lg.llamagen_interval(last, 16))
    np.testing.assert_array_equal(lg.guidance_scales(options, 16), [2] * guided + [1] * (16 - guided))


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", 0.0),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("guidance_interval", (0.5, 0.2)),
        ("guidance_interval", (0.0, 2.0)),
    ],
)
def test_options_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"sample.{field}="):
        lg.Sampling(**{field: value})


def frequencies(logits, options, count, seed):
    keys = jax.random.split(jax.random.key(seed), count)
    draws = jax.jit(lambda k: lg.draw(jnp.broadcast_to(logits, (count, 1, logits.size)), k, jnp.zeros(1, int), options))
    return np.bincount(np.asarray(draws(keys))[:, 0], minlength=logits.size)


@pytest.mark.parametrize(
    "options",
    [lg.Sampling(), lg.Sampling(temperature=0.7, top_k=3), lg.Sampling(top_p=0.8)],
    ids=["plain", "temperature and top-k", "top-p"],
)
def test_draws_follow_the_filtered_law(options):
    logits = jnp.array([0.3, -1.0, 1.2, 0.1])
    law = np.asarray(jax.nn.softmax(lg.filtered(logits, options)), np.float64)
    law /= law.sum()
    for seed in range(3):
        observed = frequencies(logits, options, 50_000, seed)
        assert observed[law == 0].sum() == 0
        assert scipy.stats.chisquare(observed[law > 0], 50_000 * law[law > 0]).pvalue > 1e-4
    # The test has power: a law that is off by a few percent is rejected.
    wrong = np.asarray(jax.nn.softmax(1.1 * lg.filtered(logits, options)), np.float64)
    assert scipy.stats.chisquare(observed[law > 0], 50_000 * wrong[law > 0] / wrong.sum()).pvalue < 1e-4


def test_a_draw_depends_on_its_own_key_and_position_alone():
    logits, keys = jnp.asarray(rows(2)[:12]).reshape(4, 3, 37), jax.random.split(jax.random.key(0), 4)
    options = lg.Sampling(top_k=20)
    whole = draw(logits, keys, jnp.arange(5, 8), options)
    part = draw(logits[2:3, 1:], keys[2:3], jnp.arange(6, 8), options)
    np.testing.assert_array_equal(whole[2:3, 1:], part)
    same = draw(jnp.broadcast_to(logits[:1, :1], (4, 64, 37)), keys[jnp.zeros(4, int)], jnp.arange(64), options)
    assert (same[0] == same[1]).all() and len(set(np.asarray(same[0]).tolist())) > 5


def test_greedy_takes_the_argmax():
    x = jnp.asarray(rows(3)).reshape(8, 8, 37)
    ids = draw(x, jax.random.split(jax.random.key(0), 8), jnp.arange(8), lg.Sampling(greedy=True, top_k=3))
    np.testing.assert_array_equal(ids, np.asarray(x).argmax(-1))
