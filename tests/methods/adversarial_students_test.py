"""The discriminator of consistency students: what it compares, at which times, its loss, and whom it trains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.methods import _adversarial_students as adversarial
from jaxar.methods import pcm, scott
from tests import exact_flows as exact

WEIGHT = 0.7


@dataclasses.dataclass(frozen=True)
class Line:
    """In place of the discriminator's layers: slope times the mean of the map, plus an offset."""

    def init(self, key, features):
        return {"params": {"slope": jnp.ones(()), "offset": jnp.zeros(())}}

    def apply(self, variables, features):
        channels = exact.SHAPE[-1]  # the map comes first, see `Denoiser.features`
        return variables["params"]["slope"] * features[..., :channels].mean((1, 2)) + variables["params"]["offset"]


def phased():
    config = pcm.Config(phases=2, levels=10, huber=None, adversarial=adversarial.Adversarial(WEIGHT, 4))
    made = with_line(pcm.PCM)(exact.Exact(), exact.Exact(), config)
    ends = tuple(float(time) for time in made.level(np.array(config.edges)))
    return dataclasses.replace(made, network=exact.Exact("end", ends=ends))


def stochastic():
    config = scott.Config(levels=12, target_decay=None, adversarial=adversarial.Adversarial(WEIGHT, 4))
    return with_line(scott.SCott)(exact.Exact("end"), exact.Exact(), config)


def with_line(cls):
    return type(cls.__name__, (cls,), {"head": property(lambda self: Line())})


def batch(count, valid=None):
    x, cond = exact.data(count)
    return {"image": x, **cond} | ({} if valid is None else {"valid": valid})


def players(slope=1.0, offset=0.0, **added):
    line = {"params": {"slope": jnp.float32(slope), "offset": jnp.float32(offset)}}
    return {**exact.variables(**added), "discriminator": line}


def landed_and_contest(method, count=4000, **added):
    x, cond = exact.data(count)

    @jax.jit
    def call(key):
        landed = method.landings(players(**added), x, cond, key)
        return landed, method.contest(landed, x, jax.random.fold_in(key, 1))

    return jax.tree.map(np.asarray, call(jax.random.key(0)))


@pytest.mark.parametrize("make", [phased, stochastic])
def test_maps_have_the_law_of_noised_data_where_the_student_is_exact(make):
    _, (found, wanted, t) = landed_and_contest(make())
    std = np.sqrt(((1 - t) * exact.STD) ** 2 + t**2)[:, None, None, None]
    for values in (found, wanted):
        z = (values - (1 - t)[:, None, None, None] * exact.MEAN) / std
        assert abs(z.mean()) < 4 / np.sqrt(z.size) + 0.01
        assert abs(z.std() - 1) < 0.03


def test_times_lie_in_the_phase_that_was_landed_in():
    method = phased()
    low, middle, high = method.level(np.array([0, 5, 10]))
    landed, contest = landed_and_contest(method)
    lower = landed.end < middle - 1e-4
    assert 0.4 < lower.mean() < 0.6
    for own, (begin, end) in ((lower, (low, middle)), (~lower, (middle, high))):
        assert contest.t[own].min() >= begin - 1e-6 and contest.t[own].max() <= end + 1e-6
        np.testing.assert_allclose(contest.t[own].mean(), (begin + end) / 2, atol=0.02)


def test_the_phased_student_is_held_against_its_target_and_the_stochastic_one_against_data():
    """Where the student is off, PCM's maps are both off, SCott's but the student's."""
    for make, moves in ((phased, True), (stochastic, False)):
        away, exactly = (landed_and_contest(make(), 500, shift=shift)[1] for shift in (0.5, 0.0))
        assert np.abs(away.found - exactly.found).max() > 0.01
        assert (np.abs(away.wanted - exactly.wanted).max() > 0.01) == moves


@pytest.mark.parametrize("make", [phased, stochastic])
def test_the_discriminators_loss_is_the_hinge(make):
    method = make()
    _, (found, wanted, _) = landed_and_contest(method, shift=0.3)
    for offset in (0.0, 5.0, -5.0):
        low, high = (values.mean((1, 2, 3)) + offset for values in (found, wanted))
        expected = np.mean(np.maximum(0, 1 - high) + np.maximum(0, 1 + low))
        ours, _ = jax.jit(method.discriminator_loss)(
            players(offset=offset, shift=0.3), batch(4000), jax.random.key(4), jnp.int32(0)
        )
        np.testing.assert_allclose(ours, expected, rtol=0.03)


def gradient(method, variables, given):
    def value(params):
        model = {**variables["model"], "params": params}
        return method.loss({**variables, "model": model}, given, jax.random.key(2), jnp.int32(0))[0]

    return jax.jit(jax.grad(value))(variables["model"]["params"])


@pytest.mark.parametrize("make", [phased, stochastic])
def test_the_students_term_pulls_where_the_logit_grows(make):
    """l grows by `slope` for every unit of the map, the map by alpha_t / alpha_end of what the end does."""
    method, count = make(), 2000
    pulled, plain = (gradient(method, players(slope, shift=0.2), batch(count))["shift"] for slope in (1.0, 0.0))
    key, contest_key = jax.random.split(jax.random.key(2))
    x, cond = exact.data(count)

    @jax.jit
    def drift(shift):
        landed = method.landings(players(shift=shift), x, cond, key)
        t = method.contest(landed, x, contest_key).t
        return jnp.mean((1 - t) / (1 - landed.end) * jnp.mean(landed.found, axis=(1, 2, 3)))

    slope = (drift(0.21) - drift(0.19)) / 0.02
    assert slope > 0.1
    np.testing.assert_allclose(pulled - plain, -WEIGHT * slope, rtol=0.01)


@pytest.mark.parametrize("make", [phased, stochastic])
def test_samples_that_do_not_count_change_nothing(make):
    method, valid = make(), jnp.arange(8) != 3
    for loss in ("loss", "discriminator_loss"):
        values = []
        for image in (0.0, 50.0):
            given = batch(8, valid)
            given["image"] = given["image"].at[3].set(image)
            values.append(float(getattr(method, loss)(players(), given, jax.random.key(0), jnp.int32(0))[0]))
        assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_without_weight_there_is_no_discriminator():
    method = stochastic()
    assert [spec.updates for spec in method.losses()] == [("model",), ("discriminator",)]
    assert set(method.players()) == {"model", "discriminator"} == set(method.init(jax.random.key(0)))
    plain = dataclasses.replace(method, config=scott.Config(levels=12, target_decay=None))
    assert set(plain.players()) == {"model"} == set(plain.init(jax.random.key(0)))
    assert [spec.updates for spec in plain.losses()] == [("model",)]
    given, key = batch(16), jax.random.key(0)
    without, both = (m.errors(players(), given["image"], {"label": given["label"]}, key, 0) for m in (plain, method))
    np.testing.assert_array_equal(without, both)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="method.adversarial.weight=-1"):
        adversarial.Adversarial(-1)
    with pytest.raises(ConfigError, match="method.adversarial.width=0"):
        adversarial.Adversarial(1.0, 0)
