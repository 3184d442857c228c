"""Learnt few-step samplers: the untrained one is the teacher's ancestral sampler, what is learnt is nearer to its law.

The student's law, the loss and its gradient are enumerated: means over orders and numbers of tokens per step.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxar.config import ConfigError, parse
from jaxar.decoding import logits as lg
from jaxar.methods import lsd, maskgit, mdm
from jaxar.methods.base import Task
from jaxar.tokenizers.base import ImageSpec, Tokens
from tests.enumerated import LENGTH, TableNetwork, by_order, conditionals, p_values, table

ORDERS = list(itertools.permutations(range(LENGTH)))


def copies(noise):
    """Three tokens that are nearly always the same id, the ids not being equally likely."""
    joint = np.full((3,) * LENGTH, noise)
    for v, share in enumerate((0.7, 0.2, 0.1)):
        joint[(v,) * LENGTH] += share
    return joint / joint.sum()


JOINT = copies(0.01)
MODEL, NULL = conditionals(JOINT), table(1)
ALONE = [JOINT.sum((1, 2)), JOINT.sum((0, 2)), JOINT.sum((0, 1))]
INDEPENDENT = conditionals(functools.reduce(np.multiply.outer, ALONE))
LSD, PLUS = lsd.Config(num_steps=2), lsd.Config(num_steps=2, learn_times=True)


def method(config, *tables):
    return lsd.LSD(mdm.MDM(TableNetwork(*(tables or (MODEL, NULL))), mdm.Config()), config)


def variables(coefficients, log_odds=None):
    params = {"coefficients": jnp.asarray(coefficients, jnp.float32)}
    if log_odds is not None:
        params["log_odds"] = jnp.asarray(log_odds, jnp.float32)
    return {"model": {"params": params}, "teacher": {}}


def untrained(config):
    return variables(np.ones(config.num_steps), np.zeros(config.num_steps - 1) if config.learn_times else None)


def batch(count):
    return {"label": jnp.zeros(count, jnp.int32)}


def enumerated(coefficients, odds=1.0, model=MODEL, forward=False):
    """The law of the student with two steps of the cosine, and its mean divergence from JOINT given order and times."""
    level = np.sin(np.pi / 4)
    reveal = (1 - level) * odds / (level + (1 - level) * odds)
    law, divergence = 0, 0
    for first, order in itertools.product(range(LENGTH + 1), ORDERS):
        weight = math.comb(LENGTH, first) * reveal**first * (1 - reveal) ** (LENGTH - first) / len(ORDERS)
        own = by_order(model, order, (first, LENGTH - first), coefficients)
        law += weight * own
        divergence += weight * kl(*((JOINT.ravel(), own) if forward else (own, JOINT.ravel())))
    return law, divergence


def kl(p, q):
    return np.sum(p * np.log(p / q))


# The sampler.


@pytest.mark.parametrize("num_steps, plus", [pytest.param(2, False, marks=pytest.mark.slow), (3, True), (7, True)])
def test_untrained_it_is_the_ancestral_sampler_of_its_teacher_bit_for_bit(num_steps, plus):
    guidance = {"guidance_scale": 1.5, "temperature": 0.9}
    config = lsd.Config(num_steps=num_steps, learn_times=plus, teacher=lg.Sampling(**guidance))
    student = method(config)
    keys, cond = jax.random.split(jax.random.key(0), 3000), {"label": jnp.zeros(3000, jnp.int32)}
    sample = jax.jit(lambda v: student.sample(v, cond, keys, lsd.Sampling()).ids)
    expected = student.teacher.sample({"model": {}}, cond, keys, mdm.Sampling(num_steps=num_steps, **guidance)).ids
    np.testing.assert_array_equal(sample(untrained(config)), expected)
    start = untrained(config)["model"]["params"]
    for name in start:
        moved = {**start, name: start[name].at[0].add(0.3)}
        assert (sample({"model": {"params": moved}, "teacher": {}}) != expected).any(), name
    assert student.network_calls(lsd.Sampling()) == min(num_steps, LENGTH)


def test_samples_follow_the_enumerated_law_of_coefficients_and_times():
    student = method(PLUS)

    @jax.jit
    def sample(keys):
        cond = {"label": jnp.zeros(len(keys), jnp.int32)}
        return student.sample(variables((1.3, 2.0), (0.7,)), cond, keys, lsd.Sampling()).ids

    assert (p_values(sample, enumerated((1.3, 2.0), np.exp(0.7))[0]) > 1e-4).all()
    for wrong in (enumerated((2.0, 1.3), np.exp(0.7)), enumerated((1.3, 2.0))):
        assert (p_values(sample, wrong[0]) < 1e-4).all()


def test_known_tokens_stay():
    known = jnp.broadcast_to(jnp.array([True, False, True]), (50, LENGTH))
    keys = jax.random.split(jax.random.key(0), 50)
    tokens = Tokens(ids=jnp.full(known.shape, 2))
    ids = method(LSD).complete(untrained(LSD), tokens, known, batch(50), keys, lsd.Sampling()).ids
    assert (ids[:, ::2] == 2).all() and len(np.unique(ids[:, 1])) > 1


# The loss.


@functools.cache
def estimates(score):
    """Losses and gradients of many batches, at coefficients and times away from the start."""
    student, at = method(PLUS), variables((1.3, 2.0), (0.7,))

    def one(key):
        def loss(params):
            return student.loss({"model": {"params": params}, "teacher": {}}, batch(100), key, 0)[0]

        return jax.value_and_grad(loss)(at["model"]["params"])

    with pytest.MonkeyPatch.context() as patch:
        if not score:
            patch.setattr(lsd, "_above_others", jnp.zeros_like)
        return jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(0), 400))


def deviations(found, expected):
    error = np.std(found, axis=0) / np.sqrt(len(found))
    return np.abs(np.mean(found, axis=0) - expected) / error


def test_the_loss_estimates_the_divergence_per_token_and_its_gradient():
    value = enumerated((1.3, 2.0), np.exp(0.7))[1] / LENGTH
    shift = 1e-4
    slopes = [
        (enumerated(*ahead)[1] - enumerated(*behind)[1]) / (2 * shift * LENGTH)
        for ahead, behind in (
            (((1.3 + shift, 2.0), np.exp(0.7)), ((1.3 - shift, 2.0), np.exp(0.7))),
            (((1.3, 2.0 + shift), np.exp(0.7)), ((1.3, 2.0 - shift), np.exp(0.7))),
            (((1.3, 2.0), np.exp(0.7 + shift)), ((1.3, 2.0), np.exp(0.7 - shift))),
        )
    ]
    losses, gradients = estimates(score=True)
    assert deviations(losses, value) < 4
    found = np.concatenate([gradients["coefficients"], gradients["log_odds"]], axis=1)
    assert (deviations(found, slopes) < 4).all()
    # Without the score function the loss is the same and the gradient is not.
    losses, gradients = estimates(score=False)
    assert deviations(losses, value) < 4
    assert deviations(gradients["coefficients"], np.array(slopes[:2]))[0] > 8
    assert not np.any(gradients["log_odds"])


@pytest.mark.slow
def test_a_law_of_independent_tokens_costs_nothing():
    student = method(PLUS, INDEPENDENT, NULL)
    at = untrained(PLUS)["model"]["params"]
    loss = lambda params: student.loss({"model": {"params": params}, "teacher": {}}, batch(8), jax.random.key(0), 0)[0]  # noqa: E731
    value, gradients = jax.value_and_grad(loss)(at)
    assert abs(value) < 1e-6 and all(np.abs(leaf).max() < 1e-5 for leaf in jax.tree.leaves(gradients))


def test_in_the_other_direction_no_coefficient_helps():
    """KL(teacher || student) is least at coefficients of 1, whatever the times; the loss is not."""
    for odds in (0.5, 1.0, 3.0):
        least = enumerated((1.0, 1.0), odds, forward=True)[1]
        for moved in ((0.95, 1.0), (1.05, 1.0), (1.0, 0.95), (1.0, 1.05)):
            assert enumerated(moved, odds, forward=True)[1] > least + 1e-6
        assert enumerated((1.05, 1.05), odds)[1] < enumerated((1.0, 1.0), odds)[1] - 0.01


@functools.cache
def learnt(config):
    """Coefficients, and the factor on the odds of the first step."""
    student, optimizer = method(config), optax.adam(optax.cosine_decay_schedule(0.05, 300))
    start = untrained(config)["model"]["params"]

    def update(carry, key):
        params, state = carry
        loss = lambda p: student.loss({"model": {"params": p}, "teacher": {}}, batch(256), key, 0)[0]  # noqa: E731
        changes, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, changes), state), None

    keys = jax.random.split(jax.random.key(1), 300)
    params = jax.jit(lambda: jax.lax.scan(update, (start, optimizer.init(start)), keys)[0][0])()
    odds = float(np.exp(params["log_odds"][0])) if config.learn_times else 1.0
    return np.asarray(params["coefficients"], np.float64), odds


def distances(law):
    return np.abs(law - JOINT.ravel()).sum() / 2, kl(law, JOINT.ravel()), kl(JOINT.ravel(), law)


@pytest.mark.parametrize("config", [LSD, PLUS], ids=["lsd", "plus"])
def test_what_is_learnt_is_nearer_to_the_teachers_law_than_uniform_steps(config):
    law, divergence = enumerated(*learnt(config))
    uniform, untrained_divergence = enumerated((1.0, 1.0))
    assert divergence < 0.75 * untrained_divergence
    for near, far in zip(distances(law), distances(uniform)):
        assert near < 0.8 * far


def test_times_help_beside_coefficients():
    assert enumerated(*learnt(PLUS))[1] < enumerated(*learnt(LSD))[1] - 1e-4


def test_validation_compares_with_the_untrained_sampler():
    cond = {"label": jnp.zeros(4000, jnp.int32)}
    figures = method(PLUS).evaluate(variables((1.3, 2.0), (0.7,)), cond, jax.random.key(0))
    for name, law in {"kl": enumerated((1.3, 2.0), np.exp(0.7)), "kl_untrained": enumerated((1.0, 1.0))}.items():
        assert figures[name].shape == (4000,) and deviations(figures[name], law[1] / LENGTH) < 4


# Options.


@pytest.mark.parametrize(
    "values, message",
    [
        ({"num_steps": 0}, "method.num_steps=0"),
        ({"num_steps": 1, "learn_times": True}, "method.learn_times=True needs"),
        ({"schedule": "sine"}, "method.schedule='sine'"),
        ({"teacher": {"top_k": 2}}, "method.teacher must leave every token possible"),
        ({"teacher": {"greedy": True}}, "method.teacher must leave every token possible"),
    ],
)
def test_options_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        parse(lsd.Config, values, "method")


def test_only_masked_diffusion_is_a_teacher():
    for teacher in (None, maskgit.MaskGIT(TableNetwork(MODEL, NULL), maskgit.Config())):
        with pytest.raises(ConfigError, match="needs teacher.from_, the workdir of an mdm run"):
            lsd.build(lsd.Config(), lsd.Model(), Task(ImageSpec(8, 1), 1, teacher=teacher))
