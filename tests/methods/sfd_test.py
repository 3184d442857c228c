"""Score forgetting distillation of Gaussian classes: the forgotten one rests at another's law."""

import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.methods import sfd, sid
from jaxar.methods.base import Task
from jaxar.tokenizers.base import ImageSpec
from tests import gaussians

TEACHER = ([-1.0, 1.0, 0.0], [0.5, 0.8, 1.0])
CONFIG = sfd.Config(forget=0, override=1, forget_weight=0.2, alpha=1.0)


def gradient(cls, config, generator, label):
    return gaussians.expected_gradient(
        gaussians.distiller(cls, config), gaussians.players(TEACHER, generator), 0.4, label
    )


def test_the_forgotten_class_rests_at_the_law_that_overrides_it():
    forgotten = ([1.0, 1.0, 0.0], [0.8, 0.8, 1.0])
    np.testing.assert_allclose(gradient(sfd.SFD, CONFIG, forgotten, 0), 0, atol=1e-5)
    assert np.abs(gradient(sfd.SFD, CONFIG, TEACHER, 0)).max() > 1e-2
    assert np.abs(gradient(sid.SiD, sid.Config(alpha=1.0), forgotten, 0)).max() > 1e-2  # SiD does not forget


def test_the_other_classes_are_distilled_as_ever():
    student = ([0.3, 0.6, 0.0], [0.9, 1.1, 1.0])
    np.testing.assert_allclose(
        gradient(sfd.SFD, CONFIG, student, 1), gradient(sid.SiD, sid.Config(alpha=1.0), student, 1), rtol=1e-6
    )


def test_samples_of_the_forgotten_class_have_their_weight_in_the_scores_loss():
    method = gaussians.distiller(sfd.SFD, CONFIG)
    variables = gaussians.players(TEACHER, TEACHER)
    for label, weight in ((0, 0.2), (1, 1.0)):
        made = gaussians.make(method, variables, 0.4, label)
        plain = method.denoising_errors(variables["score"], made)
        weighted = method.score_terms(variables, made, {}, None)["denoising"]
        np.testing.assert_allclose(weighted, weight * plain, rtol=1e-6)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="another class"):
        sfd.Config(forget=1, override=1)
    with pytest.raises(ConfigError, match="method.forget_weight=0"):
        sfd.Config(forget_weight=0)
    with pytest.raises(ConfigError, match="method.override=2"):
        sfd.build(sfd.Config(override=2), sfd.Model(), Task(ImageSpec(8, 1), 2))
