"""Progressive distillation of Gaussian data: one step does exactly what two do, and so do many stages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.diffusion import trajectories
from jaxar.methods import _students as students
from jaxar.methods import progressive
from tests import exact_flows as exact

CONFIG = progressive.Config(first=4, stage_steps=10)


def method(role="denoiser", kind="linear", config=CONFIG):
    return progressive.Progressive(exact.Exact(role, kind), exact.Exact("denoiser", kind), config)


def teacher(kind):
    return lambda x, t: exact.Exact("denoiser", kind).denoise(exact.weights(), x, t, jnp.zeros(len(x), int))


def jump(flow, denoise, x, t, s):
    return trajectories.jump(flow.path(t), flow.path(s), x, denoise(x, t))


@pytest.mark.parametrize("kind", ["linear", pytest.param("cosine", marks=pytest.mark.slow)])
@pytest.mark.parametrize("start", [1.0, 0.25])
def test_one_step_to_the_target_ends_where_two_of_the_teacher_end(kind, start):
    flow, denoise, (x, _) = method(kind=kind), teacher(kind), exact.data(16)
    t, middle, s = (jnp.full(16, time) for time in (start, start - 0.125, start - 0.25))
    target = flow.target(denoise, x, t, middle, s)
    ended = jump(flow, denoise, jump(flow, denoise, x, t, middle), middle, s)
    np.testing.assert_allclose(trajectories.jump(flow.path(t), flow.path(s), x, target), ended, atol=1e-6)
    assert np.abs(jump(flow, denoise, x, t, s) - ended).max() > 1e-4


@pytest.mark.slow
def test_perfect_stages_keep_the_map_of_the_first_teacher():
    flow, (x, _) = method(), exact.data(16)
    denoise = teacher("linear")
    expected = x
    for i in range(8):
        expected = jump(flow, denoise, expected, jnp.full(16, 1 - i / 8), jnp.full(16, 1 - (i + 1) / 8))
    for count in (4, 2, 1):

        def denoise(x, t, teacher=denoise, count=count):
            return flow.target(teacher, x, t, t - 0.5 / count, t - 1 / count)

    once = jump(flow, denoise, x, jnp.ones(16), jnp.zeros(16))
    np.testing.assert_allclose(once, expected, atol=1e-5)
    plain = jump(flow, teacher("linear"), x, jnp.ones(16), jnp.zeros(16))
    assert np.abs(plain - expected).max() > 0.05


@pytest.mark.slow
def test_the_error_is_that_of_the_target_on_the_students_grid():
    """The student is off by `shift`, and so is its teacher of the stage; with equal data known they agree."""
    found = exact.errors(method(), step=0)
    assert found.mean() > 1e-6  # one step of the exact denoiser is not two
    fine = exact.errors(method(config=dataclasses.replace(CONFIG, first=64)), step=0)
    assert fine.mean() < found.mean() / 50
    assert exact.errors(method(), step=20).mean() > 4 * found.mean()


def test_stages_halve_the_steps_and_start_from_the_last_student():
    config = progressive.Config(first=4, stage_steps=10, guidance_steps=5, guidance=students.Scales(1.0, 3.0))
    assert [int(config.steps_at(step)) for step in (5, 14, 15, 25, 10**6)] == [4, 4, 2, 1, 1]
    stages = method(config=config).stages()
    assert [(stage.name, stage.start, stage.losses) for stage in stages] == [
        ("guide", 0, ("guide",)),
        ("4 steps", 5, ("halve",)),
        ("2 steps", 15, ("halve",)),
        ("1 steps", 25, ("halve",)),
    ]
    assert [stage.enter for stage in stages] == [None] + [students.begin_target] * 3
    assert method(config=config).active(0) == ("guide",) and method(config=config).active(7) == ("halve",)
    assert [stage.start for stage in method().stages()] == [0, 10, 20]
    assert method().players()["model"].project is None and method().slowness == 1.0


@pytest.mark.slow
def test_the_first_stage_teaches_guidance():
    config = progressive.Config(guidance_steps=5, guidance=students.Scales(1.0, 3.0))
    for role, low, high in (("guided", 0.0, 1e-9), ("denoiser", 1e-3, 10.0)):
        flow, (x, cond) = method(role, config=config), exact.data(64)
        batch = {"image": x, **cond}
        value = float(flow.guidance_loss(exact.variables(), batch, jax.random.key(0), jnp.int32(0))[0])
        assert low <= value < high
    drawn, _ = exact.samples(method("guided", config=config), progressive.Sampling(64, guidance_scale=2.0))
    np.testing.assert_allclose(drawn.mean(), 2 * exact.MEAN, atol=0.1)


def test_mistakes_are_named():
    for changes in ({"first": 6}, {"stage_steps": 0}, {"guidance_steps": 5}):
        with pytest.raises(ConfigError, match=f"method.{next(iter(changes))}="):
            progressive.Config(**changes)
