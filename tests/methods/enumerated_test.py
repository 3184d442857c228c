"""Tables as autoregressive teachers: their conditionals, samples, and what Distilled Decoding makes of them."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxar.config import ConfigError
from jaxar.methods import ar, dd1, enumerated
from jaxar.methods.base import Task
from jaxar.models import causal
from jaxar.tokenizers.base import ImageSpec, TokenSpec

COUNT, VOCAB, LENGTH = 20_000, 2, 3
PROBS = (0.40, 0.05, 0.02, 0.03, 0.0, 0.1, 0.15, 0.25)
SPEC = TokenSpec("discrete", ((1, LENGTH),), 1, VOCAB)
SEQUENCES = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)))
SIZES = causal.Sizes(num_layers=1, width=8, num_heads=2, hidden_multiple=8, dropout=0.0)
LABELS = jnp.zeros(COUNT, jnp.int32)


@dataclasses.dataclass(frozen=True)
class Codes:
    """Of a tokenizer, what students need."""

    spec: TokenSpec = SPEC

    def codes(self, variables):
        return jnp.array([[-1.0], [1.0]])


TASK = Task(ImageSpec(3, 1), 2, SPEC, Codes())
TEACHER = enumerated.build(enumerated.Config(PROBS), SIZES, TASK)


def p_value(ids):
    seen = np.bincount(np.asarray(ids) @ VOCAB ** np.arange(LENGTH)[::-1], minlength=len(PROBS))
    assert seen[4] == 0
    keep = np.array(PROBS) > 0
    return scipy.stats.chisquare(seen[keep], COUNT * np.array(PROBS)[keep]).pvalue


def test_the_conditionals_multiply_to_the_table():
    logits = np.asarray(TEACHER.network.apply({}, jnp.asarray(SEQUENCES), {}), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    joint = np.exp(np.take_along_axis(log_probs, SEQUENCES[..., None], -1).sum((1, 2)))
    np.testing.assert_allclose(joint, PROBS, atol=1e-6)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_samples_have_the_law_of_the_table(guidance_scale):
    """Guided or not: the null class has the same law."""
    options = ar.Sampling(guidance_scale=guidance_scale)
    draw = jax.jit(lambda keys: TEACHER.sample({"model": {"params": {}}}, {"label": LABELS}, keys, options).ids)
    assert p_value(draw(jax.random.split(jax.random.key(0), COUNT))) > 1e-3


@functools.cache
def distilled(flow_steps):
    method = dd1.build(dd1.Config(flow_steps=flow_steps), dd1.Model(), dataclasses.replace(TASK, teacher=TEACHER))
    frozen = {"teacher": {"params": {}}, "tokenizer": {}}
    noise = method.noise(jax.random.split(jax.random.key(1), COUNT))
    return p_value(jax.jit(method.decide)(frozen, noise, LABELS))


def test_distilled_decoding_turns_noise_into_the_law_of_the_table():
    assert distilled(40) > 1e-3
    assert distilled(2) < 1e-3


@pytest.mark.parametrize(
    "probs, message",
    [
        ((0.5, 0.5), "method.probs has 2 entries; 3 tokens of 2 ids make 8 sequences"),
        ((0.0,) * 8, "one of them positive"),
        ((-1.0,) * 8, "must be at least 0"),
    ],
)
def test_mistakes_are_named(probs, message):
    with pytest.raises(ConfigError, match=message):
        enumerated.build(enumerated.Config(probs), SIZES, TASK)


def test_nothing_is_trained():
    assert TEACHER.losses() == () and TEACHER.init(jax.random.key(0)) == {"model": {"params": {}}}
