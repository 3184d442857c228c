"""SlimFlow of Gaussian data: annealed pairs have a velocity in closed form, and end as those of reflow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.methods import reflow, slimflow
from tests import exact_flows as exact

CONFIG = slimflow.Config(anneal_steps=100, solver_steps=40)


def method(network=None, **changes):
    teacher = exact.Exact("denoiser")
    return slimflow.SlimFlow(network or exact.Exact("line"), teacher, dataclasses.replace(CONFIG, **changes))


def test_the_share_of_independent_noise_falls_to_zero():
    values = [float(method().anneal(jnp.int32(step))) for step in (0, 50, 100, 10**6)]
    np.testing.assert_allclose(values, [1, 0.5, 0, 0])
    assert method(anneal_steps=0).anneal(jnp.int32(0)) == 0


def test_at_the_end_gradients_are_those_of_reflow():
    other = reflow.Reflow(exact.Exact("denoiser"), exact.Exact("denoiser"), reflow.Config(solver_steps=40))
    mine = method(exact.Exact("denoiser"))
    late, reflowed = exact.gradients(mine, 3, step=100), exact.gradients(other, 3)
    np.testing.assert_allclose(late, reflowed, rtol=1e-5)
    assert np.abs(exact.gradients(mine, 3, step=20) / reflowed - 1).max() > 0.05


@dataclasses.dataclass(frozen=True)
class Regression(exact.Exact):
    """The velocity of annealed pairs (mixed noise, data): linear in x, with their correlation `rho`."""

    rho: float = 0.0

    def velocity(self, model, x, t, labels, *scalars):
        t, s = t[:, None, None, None], exact.STD
        variance = t**2 + (1 - t) ** 2 * s**2 + 2 * t * (1 - t) * self.rho * s
        covariance = t - (1 - t) * s**2 + (1 - 2 * t) * self.rho * s
        value = -exact.MEAN + covariance / variance * (x - (1 - t) * exact.MEAN)
        return value + model["params"]["shift"] + model["params"]["slope"] * x


@pytest.mark.parametrize("step", [0, 40, 80])
@pytest.mark.slow
def test_the_velocity_of_annealed_pairs_is_the_regression_on_their_line(step):
    rho = np.sqrt(1 - (1 - step / 100) ** 2)
    found = exact.gradients(method(Regression(rho=float(rho))), step=step)
    assert np.abs(exact.deviations(found)).max() < 4
    wrong = exact.gradients(method(Regression(rho=float(rho) - 0.3)), step=step)
    assert np.abs(exact.deviations(wrong)).max() > 6


@pytest.mark.slow
def test_a_straight_teacher_confirms_a_straight_step_and_corrects_another():
    class Straight(exact.Exact):
        def denoise(self, model, x, t, labels, *scalars):
            return x - t[:, None, None, None] * self.line(x, t, exact.mean_of(labels))

    flow = dataclasses.replace(method(distil=True), teacher=Straight())
    assert exact.errors(flow).max() < 1e-4
    x, cond = exact.data(64)

    def denoise(x, t):
        return flow.teacher.denoise(exact.weights(), x, t, cond["label"])

    for shift in (0.0, 0.2):
        found = flow.guided(exact.weights(shift=shift), denoise, x, cond["label"], jax.random.key(0))
        assert (float(found.mean()) < 1e-9) == (shift == 0)


def test_mistakes_are_named():
    for changes in ({"anneal_steps": -1}, {"solver_steps": 0}):
        with pytest.raises(ConfigError, match=f"method.{next(iter(changes))}="):
            slimflow.Config(**changes)
