"""Eight simulated devices give what one gives, and parameters lie where the rules table says."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxar import partition, sampling, settings, state
from jaxar.partition import MeshConfig, make_mesh
from jaxar.train_step import train_step
from tests.conformance import cases

pytestmark = pytest.mark.sharded
SHAPES = ((2, 2, 2), (8, 1, 1), (1, 8, 1), (1, 1, 8))
CASES = [
    pytest.param(name, shape, marks=() if shape == SHAPES[0] and name in cases.ALWAYS else pytest.mark.slow)
    for name in cases.digits_configs()
    for shape in SHAPES
]
# Plain gradient descent: Adam's first steps turn rounding differences of tiny gradients into full steps.
SECTION = {"name": "sgd", "b1": 0.0, "learning_rate": 0.05, "schedule": {"name": "constant"}, "weight_decay": 0.0}


def num_heads(shape):
    """Enough heads for the tensor axis; None for the configuration's own."""
    return 8 if shape[2] > 2 else None


@functools.cache
def trained(name, shape, heads=None):
    """State and last figures after two steps on a mesh of this shape, None for one device."""
    case = cases.case(name, heads)
    mesh = make_mesh(MeshConfig(*shape)) if shape else partition.single_device_mesh()
    plan = case.plan(SECTION)
    current = case.state(plan, mesh)
    frozen = jax.device_put(case.frozen, partition.replicated(mesh))
    raw = jax.device_put(case.raw, partition.batch_sharding(mesh))
    fn = jax.jit(
        functools.partial(train_step, plan=plan, active=case.method.active(0)),
        out_shardings=(jax.tree.map(lambda x: x.sharding, current), partition.replicated(mesh)),
    )
    with jax.set_mesh(mesh):
        for _ in range(2):
            current, figures = fn(current, frozen, raw, jax.random.key(0))
    return current, figures


@pytest.mark.parametrize("name, shape", CASES)
def test_training_on_a_mesh_equals_training_on_one_device(name, shape):
    heads = num_heads(shape)
    (one, figures_one), (many, figures_many) = trained(name, None, heads), trained(name, shape, heads)
    np.testing.assert_allclose(figures_many["train/loss"], figures_one["train/loss"], rtol=1e-5)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one.variables()), jax.tree.leaves(many.variables())):
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("name, shape", CASES)
def test_every_parameter_lies_where_the_table_says(name, shape):
    current, _ = trained(name, shape, num_heads(shape))
    boxed = jax.eval_shape(cases.case(name, num_heads(shape)).method.init, jax.random.key(0))
    is_box = lambda x: isinstance(x, nn.meta.AxisMetadata)  # noqa: E731
    split = 0
    for player, variables in boxed.items():
        names = jax.tree.map(lambda x: x.names, variables["params"], is_leaf=is_box)
        params = current.players[player].params
        moments = [t for t in jax.tree.leaves(current.players[player].emas)]
        assert not moments
        for wanted, leaf in zip(
            jax.tree.leaves(names, is_leaf=lambda x: isinstance(x, tuple)), jax.tree.leaves(params)
        ):
            spec = partition.resolve(wanted)
            assert leaf.sharding.is_equivalent_to(jax.NamedSharding(leaf.sharding.mesh, spec), leaf.ndim), (
                player,
                wanted,
            )
            split += not leaf.sharding.is_fully_replicated
    axes = dict(zip(partition.AXES, shape))
    assert split > 0 or axes["fsdp"] * axes["tensor"] == 1 or name in cases.NUMBERS, "everything is replicated"


@pytest.mark.parametrize("name", cases.mostly_slow())
def test_samples_do_not_depend_on_the_number_of_devices(name):
    case = cases.case(name)
    options = settings.build_sampling(case.config)
    if options is None:
        pytest.skip("trains a tokenizer and does not sample")
    variables = {**case.frozen, **trained(name, None)[0].variables()}
    cond = sampling.conditions(case.task, sampling.balanced_labels(8, case.task.num_classes), ["a caption"])
    images = []
    for mesh in (partition.single_device_mesh(), make_mesh(MeshConfig())):
        placed = jax.device_put(variables, partition.replicated(mesh))
        draw = sampling.Sampler(case.method, case.task.tokenizer, options, mesh)
        images.append(draw(placed, cond, np.arange(8), 0).astype(int))
    assert np.abs(images[0] - images[1]).max() <= 1  # the same tokens; the decoder's pixels are rounded to bytes


def test_a_replicated_tree_would_be_noticed():
    plan = cases.case("ar_digits").plan(SECTION)
    mesh = make_mesh(MeshConfig(2, 2, 2))
    abstract = state.abstract(cases.case("ar_digits").method, plan.optimizers, mesh)
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(abstract.players["model"].params))
