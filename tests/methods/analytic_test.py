"""Teachers in closed form: their samples, their students, and whole runs that need no workdir of a teacher."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxar import experiment, parents, run, settings, train
from jaxar.config import ConfigError
from jaxar.diffusion import mixtures
from jaxar.methods import _denoiser as denoisers
from jaxar.methods import analytic
from jaxar.methods.base import Task
from jaxar.models import vector
from jaxar.tokenizers.base import ImageSpec

GAUSSIANS = mixtures.Mixture(means=((-0.5,), (0.5,)), stds=((0.2,), (0.4,)), labels=(0, 1))
COUNT = 64
COND = {"label": jnp.arange(COUNT) % 2}
KEYS = jax.random.split(jax.random.key(0), COUNT)


def teacher(path="linear", **sizes):
    sizes = vector.Sizes(**{"num_layers": 0, "width": 16, **sizes})
    return analytic.build(analytic.Config(path, GAUSSIANS), sizes, Task(ImageSpec(1, 2), 2))


@pytest.mark.parametrize("path", ["linear", "cosine", "ve"])
def test_samples_follow_the_exact_flow(path):
    method, variables = teacher(path), {"model": {"params": {}}}

    @jax.jit
    def both(keys):
        noise = denoisers.noise_of(method, keys)
        drawn = method.sample(variables, COND, keys, analytic.Sampling(num_steps=100)).latents
        return noise, drawn, denoisers.generate(method, variables["model"], noise, COND)

    noise, drawn, one_call = both(KEYS)
    mean, std = (jnp.array(v)[COND["label"]][:, None, None, None] for v in ([-0.5, 0.5], [0.2, 0.4]))
    np.testing.assert_allclose(drawn, mean + std * noise, atol=5e-3)
    np.testing.assert_allclose(one_call, jnp.broadcast_to(mean, noise.shape), atol=0.01)  # from noise: the mean alone


def test_the_flow_of_maps_is_that_of_their_entries():
    method = analytic.build(
        analytic.Config("linear", mixtures.Mixture(((0.1, 0.2, 0.3, 0.4),), ((0.5,),))),
        vector.Sizes(),
        Task(ImageSpec(2, 1), 1),
    )
    x = jnp.arange(8.0).reshape(2, 2, 2, 1)
    found = method.flow(x, jnp.ones(2), jnp.zeros(2), jnp.zeros(2, int))
    np.testing.assert_allclose(found, np.array([0.1, 0.2, 0.3, 0.4]).reshape(2, 2, 1) + 0.5 * x, atol=1e-5)


def fit(student, wanted, num_steps=400):
    """Variables of a student after Adam on the error of its estimates at random points."""

    def loss(params, key):
        x_key, t_key = jax.random.split(key)
        x, t = jax.random.normal(x_key, (COUNT, 1, 1, 2)), jax.random.uniform(t_key, (COUNT,), minval=0.01)
        return jnp.mean((student.denoise({"params": params}, x, t, COND["label"]) - wanted(x, t)) ** 2)

    @jax.jit
    def optimise(params):
        optimizer = optax.adam(optax.cosine_decay_schedule(0.02, num_steps))

        def step(carry, key):
            value, grads = jax.value_and_grad(loss)(carry[0], key)
            change, state = optimizer.update(grads, carry[1])
            return (optax.apply_updates(carry[0], change), state), value

        keys = jax.random.split(jax.random.key(1), num_steps)
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        return params, losses

    boxed = student.init(jax.random.key(2))["model"]["params"]
    return optimise(jax.tree.map(lambda p: p.unbox(), boxed, is_leaf=lambda p: hasattr(p, "unbox")))


@functools.cache
def error_of(num_layers):
    method = teacher("ve" if num_layers else "linear", num_layers=num_layers)
    _, losses = fit(method.student(), lambda x, t: method.denoise({}, x, t, COND["label"]))
    assert losses[0] > 0.1
    return float(losses[-20:].mean())


@pytest.mark.parametrize("num_layers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_students_learn_gaussians_without_and_with_layers(num_layers):
    assert error_of(num_layers) < 5e-3


def test_a_student_without_layers_is_affine_in_its_input():
    student = teacher().student()
    boxed = jax.eval_shape(student.init, jax.random.key(0))["model"]["params"]
    params = jax.tree.map(
        lambda p: jax.random.normal(jax.random.key(3), p.unbox().shape), boxed, is_leaf=lambda p: hasattr(p, "unbox")
    )
    x, t = jnp.linspace(-3, 3, 10).reshape(5, 1, 1, 2), jnp.full(5, 0.3)
    y = jax.jit(student.denoise)({"params": params}, x, t, jnp.zeros(5, int))
    np.testing.assert_allclose(np.diff(y, 2, axis=0), 0, atol=1e-4)
    assert np.abs(np.diff(y, axis=0)).min() > 1e-3


LAW = {"means": ((-0.5,), (0.5,)), "stds": ((0.2,), (0.4,)), "labels": (0, 1)}
CONFIG = {
    "data": {"name": "points", "law": LAW, "num_classes": 2, "count": 100},
    "teacher": {"method": {"name": "analytic", "law": LAW}, "model": {"num_layers": 0, "width": 8}},
    "method": {"name": "tests.matching"},
    "optim": {"learning_rate": 1e-2, "ema": (0.9,)},
    "train": {"num_steps": 3, "batch_size": 8, "checkpoint_every": 3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matching")
    assert train.train(CONFIG, folder)
    return folder


def test_a_run_with_a_described_teacher_trains_opens_and_samples(folder):
    opened = run.load(folder)
    assert isinstance(opened.task.teacher, analytic.Analytic) and opened.variables["teacher"] == {"params": {}}
    assert opened.task.teacher.config.law == mixtures.Mixture(**LAW)
    assert opened.method.student.network.sizes == vector.Sizes(0, 8)
    assert not (folder / "parents").exists()
    assert opened.sample([0, 1]).shape == (2, 1, 1, 1)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"teacher": {"method": {"name": "analytic"}, "modle": {}}}, "unknown key 'teacher.modle'"),
        ({"teacher": {"from_": "x", "method": {"name": "analytic"}}}, "unknown key 'teacher.method'"),
        ({"teacher": {}}, "needs a diffusion teacher .*, there is none; .* in teacher.method"),
        (
            {"teacher": {"method": {"name": "flow_matching"}, "model": {"num_heads": 2, "width": 8, "patch_size": 1}}},
            "teacher.method names a method with weights; train it",
        ),
        ({"teacher": {}, "method": CONFIG["teacher"]["method"]}, "method.name='analytic' has nothing to train"),
        ({"data": {"name": "points", "channels": 3}}, "law.labels=.* every class 0..0"),
    ],
)
def test_mistakes_about_teachers_are_named(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        experiment.prepare({**CONFIG, **changes}, tmp_path / "run")


def test_a_described_teacher_is_no_run_to_adopt(tmp_path):
    assert parents.sections(CONFIG, tmp_path) == {}


def test_the_task_of_a_described_teacher_is_the_runs_own():
    described = experiment.describe(CONFIG, experiment.datasets.info(experiment.datasets.configure(CONFIG["data"])), {})
    assert settings.build_task(described).teacher.canvas.shape == (1, 1, 1)
