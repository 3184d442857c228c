import numpy as np
import pytest

from jaxar.metrics import kernel


def by_definition(a, b):
    def k(x, y):
        return (float(x @ y) / len(x) + 1) ** 3

    within = [np.mean([k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (a, b)]
    return sum(within) - 2 * np.mean([k(x, y) for x in a for y in b])


def test_distance_is_the_double_sum():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 3)), rng.normal(1, 2, size=(5, 3))
    assert kernel.distance(a, b) == pytest.approx(by_definition(a, b), rel=1e-10)


def test_chunks_add_up(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(23, 3)), rng.normal(size=(17, 3))
    whole = kernel.distance(a, b)
    monkeypatch.setattr(kernel, "CHUNK", 5)
    assert kernel.distance(a, b) == pytest.approx(whole, rel=1e-10)


def test_unbiased_on_equal_distributions():
    # A biased estimate (diagonals kept) has a mean near 0.4 here.
    rng = np.random.default_rng(0)
    values = [kernel.distance(rng.normal(size=(30, 4)), rng.normal(size=(40, 4))) for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0


def test_subsets_select_rows():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(9, 3)), rng.normal(size=(8, 3))
    index_a, index_b = np.array([[0, 3, 5], [8, 7, 1]]), np.array([[1, 2, 4], [0, 7, 6]])
    values = kernel.subset_distances(a, b, index_a, index_b)
    assert values[1] == pytest.approx(by_definition(a[index_a[1]], b[index_b[1]]), rel=1e-10)
    assert values[0] == pytest.approx(by_definition(a[index_a[0]], b[index_b[0]]), rel=1e-10)


def test_needs_two_features():
    with pytest.raises(ValueError, match="not 1 and 4"):
        kernel.distance(np.zeros((1, 2)), np.zeros((4, 2)))
