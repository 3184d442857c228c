"""Solvers on Gaussian data, where the exact flow and every law along it are known.

Tables are run here in float64, call by call, so that errors of high order are seen; one test holds the jitted loop
against that.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.diffusion import paths, solvers

MEAN, STD = 0.7, 0.4
START = np.array([-1.3, 0.4, 2.0])


def estimate(path):
    """The exact expectation of x_0 for N(MEAN, STD^2)."""

    def denoise(x, t):
        point = path(t)
        variance = point.alpha**2 * STD**2 + point.sigma**2
        return MEAN + point.alpha * STD**2 / variance * (x - point.alpha * MEAN)

    return denoise


def run(table, denoise, start, noise=lambda index: 0.0, estimates=()):
    """What `solvers.sample` computes, in float64; a list `start` holds states seen before, newest first."""
    states, estimates = list(start) if isinstance(start, list) else [start], list(estimates)
    for index in range(table.num_calls):
        estimates.insert(0, denoise(states[0], np.array(table.times[index], np.float64)))
        x = sum(w * s for w, s in zip(table.state[index], states))
        x = x + sum(w * d for w, d in zip(table.denoised[index], estimates)) + table.noise[index] * noise(index)
        states.insert(0, x)
    return states[0]


def times(num_steps):
    return np.linspace(1, 0, num_steps + 1)


SOLVERS = {
    "euler": (1, solvers.euler),
    "heun": (2, solvers.heun),
    "ddim": (1, lambda path, t: solvers.ddim(solvers.levels(path, t))),
    "dpm_solver": (2, lambda path, t: solvers.dpm_solver(solvers.levels(path, t))),
    "deis": (2, lambda path, t: solvers.deis(path, t, 2)),
}


def exact(path, begin, end):
    """Where the flow carries START from one time to another."""
    begin, end = path(np.array(begin)), path(np.array(end))
    spread = [np.sqrt(p.alpha**2 * STD**2 + p.sigma**2) for p in (begin, end)]
    return end.alpha * MEAN + spread[1] / spread[0] * (START - begin.alpha * MEAN)


@pytest.mark.parametrize("path", paths.PATHS.values(), ids=paths.PATHS)
@pytest.mark.parametrize("order, make", SOLVERS.values(), ids=SOLVERS)
def test_the_error_falls_with_the_order_of_the_solver(order, make, path):
    """Away from the ends, where both levels and the exact flow are smooth: from t = 0.9 to t = 0.1."""
    errors, counts = [], (320, 640, 1280)
    for count in counts:
        table = make(path, np.linspace(0.9, 0.1, count + 1))
        errors.append(np.abs(run(table, estimate(path), START) - exact(path, 0.9, 0.1)).max())
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope + order) < 0.15, errors


@pytest.mark.parametrize("path", paths.PATHS.values(), ids=paths.PATHS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_has_its_order_once_it_has_calls_to_look_back_on(order, path):
    errors, counts, denoise = [], (80, 160, 320), estimate(path)
    for count in counts:
        grid = np.linspace(0.9, 0.1, count + 1)
        table = solvers.deis(path, grid, order)
        states = [exact(path, 0.9, t) for t in grid[order - 1 :: -1]]
        estimates = [denoise(x, np.array(t)) for x, t in zip(states[1:], grid[order - 2 :: -1])]
        rest = solvers.Table(*(column[order - 1 :] for column in table))
        errors.append(np.abs(run(rest, denoise, states, estimates=estimates) - exact(path, 0.9, 0.1)).max())
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope + order) < 0.15, errors


@pytest.mark.parametrize("make", [solvers.ddim, solvers.dpm_solver])
def test_paths_agree_when_data_are_not_shrunk(make):
    """x / alpha on the path of constant variance is x on the exploding one, at the time sigma / alpha."""
    point = paths.cosine(np.linspace(0.9, 0.0, 8))
    levels = point.sigma / point.alpha
    shrunk = make(solvers.levels(paths.cosine, np.linspace(0.9, 0.0, 8)))
    plain = make(solvers.levels(paths.variance_exploding, levels))
    alpha = point.alpha[0]
    reached = run(plain, estimate(paths.variance_exploding), START / alpha)
    np.testing.assert_allclose(run(shrunk, estimate(paths.cosine), START), reached, atol=1e-12)


@pytest.mark.parametrize("path", paths.PATHS.values(), ids=paths.PATHS)
@pytest.mark.parametrize("make", [make for _, make in SOLVERS.values()], ids=SOLVERS)
def test_noise_becomes_data_by_quantiles(make, path):
    np.testing.assert_allclose(run(make(path, times(200)), estimate(path), START), MEAN + STD * START, atol=0.02)


EXACT = [("euler", paths.linear), ("heun", paths.linear)]
EXACT += [(name, path) for name in ("ddim", "dpm_solver", "deis") for path in paths.PATHS.values()]


@pytest.mark.parametrize("name, path", EXACT)
def test_with_a_constant_estimate_any_steps_are_exact(name, path):
    """The noise stays what it is; the exponential solvers know that on any path, the others on the straight one."""
    _, make = SOLVERS[name]
    begin, end = path(np.array(1.0)), path(np.array(0.2))
    reached = run(make(path, np.linspace(1, 0.2, 6)), lambda x, t: np.full_like(x, 0.7), START)
    expected = end.alpha * 0.7 + end.sigma / begin.sigma * (START - begin.alpha * 0.7)
    np.testing.assert_allclose(reached, expected, atol=1e-12)


def test_on_the_straight_path_ddim_is_euler():
    euler, ddim = solvers.euler(paths.linear, times(7)), solvers.ddim(solvers.levels(paths.linear, times(7)))
    for mine, other in zip(euler, ddim):
        np.testing.assert_allclose(mine, other, atol=1e-14)


def test_calls_are_counted():
    counts = {name: make(paths.linear, times(6)).num_calls for name, (_, make) in SOLVERS.items()}
    assert counts == {"euler": 6, "heun": 11, "ddim": 6, "dpm_solver": 6, "deis": 6}


def moments(table, path, spread=1.0):
    """Mean and variance of the samples: every call is affine in x and noise, so they follow from unit inputs.

    `spread`: deviation of the start.
    """
    denoise = estimate(path)
    offset = run(table, denoise, 0.0)
    total = (run(table, denoise, spread) - offset) ** 2
    for index in range(table.num_calls):
        total += (run(table, denoise, 0.0, lambda i, index=index: float(i == index)) - offset) ** 2
    return offset, total


@pytest.mark.parametrize("path", paths.PATHS.values(), ids=paths.PATHS)
def test_the_diffusion_has_the_law_of_the_flow(path):
    """The last step gives an expectation, so what the last level adds to the data is missing from the variance."""
    last = path(np.array(0.02))
    missing = STD**2 * last.sigma**2 / (last.alpha**2 * STD**2 + last.sigma**2)
    mean, variance = moments(solvers.euler_maruyama(path, np.append(np.linspace(1, 0.02, 400), 0.0)), path)
    np.testing.assert_allclose(mean, MEAN, atol=0.01)
    np.testing.assert_allclose(variance, STD**2 - missing, rtol=0.02)


def test_the_diffusion_without_its_noise_misses_the_law():
    table = solvers.euler_maruyama(paths.linear, np.append(np.linspace(1, 0.02, 400), 0.0))
    assert moments(table._replace(noise=0 * table.noise), paths.linear)[1] < 0.8 * STD**2


def test_noise_that_is_added_before_steps_keeps_the_law():
    levels = np.append(np.linspace(80.0 ** (1 / 7), 0.01 ** (1 / 7), 80) ** 7, 0.0)
    raised = np.where(levels < 20, 1.2 * levels, levels)[:-1]
    table = solvers.heun(paths.variance_exploding, levels, raised)
    assert table.num_calls == 159 and np.count_nonzero(table.noise) == (levels[:-1] < 20).sum()
    mean, variance = moments(table, paths.variance_exploding, spread=80.0)
    np.testing.assert_allclose([mean, variance], [MEAN, STD**2], rtol=0.02)
    silent = moments(table._replace(noise=0 * table.noise), paths.variance_exploding, spread=80.0)
    assert silent[1] < 0.5 * STD**2


@pytest.mark.parametrize("name", ["heun", "sde"])
def test_the_loop_follows_the_table(name):
    path = paths.linear
    noise = np.random.default_rng(0).normal(size=(12, 3))
    table = solvers.heun(path, times(6)) if name == "heun" else solvers.euler_maruyama(path, times(6))
    start = jnp.asarray(START, jnp.float32)
    loop = jax.jit(lambda x: solvers.sample(table, estimate(path), x, lambda i: jnp.asarray(noise, jnp.float32)[i]))
    np.testing.assert_allclose(loop(start), run(table, estimate(path), START, lambda i: noise[i]), atol=1e-5)
