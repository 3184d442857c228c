"""What distillation asks of its teachers, tried with each kind: networks on every path, closed forms, students."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.methods import _students as students
from jaxar.methods import (
    analytic,
    boot,
    consistency,
    diffusion,
    disback,
    dmd2,
    edm,
    f_distill,
    flow_matching,
    meanflow,
    pcm,
    progressive,
    reflow,
    shortcut,
    sid,
    slimflow,
    tdm,
    vsd,
)
from jaxar.methods.base import Task, mean_of_valid
from jaxar.models import dit
from jaxar.tokenizers.base import ImageSpec

SIZES = dit.Sizes(num_layers=1, width=8, num_heads=2)
TASK = Task(ImageSpec(4, 1), 2)
FLOW = flow_matching.build(flow_matching.Config(), SIZES, TASK)
EDM = edm.build(edm.Config(), SIZES, TASK)
DIFFUSION = diffusion.build(diffusion.Config(), SIZES, TASK)


def taught(teacher):
    return dataclasses.replace(TASK, teacher=teacher)


def weights(denoiser, seed=0):
    fresh = nn.meta.unbox(jax.jit(denoiser.init)(jax.random.key(seed))["model"])
    return jax.tree.map(lambda w: w + jnp.linspace(-0.1, 0.1, w.size).reshape(w.shape), fresh)


REFLOW = reflow.build(reflow.Config(), reflow.Model(), taught(FLOW))
MAPS = {"image": jax.random.normal(jax.random.key(5), (4, 4, 4, 1)), "label": jnp.array([0, 1, 0, 1])}


TEACHERS = {"flow": FLOW, "edm": EDM, "diffusion": DIFFUSION, "reflow": REFLOW}
STUDENTS = (vsd, sid, dmd2, f_distill, tdm, disback, consistency, pcm, boot, progressive)
FAST = {(progressive, "reflow")}
PAIRS = [
    pytest.param(module, name, marks=() if (module, name) in FAST else pytest.mark.slow, id=f"{module.__name__}-{name}")
    for module in STUDENTS
    for name in TEACHERS
]


@pytest.mark.parametrize(("module", "name"), PAIRS)
def test_every_kind_of_teacher_teaches(module, name):
    teacher = TEACHERS[name]
    method = module.build(module.Config(), module.Model(), taught(teacher))
    fresh = nn.meta.unbox(jax.jit(method.init)(jax.random.key(1)))
    frozen = {"teacher": weights(teacher)}
    begun = method.warm_start({name: player["params"] for name, player in fresh.items()}, frozen)
    own, shared = frozen["teacher"]["params"], begun[next(iter(method.players()))]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, {name: shared[name] for name in own}, own)))
    variables = {name: {**fresh[name], "params": params} for name, params in begun.items()} | frozen
    for loss in method.losses():
        value = loss.fn(variables, MAPS, jax.random.key(2), jnp.int32(0))[0]
        assert np.isfinite(float(value)), loss.name


@pytest.mark.parametrize("teacher", [EDM, analytic.build(analytic.Config("ve"), analytic.Model(), TASK)])
def test_times_are_spread_as_the_teacher_spreads_them(teacher):
    """Half of the shares of EDM's times lie below a deviation of 3, where those spread evenly would be 4 %."""
    batch, key = {"label": jnp.zeros(4000, jnp.int32)}, jax.random.key(0)
    levels = sid.build(sid.Config(), sid.Model(), taught(teacher)).draw(key, batch, (0.0, 1.0)).t
    assert 0.4 < np.mean(np.asarray(levels) < 3) < 0.6
    stretches = tdm.build(tdm.Config(calls=(1.0,)), tdm.Model(), taught(teacher)).draw(key, batch, (0.0, 1.0)).t
    np.testing.assert_allclose(stretches, levels, rtol=1e-4)
    student = progressive.Progressive(teacher.student(), teacher, progressive.Config(first=2))
    assert student.visited(students.GuidedSampling(2))[1] < 5


