"""Trajectory distribution matching: DMD for one call; with two, the score's target and the trajectory's laws."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.methods import _denoiser as denoisers
from jaxar.methods import _score_distillation as distillation
from jaxar.methods import dmd, tdm
from tests import gaussians

TEACHER, STUDENT, T = (0.5, 0.8), (-0.2, 1.5), 0.4


@dataclasses.dataclass(frozen=True)
class Flow(gaussians.Gaussian):
    """Called at a time of `calls`, it makes the estimate of data with which a step ends where the exact flow does."""

    calls: tuple[float, ...] = (1.0, 0.5)

    def denoise(self, model, x, t, labels):
        estimate = super().denoise(model, x, t, labels)
        mean, std = (model["params"][name][0] for name in ("mean", "std"))
        for begin, end in zip(self.calls, (*self.calls[1:], 0.0), strict=True):
            before, after = (jnp.hypot((1 - time) * std, time) for time in (begin, end))
            goal = (1 - end) * mean + after / before * (x - (1 - begin) * mean)
            gain = (1 - end) - end / begin * (1 - begin)  # of the estimate in the end of the step
            estimate = jnp.where(t[:, None, None, None] == begin, (goal - end / begin * x) / gain, estimate)
        return estimate


def two_calls():
    teacher = Flow()
    return tdm.TDM(teacher, teacher, tdm.Config(calls=teacher.calls))


def test_one_call_is_dmd():
    variables = gaussians.players(TEACHER, STUDENT, score=(0.1, 1.1))
    ours = gaussians.distiller(tdm.TDM, tdm.Config(calls=(1.0,)))
    theirs = gaussians.distiller(dmd.DMD, dmd.Config(regression_weight=0.0, solver_steps=1))
    np.testing.assert_allclose(
        gaussians.expected_gradient(ours, variables, T), gaussians.expected_gradient(theirs, variables, T), rtol=1e-4
    )
    errors = [
        jax.jit(method.denoising_errors)(variables["score"], gaussians.make(method, variables, T))
        for method in (ours, theirs)
    ]
    np.testing.assert_allclose(*errors, rtol=1e-4, atol=1e-6)


def test_on_the_exact_flow_every_stretch_has_the_teachers_law_and_its_score_is_the_teachers():
    method, variables = two_calls(), gaussians.players(TEACHER, TEACHER)
    probs = gaussians.nodes(24)[2]
    for call, t in ((0, 0.6), (1, 0.3)):
        made = gaussians.make(method, variables, t, call=call)
        x = np.asarray(made.noised).ravel()
        assert abs(probs @ x - (1 - t) * TEACHER[0]) < 1e-4
        assert abs(probs @ x**2 - ((1 - t) * TEACHER[0]) ** 2 - ((1 - t) * TEACHER[1]) ** 2 - t**2) < 1e-4
        assert np.abs(slope(method.denoising_errors, variables["teacher"], made)).max() < 1e-4
        # Regression on the estimate itself, as if the noise of x_t did not depend on it, rests elsewhere.
        plain = functools.partial(distillation.ScoreDistillation.denoising_errors, method)
        assert call == 1 or np.abs(slope(plain, variables["teacher"], made)).max() > 0.01


def slope(errors, score, made):
    gradient = jax.jit(jax.grad(lambda score: gaussians.expectation(errors(score, made))))(score)["params"]
    return np.array([gradient["mean"][0], gradient["std"][0]])


def test_sampling_follows_the_flow_without_new_noise():
    method, keys = two_calls(), jax.random.split(jax.random.key(0), 6)
    variables, cond = gaussians.players(TEACHER, TEACHER), {"label": jnp.zeros(6, int)}
    samples = jax.jit(lambda keys: method.sample(variables, cond, keys, tdm.Sampling(2)).latents)(keys)
    z = denoisers.noise_of(method.student, keys)
    np.testing.assert_allclose(samples, TEACHER[0] + TEACHER[1] * z, rtol=1e-4, atol=1e-5)


def test_times_lie_on_the_stretch_of_their_call():
    method = two_calls()
    batch = gaussians.batch(500)
    draws = jax.jit(lambda key: method.draw(key, batch, (0.02, 0.98)))(jax.random.key(0))
    first = np.asarray(draws.call) == 0
    t = np.asarray(draws.t)
    assert t[first].min() > 0.5 and t[~first].max() < 0.5 and t[~first].min() < 0.05 and t[first].max() > 0.95
