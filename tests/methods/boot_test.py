"""BOOT with the exact signal part of the trajectories of Gaussian data."""

import dataclasses

import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.methods import boot
from tests import exact_flows as exact

CONFIG = boot.Config(gap=0.04)


def method(network=None, kind="linear", **changes):
    network = network or exact.Exact("signal", kind)
    return boot.Boot(network, exact.Exact("denoiser", kind), dataclasses.replace(CONFIG, **changes))


@pytest.mark.parametrize("kind", ["linear", pytest.param("cosine", marks=pytest.mark.slow)])
def test_the_exact_signal_leaves_a_residual_of_second_order(kind):
    """Its square is divided by that of the gap: halving the gap leaves half of the root."""
    coarse, fine = (np.sqrt(exact.errors(method(kind=kind, gap=gap)).mean()) for gap in (0.08, 0.04))
    assert 1.6 < coarse / fine < 2.5 and fine < 0.1


@pytest.mark.slow
def test_another_clock_does_not():
    class Reversed(exact.Exact):
        def denoise(self, model, x, t, labels, *scalars):
            return super().denoise(model, x, t, labels, *(1 - told for told in scalars))

    assert exact.errors(method(Reversed("signal"))).mean() > 10 * exact.errors(method()).mean()


@pytest.mark.slow
def test_at_the_noisiest_time_the_signal_is_the_teachers():
    exactly, off = (exact.errors(method(boundary_weight=weight), shift=0.1) for weight in (0.0, 1.0))
    np.testing.assert_allclose(off - exactly, 0.01, rtol=1e-3)


@pytest.mark.slow
def test_one_call_ends_the_trajectory():
    drawn, noise = exact.samples(method(), boot.Sampling())
    np.testing.assert_allclose(drawn, exact.MEAN + exact.STD * noise, atol=0.01)
    assert method().network_calls(boot.Sampling()) == 1


def test_mistakes_are_named():
    for changes in ({"gap": 1.0}, {"boundary_weight": -1.0}):
        with pytest.raises(ConfigError, match=f"method.{next(iter(changes))}="):
            boot.Config(**changes)