def test_students_that_jump_do_not_teach():
    jumping = [
        consistency.build(consistency.Config(), consistency.Model(), taught(FLOW)),
        reflow.build(reflow.Config(distil=True), reflow.Model(), taught(FLOW)),
        shortcut.build(shortcut.Config(), SIZES, TASK),
    ]
    for teacher in jumping:
        with pytest.raises(ConfigError, match="needs a diffusion teacher"):
            vsd.build(vsd.Config(), vsd.Model(), taught(teacher))


def test_a_teacher_of_other_maps_or_classes_is_refused():
    for task in (Task(ImageSpec(4, 3), 2), Task(ImageSpec(8, 1), 2), Task(ImageSpec(4, 1), 3)):
        with pytest.raises(ConfigError, match=r"name another workdir in teacher.from_"):
            vsd.build(vsd.Config(), vsd.Model(), dataclasses.replace(task, teacher=FLOW))


def test_a_student_that_cannot_start_as_its_teacher_learns_it_first():
    closed = taught(analytic.build(analytic.Config(), analytic.Model(), TASK))
    with pytest.raises(ConfigError, match="method.guidance_steps"):
        progressive.build(progressive.Config(first=4), progressive.Model(), closed)
    with pytest.raises(ConfigError, match="that its students can start as"):
        disback.build(disback.Config(), disback.Model(), closed)
    progressive.build(progressive.Config(first=4), progressive.Model(), taught(REFLOW))


def test_mean_velocities_need_smooth_slopes():
    with pytest.raises(ConfigError, match="smooth slopes"):
        meanflow.build(meanflow.Config(), meanflow.Model(), taught(DIFFUSION))


def test_a_slim_student_keeps_its_teachers_clock():
    teacher = flow_matching.build(flow_matching.Config(clock="noise"), SIZES, TASK)
    student = slimflow.build(slimflow.Config(), SIZES, taught(teacher))
    model, t = weights(teacher), jnp.full(4, 0.3)
    expected = teacher.denoise(model, MAPS["image"], t, MAPS["label"])
    np.testing.assert_allclose(student.denoise(model, MAPS["image"], t, MAPS["label"]), expected, rtol=1e-5)


def test_samples_are_asked_for_as_training_prepared_them():
    short = shortcut.build(shortcut.Config(shortest=8), SIZES, TASK)
    told = progressive.Config(first=4, guidance_steps=1, guidance=students.Scales(1.0, 3.0))
    halved = progressive.build(told, progressive.Model(), taught(FLOW))
    for method, options, match in (
        (short, shortcut.Sampling(3), "num_steps=3 must be a power of two"),
        (short, shortcut.Sampling(16), "num_steps=16 must be a power of two, at most"),
        (halved, students.GuidedSampling(1, 4.0), r"guidance_scale=4.0 must lie in 1.0..3.0"),
        (vsd.build(vsd.Config(), vsd.Model(), taught(FLOW)), vsd.Sampling(2), "steps=2 must be at most 1"),
    ):
        with pytest.raises(ConfigError, match=match):
            method.network_calls(options)
    assert short.network_calls(shortcut.Sampling(8)) == 8
    assert halved.network_calls(students.GuidedSampling(2, 3.0)) == 2


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: consistency.Config(huber=0.0), "method.huber=0.0 must be positive"),
        (lambda: pcm.Config(huber=-1.0), "method.huber=-1.0 must be positive"),
        (lambda: consistency.Doubling(10, std=0.0), "method.levels.std=0.0"),
        (lambda: meanflow.Config(guidance_interval=(0.5, 0.2)), "method.guidance_interval"),
        (lambda: f_distill.Config(discriminator_weight=0.0), "method.discriminator_weight=0"),
        (lambda: students.bounds(FLOW, 1.0), "method.least_time=1.0 must be below"),
    ],
)
def test_mistakes_name_the_field(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


def test_what_is_not_valid_may_be_anything():
    values, batch = jnp.array([1.0, jnp.nan, 3.0]), {"valid": jnp.array([True, False, True])}
    assert float(mean_of_valid(values, batch)) == 2.0
    gradient = jax.grad(lambda v: mean_of_valid(v, batch))(values)
    np.testing.assert_array_equal(gradient, [0.5, 0.0, 0.5])
