import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.nn import resize


def test_bicubic_matches_torch_values():
    """F.interpolate(mode="bicubic") of [0, 1] to 4 values, worked out by hand from the kernel with a = -0.75."""
    expected = np.array([-0.10546875, 0.2265625, 0.7734375, 1.10546875])
    np.testing.assert_array_equal(resize.bicubic_matrix(2, 4) @ [0, 1], expected)
    x = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])[None, :, :, None]
    np.testing.assert_allclose(resize.bicubic(x, (4, 4))[0, :, :, 0], 1 + 2 * expected[:, None] + expected, rtol=1e-6)


def test_area_averages_overlapping_windows():
    """F.adaptive_avg_pool1d of five values to three: windows [0, 2), [1, 4), [3, 5)."""
    expected = np.array([[1 / 2, 1 / 2, 0, 0, 0], [0, 1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 0, 1 / 2, 1 / 2]])
    np.testing.assert_array_equal(resize.area_matrix(5, 3), expected)


def test_area_of_a_divisor_is_pooling():
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    pooled = x.reshape(2, 2, 2, 3, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(resize.area(x, (2, 3)), pooled, atol=1e-6)


@pytest.mark.parametrize("make", [resize.bicubic_matrix, resize.area_matrix])
@pytest.mark.parametrize("size, new_size", [(1, 16), (5, 16), (13, 16), (16, 6), (7, 7)])
def test_rows_sum_to_one_and_mirror(make, size, new_size):
    matrix = make(size, new_size)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-12)
    if size == new_size:
        np.testing.assert_array_equal(matrix, np.eye(size))


def test_height_and_width_are_not_swapped():
    x = jnp.arange(2.0)[None, :, None, None] * jnp.ones((1, 2, 3, 1))
    for fn in (resize.bicubic, resize.area):
        out = np.asarray(fn(x, (4, 6)))
        assert out.shape == (1, 4, 6, 1)
        np.testing.assert_allclose(out - out[:, :, :1], 0, atol=1e-6)  # constant along the width
        assert out[0, -1, 0, 0] > out[0, 0, 0, 0]
