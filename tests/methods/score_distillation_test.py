"""What score distillation methods share: starts, broken samples, validation figures, whole trainings on Gaussians."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.methods import disback, dmd, dmd2, f_distill, sfd, sid, sim, tdm, vsd
from jaxar.models.feature_discriminator import FeatureDiscriminator
from jaxar.train_step import train_step
from tests import gaussians, toys

GOOD, STUDENT = (0.0, 1.0), (0.4, 1.5)


@functools.partial(jax.jit, static_argnames=("method", "name", "player"))
def gradient(method, name, player, variables, batch):
    """The loss of this name and its gradient in the parameters of one player."""
    fn = next(spec.fn for spec in method.losses() if spec.name == name)

    def value(params):
        return fn({**variables, player: {**variables[player], "params": params}}, batch, jax.random.key(1), 0)[0]

    return jax.value_and_grad(value)(variables[player]["params"])


def batches(size=8, bad=2):
    """A batch whose sample `bad` has label 1, with all samples valid and without it."""
    batch = {**gaussians.batch(size), "label": jnp.zeros(size, int).at[bad].set(1)}
    return [{**batch, "valid": valid} for valid in (jnp.ones(size, bool), jnp.arange(size) != bad)]


@pytest.mark.parametrize("cls, module", [(vsd.VSD, vsd), (sid.SiD, sid)])
def test_a_broken_sample_does_not_spoil_the_others(cls, module):
    """The teacher fails for label 1; what is left is the gradient of a batch in which that sample does not count."""
    method, (batch, masked) = gaussians.distiller(cls, module.Config()), batches()
    broken = gaussians.players(([0.0, np.nan, 0.0], 1.0), STUDENT)
    value, ours = gradient(method, "generator", "generator", broken, batch)
    others, expected = gradient(method, "generator", "generator", gaussians.players(GOOD, STUDENT), masked)
    assert float(value) == pytest.approx(float(others) * 7 / 8, rel=1e-5)
    for name in ("mean", "std"):
        np.testing.assert_allclose(ours[name], expected[name] * 7 / 8, rtol=1e-4)
    assert np.abs(expected["std"]).max() > 0


def test_a_broken_generator_does_not_spoil_the_score():
    method, (batch, masked) = gaussians.distiller(vsd.VSD, vsd.Config()), batches()
    broken = gaussians.players(GOOD, ([0.4, np.nan, 0.4], 1.5), score=GOOD)
    _, ours = gradient(method, "score", "score", broken, batch)
    _, expected = gradient(method, "score", "score", gaussians.players(GOOD, STUDENT, score=GOOD), masked)
    for name in ("mean", "std"):
        np.testing.assert_allclose(ours[name], expected[name] * 7 / 8, rtol=1e-4)


def test_students_start_as_their_teacher_where_they_may():
    one = gaussians.Gaussian()
    method = dmd2.DMD2(one, one, dmd2.Config(), head=FeatureDiscriminator(4))
    fresh = nn.meta.unbox(method.init(jax.random.key(0)))
    params = {name: variables["params"] for name, variables in fresh.items()}
    started = method.warm_start(params, {"teacher": gaussians.weights(5.0, 6.0)})
    assert all(float(started[name]["mean"][0]) == 5 for name in ("generator", "score"))
    assert started["discriminator"] is params["discriminator"]
    for own in (
        {"mean": jnp.zeros(7), "std": jnp.zeros(7)},
        {**gaussians.weights(5.0, 6.0)["params"], "more": jnp.zeros(1)},
    ):
        started = method.warm_start(params, {"teacher": {"params": own}})
        assert all(float(started[name]["mean"][0]) == 0 for name in ("generator", "score"))


def test_the_gap_is_zero_where_student_and_teacher_agree():
    method = gaussians.distiller(vsd.VSD, vsd.Config())
    evaluate = jax.jit(method.evaluate)
    figures = [
        evaluate(gaussians.players(GOOD, law), gaussians.batch(64), jax.random.key(0)) for law in (GOOD, STUDENT)
    ]
    np.testing.assert_allclose(figures[0]["gap"], 0, atol=1e-10)
    assert figures[1]["gap"].shape == (64,) and float(jnp.mean(figures[1]["gap"])) > 0.01


HEAD = {"head": FeatureDiscriminator(16)}
TRAINED = {
    "vsd": (vsd.VSD, vsd.Config(), {}),
    "swiftbrush": (vsd.VSD, vsd.Config(weight="noise"), {}),
    "sid": (sid.SiD, sid.Config(alpha=1.0), {}),
    "sim": (sim.SIM, sim.Config(), {}),
    "dmd": (dmd.DMD, dmd.Config(solver_steps=16), {}),
    "dmd2": (dmd2.DMD2, dmd2.Config(), HEAD),
    "f_distill": (f_distill.FDistill, f_distill.Config(), HEAD),
    "disback": (disback.DisBack, disback.Config(records=2, record_every=20, return_every=100), {}),
    "tdm": (tdm.TDM, tdm.Config(calls=(1.0,)), {}),
    "sfd": (sfd.SFD, sfd.Config(forget=1, override=0, alpha=1.0), {}),
}


def trained(name, steps, active=None):
    """The student's (mean, std) after so many steps, from (1, 2)."""
    cls, config, parts = TRAINED[name]
    method = gaussians.distiller(cls, config, **parts)
    section = toys.SGD | {"name": "adamw", "learning_rate": 0.01, "players": {"score": {"learning_rate": 0.05}}}
    plan, state = toys.make(method, section | {"ema": (0.98,)})
    start = gaussians.weights(1.0, 2.0)["params"]
    players = {
        name: player.replace(params=start) if name != "discriminator" else player
        for name, player in state.players.items()
    }
    state = state.replace(players=players)
    frozen, batch = {"teacher": gaussians.weights(*GOOD)}, gaussians.batch(256)
    step = functools.cache(lambda active: jax.jit(functools.partial(train_step, plan=plan, active=active)))
    for number in range(steps):
        stage = method.stage(number)
        if stage.enter is not None and stage.start == number:
            state = stage.enter(state)
            if name == "disback" and number == 0:  # its first record is the teacher
                score = state.players["score"]
                aux = score.aux | {"record_0": frozen["teacher"]["params"]}
                state = state.replace(players={**state.players, "score": score.replace(aux=aux)})
        state, _ = step(active or method.active(number))(state, frozen, batch, jax.random.key(0))
    ema = state.players["generator"].emas["0.98"]
    return float(ema["mean"][0]), float(ema["std"][0])


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_students_reach_their_teachers_law(name):
    mean, std = trained(name, 2500 if name in ("dmd2", "f_distill") else 700)
    assert abs(mean) < 0.06 and abs(std - 1) < 0.06


@pytest.mark.slow
def test_without_its_score_a_student_goes_elsewhere():
    mean, std = trained("vsd", 700, active=("generator",))
    assert abs(mean) > 0.3 or abs(std - 1) > 0.3
