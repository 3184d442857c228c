"""The one step, against numbers worked out by hand on a method of two vectors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.methods.base import LossAux, LossSpec, Stage
from jaxar.train_step import train_step
from tests.toys import SGD, Simultaneous, Toy, criticise, generate, make

X = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]], np.float32)
MEAN = X.mean(axis=0)


def step(plan, state, x=X, active=None, key=0):
    active = plan.method.active(int(state.step)) if active is None else active
    fn = jax.jit(functools.partial(train_step, plan=plan, active=active))
    return fn(state, {}, {"x": jnp.asarray(x)}, jax.random.key(key))


def w(state, player):
    return np.asarray(state.players[player].params["w"])


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_gradient_flows_through_the_other_player_and_later_losses_see_earlier_updates():
    plan, state = make(Toy())
    after, _ = step(plan, state)
    expected = 1 - 0.5 * 3 * MEAN  # d/dg = c mean(x)
    np.testing.assert_allclose(w(after, "generator"), expected, rtol=1e-6)
    np.testing.assert_allclose(w(after, "critic"), 3 - 0.5 * expected, rtol=1e-6)  # d/dc = the new g


def test_simultaneous_losses_all_see_the_old_parameters():
    plan, state = make(Simultaneous())
    after, _ = step(plan, state)
    np.testing.assert_allclose(w(after, "critic"), 3 - 0.5 * 1, rtol=1e-6)


def test_players_that_no_active_loss_names_stay_bit_identical():
    plan, state = make(Toy())
    after, _ = step(plan, state, active=("generate",))
    assert same(after.players["critic"], state.players["critic"])
    assert not same(after.players["generator"].params, state.players["generator"].params)


def test_update_ratio_offset_and_stages_decide_what_is_active():
    losses = (LossSpec("generate", generate, ("generator",), every=5), LossSpec("criticise", criticise, ("critic",)))
    late = (Stage("alone", 0, ("criticise",)), Stage("both", 10))
    method = Toy(losses, phases=late)
    assert [method.active(s) for s in (0, 5, 9)] == [("criticise",)] * 3
    assert [method.active(s) for s in (10, 11, 15)] == [
        ("generate", "criticise"),
        ("criticise",),
        ("generate", "criticise"),
    ]
    assert method.stage(9).name == "alone" and method.stage(10).name == "both"


def test_microbatches_average_to_the_whole_batch_and_draw_their_own_noise():
    whole, state = make(Toy())
    split, _ = make(Toy(), accumulate=4)
    a, figures_a = step(whole, state)
    b, figures_b = step(split, state)
    np.testing.assert_allclose(w(a, "generator"), w(b, "generator"), rtol=1e-6)
    np.testing.assert_allclose(figures_a["train/generate"], figures_b["train/generate"], rtol=1e-6)
    assert float(b.players["generator"].aux["stats"]["seen"]) == 4  # statistics travel from microbatch to microbatch
    # Four draws averaged: were the key shared, the mean would be one of the draws.
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0), m) for m in range(4)]
    draws = [float(jax.random.normal(jax.random.split(k)[1])) for k in keys]
    np.testing.assert_allclose(float(figures_b["train/noise"]), np.mean(draws), rtol=1e-5)
    assert len(set(draws)) == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_batch_leaves_no_trace_but_the_counters(bad):
    plan, state = make(Toy(), {**SGD, "ema": (0.9,)})
    state, _ = step(plan, state, active=("generate",))
    poisoned = X.copy()
    poisoned[2, 1] = bad
    after, figures = step(plan, state, poisoned, active=("generate",))
    before, kept = state.players["generator"], after.players["generator"]
    for field in ("params", "aux", "opt_state", "emas", "updates"):
        assert same(getattr(before, field), getattr(kept, field)), field
    assert int(kept.guard.skipped) == 1 and int(kept.guard.streak) == 1 and int(after.step) == 2
    assert float(figures["train/bad_in_a_row/generator"]) == 1
    good, _ = step(plan, after, active=("generate",))
    assert int(good.players["generator"].guard.streak) == 0 and int(good.players["generator"].guard.skipped) == 1


def test_the_spike_guard_refuses_a_gradient_far_above_the_running_mean():
    plan, state = make(Toy(), {**SGD, "spike": 5.0})
    state, _ = step(plan, state, active=("generate",))
    spiked, _ = step(plan, state, 100 * X, active=("generate",))
    assert same(spiked.players["generator"].params, state.players["generator"].params)
    usual, _ = step(plan, state, 4 * X, active=("generate",))
    assert not same(usual.players["generator"].params, state.players["generator"].params)


def test_a_refused_update_takes_back_what_its_loss_told_other_players():
    def tell(variables, batch, key, step):
        value, _ = generate(variables, batch, key, step)
        return value, LossAux({}, {"critic": {"stats": {"seen": jnp.mean(batch["x"])}}})

    plan, state = make(Toy((LossSpec("tell", tell, ("generator",)),)), {**SGD, "spike": 5.0})
    state = state.replace(
        players={n: p.replace(aux={"stats": {"seen": jnp.zeros(())}}) for n, p in state.players.items()}
    )
    told, _ = step(plan, state)
    assert float(told.players["critic"].aux["stats"]["seen"]) == X.mean()
    refused, _ = step(plan, told, 100 * X)
    assert same(refused.players["critic"].aux, told.players["critic"].aux)


def test_averages_follow_their_recurrence_and_players_without_them_have_none():
    plan, state = make(Toy(), {**SGD, "ema": (0.5, 0.9)})
    averages = {0.5: np.ones(2), 0.9: np.ones(2)}
    for _ in range(3):
        state, _ = step(plan, state, active=("generate",))
        averages = {d: d * a + (1 - d) * w(state, "generator") for d, a in averages.items()}
    for decay, value in averages.items():
        np.testing.assert_allclose(state.players["generator"].emas[f"{decay:g}"]["w"], value, rtol=1e-5)
    assert state.players["critic"].emas == {}


def test_projection_follows_every_update_and_averages_see_its_result():
    def clip(params, collections, key):
        return jax.tree.map(lambda p: jnp.clip(p, -1, 1), params), {"stats": {"seen": jnp.full((), 7.0)}}

    plan, state = make(Toy(project=clip), {**SGD, "ema": (0.5,)})
    after, _ = step(plan, state, active=("generate",))
    np.testing.assert_array_equal(w(after, "generator"), [-1, -1])
    assert float(after.players["generator"].aux["stats"]["seen"]) == 7
    np.testing.assert_allclose(after.players["generator"].emas["0.5"]["w"], [0, 0])


def test_learning_rate_follows_the_step_not_the_number_of_updates():
    section = {**SGD, "schedule": {"name": "linear", "warmup_steps": 0, "flat": 0.0}}
    plan, state = make(Toy(), section, num_steps=11)
    state, _ = step(plan, state, active=())
    for _ in range(4):
        state, _ = step(plan, state, active=())
    after, figures = step(plan, state, active=("generate",))
    np.testing.assert_allclose(figures["schedule/lr/generator"], 0.5 * (1 - 5 / 10), rtol=1e-6)
    np.testing.assert_allclose(w(after, "generator"), 1 - 0.25 * 3 * MEAN, rtol=1e-6)


def test_the_same_key_and_state_give_the_same_step_and_another_key_another():
    plan, state = make(Toy())
    first, again, other = (step(plan, state, key=k)[1]["train/noise"] for k in (0, 0, 1))
    assert first == again and first != other
