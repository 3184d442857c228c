import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.metrics import reconstruction


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).uniform(-0.5, 0.5, (3, 8, 8, 2)), jnp.float32)


def test_psnr_of_a_known_error(images):
    # An error of 0.2 in [-1, 1] is a tenth of the range: 20 dB.
    np.testing.assert_allclose(reconstruction.psnr(images, images + 0.2), [20.0] * 3, rtol=1e-5)


def test_psnr_is_per_image_and_capped(images):
    changed = images.at[1].add(0.02)
    np.testing.assert_allclose(reconstruction.psnr(images, changed), [100.0, 40.0, 100.0], rtol=1e-4)


def test_ssim_of_equal_images_is_one(images):
    np.testing.assert_allclose(reconstruction.ssim(images, images), np.ones(3), rtol=1e-6)


def test_ssim_of_flat_images_compares_brightness():
    # Without variance SSIM is (2 x y + c1) / (x^2 + y^2 + c1), x and y in [0, 1], c1 = 1e-4.
    x, y = 0.75, 0.5
    expected = (2 * x * y + 1e-4) / (x**2 + y**2 + 1e-4)
    first, second = (jnp.full((1, 8, 8, 1), 2 * value - 1) for value in (x, y))
    np.testing.assert_allclose(reconstruction.ssim(first, second), [expected], rtol=1e-3)


@pytest.mark.parametrize(("side", "window"), [(8, 7), (16, 11)])
def test_ssim_by_definition_in_one_corner(side, window):
    # Images that differ in one corner pixel only, so only windows that contain it score below 1.
    rng = np.random.default_rng(1)
    x = rng.uniform(0.2, 0.8, (side, side))
    y = x.copy()
    y[0, 0] += 0.15
    offsets = np.arange(window) - window // 2
    weights = np.exp(-0.5 * (offsets / 1.5) ** 2)
    weights = np.outer(weights, weights) / weights.sum() ** 2
    expected = []
    for i in range(side - window + 1):
        for j in range(side - window + 1):
            a, b = x[i : i + window, j : j + window], y[i : i + window, j : j + window]
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * a**2).sum() - mean_a**2, (weights * b**2).sum() - mean_b**2
            both = (weights * a * b).sum() - mean_a * mean_b
            numerator = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
            expected.append(numerator / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    first, second = (jnp.asarray(2 * v - 1, jnp.float32)[None, :, :, None] for v in (x, y))
    np.testing.assert_allclose(reconstruction.ssim(first, second), [np.mean(expected)], atol=1e-5)
