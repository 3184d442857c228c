import numpy as np
import pytest

from jaxar.metrics import precision_recall as pr

LINE = np.arange(10.0)[:, None]  # ten points, one apart


def test_radius_reaches_the_kth_other_point():
    np.testing.assert_array_equal(pr.squared_radii(LINE, 1), np.ones(10))
    np.testing.assert_array_equal(pr.squared_radii(LINE, 3), [9, 4, 4, 4, 4, 4, 4, 4, 4, 9])


def test_balls_are_closed():
    centres, radii = np.array([[0.0, 0.0]]), np.array([4.0])
    points = np.array([[2.0, 0.0], [2.0, 0.001]])
    np.testing.assert_array_equal(pr.inside(points, centres, radii), [True, False])


def test_precision_without_recall():
    # Samples crowd around 0, inside the references; their own small balls reach no other reference.
    samples = np.linspace(-0.05, 0.05, 6)[:, None]
    precision, recall = pr.precision_recall(LINE, samples, k=3)
    assert (precision, recall) == (1.0, 0.1)


def test_recall_without_precision():
    # Half of the samples repeat the references, half are far from everything.
    samples = np.concatenate([LINE, LINE + 1000])
    precision, recall = pr.precision_recall(LINE, samples, k=3)
    assert (precision, recall) == (0.5, 1.0)


def test_chunks_are_joined_in_order(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(23, 3)), rng.normal(size=(17, 3))
    whole = pr.squared_radii(a, 3), pr.inside(b, a, np.full(23, 0.3))
    monkeypatch.setattr(pr, "CHUNK", 4)
    np.testing.assert_allclose(pr.squared_radii(a, 3), whole[0], rtol=1e-12)
    np.testing.assert_array_equal(pr.inside(b, a, np.full(23, 0.3)), whole[1])
    assert 0 < whole[1].mean() < 1


def test_too_few_neighbours():
    with pytest.raises(ValueError, match="more than 3 features, not 3"):
        pr.squared_radii(LINE[:3], 3)
