"""Jumps, fresh noise, and levels: against closed forms of Gaussian data and tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.diffusion import paths, trajectories
from tests import exact_flows as exact
from tests.closed_form import PATHS

X = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3)), jnp.float32)
T, S = jnp.full(64, 0.7), jnp.full(64, 0.3)


@pytest.mark.parametrize("kind", ["linear", *(pytest.param(k, marks=pytest.mark.slow) for k in ("cosine", "ve"))])
def test_a_jump_goes_where_it_is_aimed_and_stays_where_it_is(kind):
    path = PATHS[kind]
    end = exact.flow(path, X, T, S, exact.MEAN)
    aimed = trajectories.aim(path(T), path(S), X, end)
    np.testing.assert_allclose(trajectories.jump(path(T), path(S), X, aimed), end, atol=1e-5)
    for t in (T, jnp.zeros(64)):  # without noise as well
        np.testing.assert_array_equal(trajectories.jump(path(t), path(t), X, 100 * X), X)


@pytest.mark.parametrize("kind", ["linear", *(pytest.param(k, marks=pytest.mark.slow) for k in ("cosine", "ve"))])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_fresh_noise_leaves_the_law_of_the_path(kind, eta):
    """With known data D the law at s is N(alpha D, sigma^2), however much of the noise is replaced."""
    path = PATHS[kind]
    start, stop = path(T), path(S)

    def moved(x, noise):
        return trajectories.stochastic_jump(start, stop, x, 0 * x + 0.3, noise, eta)

    zero = jnp.zeros((64, 1))
    mean = moved(start.alpha[:, None] * 0.3 + zero, zero)
    of_x, of_noise = (
        moved(start.alpha[:, None] * 0.3 + 1 + zero, zero) - mean,
        moved(zero, zero + 1) - moved(zero, zero),
    )
    np.testing.assert_allclose(mean, 0.3 * stop.alpha[:, None], rtol=1e-5)
    spread = jnp.sqrt((of_x * start.sigma[:, None]) ** 2 + of_noise**2)
    np.testing.assert_allclose(spread, jnp.broadcast_to(stop.sigma[:, None], spread.shape), rtol=1e-5)
    assert (float(jnp.abs(of_noise).max()) > 1e-3) == (eta > 0)
    if eta == 0:
        jumped = trajectories.jump(start, stop, X, 0 * X + 0.3)
        np.testing.assert_allclose(moved(X, X), jumped, atol=1e-6)


def test_ancestral_noise_has_the_variance_of_the_posterior():
    """On the path of constant variance: (1 - a_s) / (1 - a_t) (1 - a_t / a_s) with a = alpha^2, as in DDPM."""
    start, stop = paths.cosine(T), paths.cosine(S)
    zero = jnp.zeros((64, 1))
    fresh = trajectories.stochastic_jump(start, stop, zero, zero, zero + 1, 1.0)
    a_t, a_s = start.alpha**2, stop.alpha**2
    np.testing.assert_allclose(fresh[:, 0] ** 2, (1 - a_s) / (1 - a_t) * (1 - a_t / a_s), rtol=1e-5)


def test_noise_that_is_added_twice_adds_up():
    path, zero = PATHS["linear"], jnp.zeros((64, 1))
    low, middle, high = (path(jnp.full(64, t)) for t in (0.1, 0.4, 0.9))
    first, second = (trajectories.renoise(a, b, zero, zero + 1) for a, b in ((low, middle), (middle, high)))
    carried = trajectories.renoise(middle, high, first, zero)
    at_once = trajectories.renoise(low, high, zero, zero + 1)
    np.testing.assert_allclose(carried**2 + second**2, at_once**2, rtol=1e-5)
    np.testing.assert_allclose(trajectories.renoise(low, high, zero + 1, zero), 0.1 / 0.9, rtol=1e-5)


def test_levels_are_those_of_edm_from_the_least():
    levels = trajectories.level(np.arange(18), 18, (0.002, 80.0), 7.0)
    i = np.arange(18)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(levels, sigma[::-1], rtol=1e-12)
    np.testing.assert_allclose(trajectories.level(np.arange(3), 3, (0.1, 0.5), 1.0), [0.1, 0.3, 0.5])


def test_levels_double_to_their_last_number():
    steps = jnp.array([0, 99_999, 100_000, 399_999, 600_000, 699_999, 700_000, 10**9])
    counts = [trajectories.doubled(step, 10, 1280, 800_000) for step in steps]
    assert list(map(int, counts)) == [10, 10, 20, 80, 640, 640, 1280, 1280]


@pytest.mark.parametrize("kind, bounds, rho", [("linear", (0.002, 1.0), 1.0), ("ve", (0.002, 80.0), 7.0)])
def test_noise_levels_are_log_normal(kind, bounds, rho):
    path = PATHS[kind]
    draws = -1.1 + 2.0 * jax.random.normal(jax.random.key(0), (20_000,))
    t = trajectories.times_of(path, draws, bounds, rho)
    inside = (draws > jnp.log(0.0025)) & (draws < jnp.log(60.0))
    np.testing.assert_allclose(trajectories.log_ratios(path, t)[inside], draws[inside], atol=0.02)
    times = jnp.asarray(trajectories.level(np.arange(7), 7, bounds, rho), jnp.float32)
    cells = np.asarray(trajectories.lognormal_cells(path, times, -1.1, 2.0))
    found = np.histogram(np.exp(draws), np.exp(trajectories.log_ratios(path, times)))[0]
    np.testing.assert_allclose(found / found.sum(), cells / cells.sum(), atol=0.015)
