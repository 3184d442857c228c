"""The light joint-sampling layer: zero is independence, an oracle is the joint law, training closes the gap."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxar.config import ConfigError
from jaxar.methods import joint_sampler, mdm
from jaxar.methods.base import Task
from jaxar.tokenizers.base import ImageSpec, TokenSpec
from tests.enumerated import BASE, LENGTH, SEQUENCES, VOCAB, TableNetwork, by_order, over_orders, p_values, table
from tests.methods.maskgit_test import randomized

COND = 1.5 * table(0)
STATES = len(COND)


class Teacher(TableNetwork):
    """Its hidden vector, at every position, says in which state the sequence is."""

    num_classes = 1

    def __init__(self):
        super().__init__(COND, COND)

    def apply(self, variables, *args, method):
        return getattr(self, method)(*args)

    def hidden(self, ids, known, label):
        code = jnp.where(known, ids, VOCAB) @ jnp.asarray(BASE)
        return jnp.broadcast_to(jax.nn.one_hot(code, STATES)[:, None], (*ids.shape, STATES))

    def logits(self, hidden):
        return jnp.einsum("bns,snv->bnv", hidden, COND)

    def embed(self, ids, known):
        return jnp.where(known, ids, VOCAB)[..., None] * jnp.ones(STATES)


class Layer:
    """In place of the trained layer: `oracle` updates the state by the new tokens, otherwise nothing changes."""

    width = STATES

    def __init__(self, oracle):
        self.oracle = oracle

    def apply(self, variables, hidden, new):
        if not self.oracle:
            return hidden
        change = (new[..., 0] - VOCAB).astype(jnp.int32) @ jnp.asarray(BASE)  # digits that were VOCAB
        code = jnp.argmax(hidden[:, 0], axis=-1) + change
        return jnp.broadcast_to(jax.nn.one_hot(code, STATES)[:, None], hidden.shape)


def method(oracle, group):
    teacher = mdm.MDM(Teacher(), mdm.Config())
    return joint_sampler.JointSampler(Layer(oracle), teacher, joint_sampler.Config(group=group))


def sampler(oracle, group):
    def sample(keys):
        cond = {"label": jnp.zeros(len(keys), jnp.int32)}
        players = {"model": {}, "teacher": {}}
        return method(oracle, group).sample(players, cond, keys, joint_sampler.Sampling()).ids

    return jax.jit(sample)


@pytest.mark.parametrize("group", [2, 3])
def test_an_oracle_layer_gives_the_joint_law_and_an_idle_one_independent_groups(group):
    orders = list(itertools.permutations(range(LENGTH)))
    groups = (group,) if group == LENGTH else (group, LENGTH - group)
    independent = np.mean([by_order(COND, order, groups) for order in orders], axis=0)
    assert (p_values(sampler(True, group), over_orders(COND)) > 1e-4).all()
    assert (p_values(sampler(False, group), independent) > 1e-4).all()
    assert (p_values(sampler(False, group), over_orders(COND)) < 1e-4).all()


def test_divergences_are_those_of_the_enumerated_laws():
    """Groups of all three tokens: mean over orders of the divergence after one and after two tokens."""
    toy, count = method(False, LENGTH), 20_000
    args = {"model": {}, "teacher": {}}, jnp.zeros((count, LENGTH), jnp.int32), jnp.zeros(count, jnp.int32)
    figures = jax.jit(toy.divergences)(*args, jax.random.key(0))
    log_probs = np.asarray(jax.nn.log_softmax(COND), np.float64)
    empty, expected = np.full(LENGTH, VOCAB) @ BASE, 0.0
    for order in itertools.permutations(range(LENGTH)):
        law = by_order(COND, order)
        for j in (1, 2):
            rest = list(order[j:])
            for ids, mass in zip(SEQUENCES, law):
                state = np.full(LENGTH, VOCAB)
                state[list(order[:j])] = ids[list(order[:j])]
                p, q = log_probs[state @ BASE, rest], log_probs[empty, rest]
                expected += mass * (np.exp(p) * (p - q)).sum(axis=-1).mean() / 12
    error = np.asarray(figures["kl"]).std() / np.sqrt(count)
    assert abs(figures["kl"].mean() - expected) < 4 * error
    np.testing.assert_array_equal(figures["kl"], figures["unchanged"])
    oracle = jax.jit(method(True, LENGTH).divergences)(*args, jax.random.key(0))
    np.testing.assert_allclose(oracle["kl"], 0, atol=1e-5)


SPEC = TokenSpec("discrete", ((1, LENGTH),), channels=4, vocab_size=VOCAB)


@functools.cache
def real():
    """(method, fresh layer and random teacher)."""
    image = ImageSpec(32, 3)
    teacher = mdm.build(mdm.Config(), mdm.Model(num_layers=1, width=8, num_heads=2, dropout=0.0), Task(image, 2, SPEC))
    task = Task(image, 2, SPEC, teacher=teacher)
    built = joint_sampler.build(joint_sampler.Config(group=3, label_drop=0.0), joint_sampler.Model(num_heads=2), task)
    layer = jax.tree.map(lambda x: getattr(x, "value", x), built.init(jax.random.key(0))["model"], is_leaf=boxed)
    return built, {"model": layer, "teacher": randomized(teacher)["model"]}


def boxed(x):
    return hasattr(x, "value")


@pytest.mark.slow
def test_a_fresh_layer_changes_nothing_and_training_brings_it_closer_to_the_teacher():
    built, variables = real()
    batch = {"ids": jnp.asarray(SEQUENCES), "label": jnp.zeros(27, jnp.int32)}
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(layer, state, key):
        def loss(layer):
            value, aux = built.loss({**variables, "model": layer}, batch, key, 0)
            return value, aux.metrics["kl_unchanged"]

        (value, unchanged), grads = jax.value_and_grad(loss, has_aux=True)(layer)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(layer, updates), state, value, unchanged

    layer, state, history = variables["model"], optimizer.init(variables["model"]), []
    for i in range(150):
        layer, state, value, unchanged = step(layer, state, jax.random.key(i))
        history.append(float(value / unchanged))
    assert history[0] == pytest.approx(1, abs=1e-5)
    assert np.mean(history[-20:]) < 0.6


def test_the_teacher_is_called_once_per_group():
    assert [method(True, group).network_calls(joint_sampler.Sampling()) for group in (2, 3)] == [2, 1]


def test_a_missing_teacher_and_unfit_sizes_are_refused():
    built, _ = real()
    task = Task(ImageSpec(32, 3), 2, SPEC, teacher=built.teacher)
    with pytest.raises(ConfigError, match="needs teacher.from_"):
        joint_sampler.build(joint_sampler.Config(), joint_sampler.Model(), Task(ImageSpec(32, 3), 2, SPEC))
    with pytest.raises(ConfigError, match="method.group=4 exceeds the teacher's 3 tokens"):
        joint_sampler.build(joint_sampler.Config(group=4), joint_sampler.Model(), task)
    with pytest.raises(ConfigError, match="model.num_heads=3 does not divide the teacher's width 8"):
        joint_sampler.build(joint_sampler.Config(group=2), joint_sampler.Model(num_heads=3), task)
    with pytest.raises(ConfigError, match="method.group=1"):
        joint_sampler.Config(group=1)
    with pytest.raises(ConfigError, match="method.label_drop=2"):
        joint_sampler.Config(label_drop=2.0)
