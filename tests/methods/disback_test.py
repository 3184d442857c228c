"""Distribution backtracking: what is recorded, in which order it is returned to, and that the way is gentler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.methods import disback, dmd
from tests import gaussians, toys

CONFIG = disback.Config(records=2, record_every=10, return_every=5)


def with_target(variables, law):
    return {**variables, "score": {**variables["score"], "target": gaussians.weights(*law)["params"]}}


def test_records_are_made_while_the_score_alone_learns_and_returned_to_in_reverse():
    method = gaussians.distiller(disback.DisBack, CONFIG)
    stages = method.stages()
    assert [(s.name, s.start, s.losses) for s in stages] == [
        ("record_0", 0, ("score",)),
        ("record_1", 10, ("score",)),
        ("to_record_1", 20, None),
        ("to_record_0", 25, None),
    ]
    assert method.stage(24) == method.stage(20)  # made anew at each call: the trainer compares them
    _, state = toys.make(method)
    for law, stage in zip((1.0, 2.0, 3.0, 4.0), stages, strict=True):
        score = state.players["score"]
        params = jax.tree.map(lambda x, law=law: x * 0 + law, score.params)
        state = stage.enter(state.replace(players={**state.players, "score": score.replace(params=params)}))
    aux = state.players["score"].aux
    assert [float(aux[name]["mean"][0]) for name in ("record_0", "record_1", "target")] == [1.0, 2.0, 1.0]
    before = stages[2].enter(state).players["score"].aux["target"]
    assert float(before["mean"][0]) == 2.0


def test_the_gradient_is_dmds_towards_the_target():
    student, target = (0.3, 1.6), (0.1, 1.2)
    variables = with_target(gaussians.players((0.0, 1.0), student), target)
    ours = gaussians.expected_gradient(gaussians.distiller(disback.DisBack, CONFIG), variables, 0.4)
    plain = gaussians.distiller(dmd.DMD, dmd.Config(regression_weight=0.0, solver_steps=1))
    theirs = gaussians.expected_gradient(plain, gaussians.players(target, student), 0.4)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    made = gaussians.make(plain, gaussians.players(target, student), 0.4)
    near, far = (
        gaussians.expectation(jnp.square(np.subtract(*plain.denoised(gaussians.players(law, student), made))).ravel())
        for law in (target, (0.0, 1.0))
    )
    assert near < far / 2  # a target on the way differs less from what the student makes
    at_target = gaussians.expected_gradient(
        gaussians.distiller(disback.DisBack, CONFIG), with_target(gaussians.players((0.0, 1.0), target), target), 0.4
    )
    np.testing.assert_allclose(at_target, 0, atol=1e-6)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="method.records=0"):
        disback.Config(records=0)
