"""Noise schedules, respacing and the tables; tests/interop compares them with the official ones."""

import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.diffusion.process import Process, base_betas, respace


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("respacing", ["", "7", "3,5", "ddim20"])
def test_a_shortened_process_keeps_the_marginals(schedule, respacing):
    process = Process(schedule, 100, respacing)
    signal = np.cumprod(1 - base_betas(schedule, 100))
    np.testing.assert_allclose(process.tables.alphas_cumprod, signal[list(process.kept)], rtol=1e-9)
    assert process.num_steps == len(process.tables.betas)


def test_posterior_by_bayes_rule():
    """q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x_0), both Gaussian."""
    tables, t, x_0, x_t = Process("cosine", 50, "10").tables, 4, 0.3, -0.8
    alpha, before = 1 - tables.betas[t], tables.alphas_cumprod[t - 1]
    precision = alpha / tables.betas[t] + 1 / (1 - before)
    mean = (np.sqrt(alpha) * x_t / tables.betas[t] + np.sqrt(before) * x_0 / (1 - before)) / precision
    mine = tables.posterior_mean_coef1[t] * x_0 + tables.posterior_mean_coef2[t] * x_t
    np.testing.assert_allclose(mine, mean, rtol=1e-12)
    np.testing.assert_allclose(np.exp(tables.posterior_log_variance_clipped[t]), 1 / precision, rtol=1e-12)


def test_spellings_of_respacing():
    assert respace("", 5) == (0, 1, 2, 3, 4)
    assert respace("3", 9) == (0, 4, 8)
    assert respace("2,3", 10) == (0, 4, 5, 7, 9)
    assert respace("2,1", 5) == (0, 2, 3)  # the first section is longer by one
    assert respace("ddim5", 10) == (0, 2, 4, 6, 8)


def test_a_start_before_the_last_step():
    process = Process("cosine", 1000, "20", max_start=950)
    assert process.kept[-1] == 950 and process.kept[0] == 0 and process.num_steps == 20
    assert process.tables.sqrt_recip_alphas_cumprod[-1] < 20 < 1e4 < Process().tables.sqrt_recip_alphas_cumprod[-1]


@pytest.mark.parametrize("respacing", ["x", "11", "0", "1", "ddim7", "2,,3", "ddim"])
def test_wrong_spellings_are_named(respacing):
    with pytest.raises(ConfigError, match=f"respacing='{respacing}'"):
        Process("linear", 10, respacing)


def test_a_start_outside_the_process_is_refused():
    with pytest.raises(ConfigError, match="max_start=10 must lie in 1..9"):
        Process("linear", 10, "5", max_start=10)
