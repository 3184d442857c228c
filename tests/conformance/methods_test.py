"""What every method must do, tried through its smoke configurations on digits."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar import checkpoints, sampling, settings, state
from jaxar.partition import single_device_mesh
from jaxar.train_step import train_step
from tests.conformance import cases

# One configuration of each kind; all others are tried in the slow suite.
REPRESENTATIVES = (
    *cases.ALWAYS,
    "flow_digits",
    "maskgit_digits",
    "next_scale_digits",
    "vq_digits",
    "dd2_digits",
    "consistency_digits",
)
NAMES = [pytest.param(n, marks=() if n in REPRESENTATIVES else pytest.mark.slow) for n in cases.digits_configs()]
STEPS = 40


def test_every_method_has_a_configuration_on_digits():
    assert not cases.uncovered()


@pytest.fixture(params=NAMES)
def case(request):
    return cases.case(request.param)


@functools.cache
def plan(name):
    optimizer = {"learning_rate": 3e-3, "schedule": {"name": "constant"}, "weight_decay": 0.0, "ema": (0.9,)}
    return cases.case(name).plan(optimizer)


@functools.cache
def compiled_step(name, active):
    return jax.jit(functools.partial(train_step, plan=plan(name), active=active))


def run_step(case, current, active=None, key=0):
    active = case.method.active(int(current.step)) if active is None else active
    return compiled_step(case.name, active)(current, case.frozen, case.raw, jax.random.key(key))


@functools.cache
def fresh(name):
    return cases.case(name).state(plan(name))


@functools.cache
def trained(name):
    """The state after `STEPS` steps on one batch, and the losses on the way."""
    case, current, losses = cases.case(name), fresh(name), []
    for _ in range(STEPS):
        current, figures = run_step(case, current)
        losses.append(float(figures["train/loss"]))
    return current, losses


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_abstract_and_real_initialization_agree(case):
    abstract = state.abstract(case.method, plan(case.name).optimizers, single_device_mesh())
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (abstract, fresh(case.name)))
    assert jax.tree.structure(abstract) == jax.tree.structure(fresh(case.name))
    assert shapes[0] == shapes[1]
    assert sorted(case.method.players()) == list(abstract.players)  # trees sort their keys


def test_each_loss_is_finite_and_trains_its_players_alone(case):
    start = trained(case.name)[0]  # zero-initialised layers have grown by then
    for loss in case.method.losses():
        after, figures = run_step(case, start, active=(loss.name,))
        assert np.isfinite(float(figures[f"train/{loss.name}"])), loss.name
        for name in case.method.players():
            if name in loss.updates:
                assert float(figures[f"train/grad_norm/{name}"]) > 0, (loss.name, name)
                moved = [
                    not same(a, b)
                    for a, b in zip(*map(jax.tree.leaves, (start.players[name].params, after.players[name].params)))
                ]
                assert all(moved), (loss.name, name)
            else:
                assert same(start.players[name].params, after.players[name].params), (loss.name, name)


def test_one_batch_is_learnt(case):
    if case.name in cases.NUMBERS or len(case.method.players()) > 1:
        pytest.skip("has no network of its own, or several that follow one another, whose losses need not fall")
    losses = trained(case.name)[1]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:2])


def test_the_same_key_gives_the_same_step_bit_for_bit(case):
    start = fresh(case.name)
    assert same(run_step(case, start)[0], run_step(case, start)[0])


def test_saving_restoring_and_going_on_changes_no_bit(case, tmp_path):
    straight = fresh(case.name)
    for _ in range(4):
        straight, _ = run_step(case, straight)
    broken = fresh(case.name)
    for _ in range(2):
        broken, _ = run_step(case, broken)
    keeper = checkpoints.Checkpoints(tmp_path / "checkpoints")
    keeper.save(broken, {})
    restored = keeper.restore(state.abstract(case.method, plan(case.name).optimizers, single_device_mesh()))
    keeper.close()
    for _ in range(2):
        restored, _ = run_step(case, restored)
    assert same(restored, straight)


def test_validation_figures_are_finite_and_per_example_or_scalar(case):
    variables = {**case.frozen, **trained(case.name)[0].variables()}
    figures = jax.jit(case.method.evaluate)(variables, case.batch, jax.random.key(0))
    assert figures
    for name, value in figures.items():
        assert value.shape in ((), (cases.BATCH,)) and np.all(np.isfinite(value)), name


@functools.cache
def sampler(name, batch_size=None):
    case = cases.case(name)
    options = settings.build_sampling(case.config)
    return sampling.Sampler(case.method, case.task.tokenizer, options, single_device_mesh(), batch_size)


def draw(case, ids, seed=0, batch_size=None):
    variables = {**case.frozen, **trained(case.name)[0].variables()}
    cond = sampling.conditions(case.task, sampling.balanced_labels(8, case.task.num_classes)[ids], ["a caption"])
    return sampler(case.name, batch_size)(variables, cond, np.asarray(ids), seed)


def test_a_sample_depends_on_its_seed_and_number_alone(case):
    if settings.build_sampling(case.config) is None:
        pytest.skip("trains a tokenizer and does not sample")
    ids = np.arange(8)
    images = draw(case, ids)
    assert images.shape == (8, *case.task.image.shape) and images.dtype == np.uint8
    assert np.array_equal(images, draw(case, ids))
    assert np.array_equal(images[[5, 2, 7, 1, 0, 3, 6, 4]], draw(case, ids[[5, 2, 7, 1, 0, 3, 6, 4]]))
    assert np.array_equal(images[:5], draw(case, ids[:5], batch_size=4))  # other batches, one of them padded
    assert not np.array_equal(images, draw(case, ids, seed=1))
    assert case.method.network_calls(settings.build_sampling(case.config)) >= 1


def test_players_parameters_carry_logical_names(case):
    boxed = jax.eval_shape(case.method.init, jax.random.key(0))
    for player, variables in boxed.items():
        leaves = jax.tree.leaves(variables["params"], is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))
        assert all(isinstance(leaf, nn.meta.AxisMetadata) for leaf in leaves), player


@pytest.mark.parametrize("name", cases.mostly_slow())
def test_gradient_accumulation_runs_and_stays_finite(name):
    case = cases.case(name)
    split = case.plan({"learning_rate": 1e-3}, accumulate=2)
    active = case.method.active(0)
    fn = jax.jit(functools.partial(train_step, plan=split, active=active))
    after, figures = fn(case.state(split), case.frozen, case.raw, jax.random.key(0))
    assert int(after.step) == 1 and np.isfinite(float(figures["train/loss"]))
    assert jnp.all(jnp.stack([jnp.all(jnp.isfinite(p)) for p in jax.tree.leaves(after.variables())]))
