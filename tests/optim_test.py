"""Schedules at their corners, and which parameters decay."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar import optim
from jaxar.config import ConfigError
from jaxar.methods.base import PlayerSpec
from jaxar.optim import Schedule
from tests.toys import Toy


def values(schedule, steps, num_steps=101):
    return [float(schedule(s, num_steps)) for s in steps]


def test_cosine_warms_up_peaks_and_ends_where_it_is_told_to():
    schedule = Schedule("cosine", warmup_steps=20, warmup_init=0.1, end=0.2)
    np.testing.assert_allclose(values(schedule, [0, 10, 20, 60, 100]), [0.1, 0.55, 1.0, 0.6, 0.2], rtol=1e-6)


def test_linear_is_the_published_schedule_of_var():
    schedule = Schedule("linear", warmup_steps=0, flat=0.05, end=0.1)
    # flat for 5 %, then a line through (5 %, 1) and (100 %, end)
    np.testing.assert_allclose(values(schedule, [0, 5, 100]), [1, 1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(values(schedule, [52.5]), [0.1 + 0.9 * 0.5], rtol=1e-6)


def test_the_infinite_schedule_and_its_branch_agree_until_the_anneal_starts():
    trunk = Schedule("infinite", warmup_steps=10)
    branch = Schedule("infinite", warmup_steps=10, anneal_start=50, anneal_steps=16, end=0.0)
    steps = [0, 5, 10, 40, 50]
    assert values(trunk, steps) == values(branch, steps)
    np.testing.assert_allclose(values(branch, [54, 66, 1000]), [0.5, 0, 0], atol=1e-6)
    assert values(trunk, [10_000]) == [1.0]


@pytest.mark.parametrize(
    "bad, field",
    [
        ({"schedule": {"end": 2.0}}, "optim.schedule.end"),
        ({"schedule": {"warmup_steps": -1}}, "optim.schedule.warmup_steps"),
        ({"schedule": {"warmup_init": 2.0}}, "optim.schedule.warmup_init"),
        ({"b1": 1.0}, "optim.b1"),
        ({"b2": -0.1}, "optim.b2"),
        ({"eps": 0.0}, "optim.eps"),
        ({"weight_decay": -1.0}, "optim.weight_decay"),
        ({"max_bad_steps": 0}, "optim.max_bad_steps"),
        ({"schedule": {"anneal_start": 5}}, "optim.schedule.anneal_start"),
        ({"learning_rate": 0.0}, "optim.learning_rate"),
        ({"ema": (1.0,)}, "optim.ema"),
        ({"clip_norm": 0.0}, "optim.clip_norm"),
        ({"spike": 1.0}, "optim.spike"),
        ({"learning_rte": 1.0}, "did you mean 'optim.learning_rate'"),
        ({"players": {"critik": {}}}, "did you mean 'critic'"),
    ],
)
def test_mistakes_name_the_field(bad, field):
    with pytest.raises(ConfigError, match=field):
        optim.build(bad, Toy(), 10)


def test_a_player_overrides_single_keys_and_keeps_the_rest():
    section = {"learning_rate": 1e-3, "schedule": {"name": "constant", "warmup_steps": 3}}
    section["players"] = {"critic": {"learning_rate": 1e-2, "schedule": {"warmup_steps": 0}}}
    built = optim.build(section, Toy(), 10)
    assert built["generator"].config.learning_rate == 1e-3 and built["critic"].config.learning_rate == 1e-2
    assert built["generator"].config.schedule.warmup_steps == 3
    assert built["critic"].config.schedule == Schedule("constant", warmup_steps=0)


def test_biases_of_scanned_stacks_do_not_decay():
    def box(shape, *names):
        return nn.LogicallyPartitioned(jnp.zeros(shape), names, rules=())

    params = {
        "kernel": box((2, 3, 4), "layers", "embed", "mlp"),
        "bias": box((2, 4), "layers", "mlp"),
        "head_bias": box((2, 3, 4), "layers", "heads", "head_dim"),
        "table": box((5, 3), "classes", "embed"),
    }
    mask = optim.decay_mask(params, PlayerSpec(no_decay=("^table",)))
    assert mask == {"kernel": True, "bias": False, "head_bias": False, "table": False}
