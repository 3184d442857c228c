import jax.numpy as jnp
import numpy as np

from jaxar.nn import rope

HEAD_DIM = 16


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def score(q, k, table, i, j):
    """Inner product of q at position i and k at position j."""
    rows = [rope.Rotary(table.cos[n : n + 1], table.sin[n : n + 1]) for n in (i, j)]
    turned = [rope.rotate(x[None, None, None], r)[0, 0, 0] for x, r in zip((q, k), rows)]
    return float(turned[0] @ turned[1])


def test_scores_depend_on_the_offset_of_rows_and_columns_alone():
    grid = (5, 7)
    table = rope.rotary_raster(grid, HEAD_DIM)
    q, k = normal(HEAD_DIM), normal(HEAD_DIM, seed=1)

    def at(row, column):
        return row * grid[1] + column

    reference = score(q, k, table, at(0, 1), at(2, 3))
    for row, column in ((0, 3), (1, 2), (2, 3)):
        np.testing.assert_allclose(
            score(q, k, table, at(row, column + 1), at(row + 2, column + 3)), reference, atol=1e-5
        )
    assert abs(score(q, k, table, at(0, 1), at(2, 4)) - reference) > 1e-3
    assert abs(score(q, k, table, at(0, 1), at(3, 3)) - reference) > 1e-3


def test_rows_turn_the_first_half_and_columns_the_second():
    table = rope.rotary_2d(np.array([0.0, 2.0]), np.array([3.0, 0.0]), HEAD_DIM)
    quarter = HEAD_DIM // 4
    np.testing.assert_array_equal(table.cos[0, :quarter], 1)  # row 0 turns nothing
    np.testing.assert_array_equal(table.cos[1, quarter:], 1)
    frequencies = 10_000.0 ** -(np.arange(quarter) / quarter)
    np.testing.assert_allclose(table.sin[1, :quarter], np.sin(2 * frequencies), rtol=1e-6)
    np.testing.assert_allclose(table.sin[0, quarter:], np.sin(3 * frequencies), rtol=1e-6)


def test_rotation_is_that_of_complex_numbers_in_adjacent_channels():
    x, table = normal(1, 3, 2, HEAD_DIM), rope.rotary_1d(np.arange(3), HEAD_DIM)
    turned = np.asarray(rope.rotate(x, table))
    angles = np.arange(3)[:, None] * 10_000.0 ** -(np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    expected = (np.asarray(x)[..., ::2] + 1j * np.asarray(x)[..., 1::2]) * np.exp(1j * angles)[:, None]
    np.testing.assert_allclose(turned[..., ::2] + 1j * turned[..., 1::2], expected, atol=1e-5)


def test_prefix_rows_wipe_out_or_leave_alone():
    x = normal(1, 2, 1, HEAD_DIM)
    for kind, expected in (("zero", jnp.zeros_like(x)), ("identity", x)):
        table = rope.rotary_raster((2, 2), HEAD_DIM, prefix=2, prefix_rows=kind)
        assert table.cos.shape == (6, HEAD_DIM // 2)
        np.testing.assert_array_equal(rope.rotate(x, rope.Rotary(table.cos[:2], table.sin[:2])), expected)


def test_rows_may_differ_between_samples():
    table, x = rope.rotary_1d(np.arange(9), HEAD_DIM), normal(2, 3, 1, HEAD_DIM)
    positions = jnp.array([[0, 1, 2], [5, 6, 7]])
    both = rope.rotate(x, rope.take(table, positions))
    for i in range(2):
        np.testing.assert_array_equal(both[i : i + 1], rope.rotate(x[i : i + 1], rope.take(table, positions[i])))
