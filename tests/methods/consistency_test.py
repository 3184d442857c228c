"""Consistency models with the exact ends of the trajectories of Gaussian data."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.methods import _landing as landing
from jaxar.methods import _students as students
from jaxar.methods import consistency
from tests import exact_flows as exact
from tests.closed_form import PATHS

PLAIN = consistency.Config(target_decay=None)


def method(role="end", taught=True, kind="linear", **changes):
    teacher = exact.Exact("denoiser", kind) if taught else None
    return consistency.Consistency(exact.Exact(role, kind), teacher, dataclasses.replace(PLAIN, **changes))


def rms(flow):
    return np.sqrt(exact.errors(flow, count=4096).mean())


@pytest.mark.parametrize("solver, factor", [("heun", 8), ("ddim", 4)])
@pytest.mark.slow
def test_the_exact_function_leaves_the_error_of_one_step_of_the_teacher(solver, factor):
    coarse, fine = (rms(method(levels=consistency.Fixed(count=n), solver=solver, kind="cosine")) for n in (9, 17))
    assert factor * 0.7 < coarse / fine < factor * 1.4


def test_the_exact_function_has_next_to_no_loss_and_the_teacher_itself_has():
    assert exact.errors(method()).mean() < 1e-7
    assert exact.errors(method("denoiser")).mean() > 1e-5


@pytest.mark.parametrize("kind", ["linear", *(pytest.param(k, marks=pytest.mark.slow) for k in ("cosine", "ve"))])
def test_at_the_end_every_network_stays_where_it_is(kind):
    network, (x, cond) = exact.Exact("denoiser", kind), exact.data(8)
    end = jnp.full(8, 0.002)
    landed = landing.land(network, exact.weights(shift=3.0, slope=-2.0), x, end, end, cond["label"])
    np.testing.assert_array_equal(landed, x)


@pytest.mark.slow
def test_without_a_teacher_the_gradient_vanishes_in_expectation_alone():
    data = method(taught=False, levels=consistency.Fixed(count=201))
    found = exact.gradients(data)
    assert np.abs(found).max() > 0 and np.abs(exact.deviations(found)).max() < 4
    wrong = dataclasses.replace(data, network=exact.Exact("denoiser"))
    assert np.abs(exact.deviations(exact.gradients(wrong))).max() > 8


def drawn(levels, step, kind="linear", bounds=(0.002, 1.0), rho=1.0):
    t, s = levels.draw(jax.random.key(0), 4000, PATHS[kind], bounds, rho, jnp.int32(step))
    return np.asarray(t), np.asarray(s)


def test_levels_double_and_stay_neighbours():
    levels = consistency.Doubling(num_steps=90, first=2, last=8)
    for step, count in ((0, 2), (30, 4), (60, 8), (10**6, 8)):
        t, s = drawn(levels, step)
        np.testing.assert_allclose(t - s, 0.998 / count, rtol=1e-3)
        assert len(set(s.round(4))) == count and s.min() == pytest.approx(0.002) and t.max() <= 1


def test_continuous_levels_come_closer():
    levels = consistency.Continuous(double_every=10)
    t, s = drawn(levels, 0, "ve", (0.002, 80.0), 7.0)
    np.testing.assert_allclose(s[t < 1.9], 0.002, rtol=1e-4)
    t, s = drawn(levels, 35, "ve", (0.002, 80.0), 7.0)
    expected = t - t / 16 * (1 + 8 / (1 + np.exp(t)))
    np.testing.assert_allclose(s[t > 0.02], expected[t > 0.02], rtol=0.01)
    t, s = drawn(levels, 10**9)
    assert np.all(s <= t) and np.abs(t - s).max() < 0.02


@pytest.mark.parametrize("levels", [consistency.Doubling(num_steps=10), consistency.Continuous(double_every=10)])
@pytest.mark.slow
def test_weights_are_inverse_gaps(levels):
    one, gap = (exact.errors(method("denoiser", False, levels=levels, weight=weight)) for weight in ("one", "gap"))
    t, s = levels.draw(jax.random.split(jax.random.key(1))[0], 512, PATHS["linear"], (0.002, 1.0), 1.0, 0)
    assert np.all(np.isfinite(gap)) and one.max() > 1e-4
    np.testing.assert_allclose(gap * np.maximum(t - s, 1e-6), one, rtol=1e-4, atol=1e-9)


def test_distances():
    x, y = jnp.zeros((2, 3, 1)), jnp.array([[[3.0], [0.0], [4.0]], [[0.0], [0.0], [1e-3]]])
    np.testing.assert_allclose(students.squared(x, y), [25 / 3, 1e-6 / 3], rtol=1e-5)
    c = 0.5 * np.sqrt(3)
    np.testing.assert_allclose(landing.pseudo_huber(x, y, 0.5)[0], np.sqrt(25 + c**2) - c, rtol=1e-6)


def test_targets_come_from_the_average_that_follows_and_starts_as_the_weights():
    averaged = method(target_decay=0.9)
    player = averaged.players()["model"]
    params, aux = player.project({"w": jnp.ones(2)}, {"target": {"w": jnp.zeros(2)}, "fixed": 1}, None)
    np.testing.assert_allclose(aux["target"]["w"], 0.1, rtol=1e-6)
    assert aux["fixed"] == 1 and np.all(params["w"] == 1)
    model = {"params": {"w": 1.0}, "target": {"w": 2.0}}
    assert averaged.slow(model)["params"] == {"w": 2.0} and method().slow(model)["params"] == {"w": 1.0}
    assert averaged.init(jax.random.key(0))["model"].keys() == {"params", "target"}
    assert method().players()["model"].project is None and method().stages()[0].enter is None

    @dataclasses.dataclass
    class Replaceable:
        players: dict = dataclasses.field(default_factory=dict)
        params: dict = dataclasses.field(default_factory=dict)
        aux: dict = dataclasses.field(default_factory=dict)

        def replace(self, **changes):
            return dataclasses.replace(self, **changes)

    state = Replaceable({"model": Replaceable(params={"w": jnp.ones(1)}, aux={"target": {"w": jnp.zeros(1)}})})
    assert averaged.stages()[0].enter(state).players["model"].aux["target"]["w"] == 1


def test_a_student_with_all_arrays_of_its_teacher_starts_with_them():
    fresh = {"a": {"w": jnp.zeros((2, 3))}, "more": jnp.zeros(1)}
    own = {"a": {"w": jnp.ones((2, 3))}}
    started = method().warm_start({"model": fresh}, {"teacher": {"params": own}})["model"]
    assert np.all(started["a"]["w"] == 1) and started.keys() == fresh.keys()
    for other in ({"a": {"w": jnp.ones((3, 3))}}, {**own, "b": jnp.ones(1)}):
        assert method().warm_start({"model": fresh}, {"teacher": {"params": other}})["model"] is fresh


@pytest.mark.slow
def test_one_step_ends_the_trajectory_and_more_keep_the_law():
    drawn, noise = exact.samples(method(), consistency.Sampling(1))
    np.testing.assert_allclose(drawn, exact.MEAN + exact.STD * noise, atol=0.01)
    again, noise = exact.samples(method(), consistency.Sampling(3), count=4000)
    assert abs(np.corrcoef(again.ravel(), noise.ravel())[0, 1]) < 0.9
    np.testing.assert_allclose([again.mean(), again.std()], [exact.MEAN, exact.STD], atol=0.03)


def test_mistakes_are_named():
    for changes in ({"target_decay": 1.0}, {"rho": 0.0}, {"least_time": 0.0}):
        with pytest.raises(ConfigError, match=f"method.{next(iter(changes))}="):
            consistency.Config(**changes)
    for wrong in (
        lambda: consistency.Fixed(count=1),
        lambda: consistency.Doubling(num_steps=5, first=3, last=2),
        lambda: consistency.Continuous(double_every=0),
    ):
        with pytest.raises(ConfigError, match="method.levels."):
            wrong()
    with pytest.raises(ConfigError, match="needs a diffusion teacher"):
        consistency.build(consistency.Config(), None, types.SimpleNamespace(teacher=1))
