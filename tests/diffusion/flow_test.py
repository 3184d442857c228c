import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.diffusion import flow

START = jnp.array([[-1.3], [0.4], [2.0]])


@pytest.mark.parametrize("num_steps", [1, 7])
def test_straight_paths_to_a_point_need_no_more_than_one_step(num_steps):
    result = flow.sample(lambda x, t: (x - 0.7) / t[:, None], START, num_steps)
    np.testing.assert_allclose(result, 0.7, atol=1e-5)


def test_gaussian_targets_are_reached_by_quantiles():
    """The exact flow maps noise z to MEAN + STD z; Euler's error falls with the number of steps."""
    mean, std = 0.7, 0.4

    def velocity(x, t):
        t = t[:, None]
        variance = (1 - t) ** 2 * std**2 + t**2
        return (t - (1 - t) * std**2) / variance * (x - (1 - t) * mean) - mean

    errors = [np.abs(flow.sample(velocity, START, n) - (mean + std * START)).max() for n in (20, 200)]
    assert errors[1] < 0.01 and 5 < errors[0] / errors[1] < 20


def test_paths_run_from_data_to_noise_and_the_loss_is_zero_on_their_velocity():
    x, noise = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, -2.0]])
    np.testing.assert_array_equal(flow.interpolate(x, jnp.zeros(1), noise), x)
    np.testing.assert_array_equal(flow.interpolate(x, jnp.ones(1), noise), noise)
    slope = (flow.interpolate(x, jnp.full(1, 0.75), noise) - flow.interpolate(x, jnp.full(1, 0.25), noise)) / 0.5
    np.testing.assert_allclose(flow.squared_error(x, noise, slope), 0, atol=1e-10)
    np.testing.assert_allclose(flow.squared_error(x, noise, slope + 2), 4, rtol=1e-5)
