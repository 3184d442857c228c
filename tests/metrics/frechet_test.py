import numpy as np
import pytest

from jaxar.metrics import frechet
from jaxar.metrics.frechet import Gaussian


def features(count, dim, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim)).astype(np.float32)


def rotation(dim):
    return np.linalg.qr(np.random.default_rng(1).normal(size=(dim, dim)))[0]


def test_statistics_are_mean_and_covariance():
    x = features(50, 5)
    mean, covariance = frechet.fit(x)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-10)


def test_batches_and_merged_hosts_equal_one_pass():
    x = features(101, 5)
    first, second = frechet.init(5), frechet.init(5)
    for batch in (x[:30], x[30:41]):
        first = frechet.update(first, batch)
    second = frechet.update(second, x[41:])
    merged = frechet.compute(frechet.merge(first, second))
    np.testing.assert_allclose(merged.mean, frechet.fit(x).mean, rtol=1e-13)
    np.testing.assert_allclose(merged.covariance, frechet.fit(x).covariance, rtol=1e-10)


def test_sums_are_kept_in_float64():
    # In float32 the variance 1 would vanish beside the squared mean 1e8.
    x = np.array([[1e4 - 1], [1e4], [1e4 + 1]], np.float32)
    assert frechet.fit(x).covariance == pytest.approx(1.0, abs=1e-6)


def test_one_feature_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2 features, not 1"):
        frechet.compute(frechet.update(frechet.init(3), np.zeros((1, 3), np.float32)))


def test_distance_of_commuting_covariances():
    # With common eigenvectors the distance is |m1 - m2|^2 + sum (sqrt a - sqrt b)^2.
    a, b, shift = np.array([4.0, 1.0, 0.25, 0.0]), np.array([1.0, 9.0, 0.25, 4.0]), np.array([1.0, 0.0, -2.0, 0.5])
    q = rotation(4)
    expected = np.square(shift).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    one, two = Gaussian(np.zeros(4), (q * a) @ q.T), Gaussian(q @ shift, (q * b) @ q.T)
    assert frechet.distance(one, two) == pytest.approx(expected, rel=1e-6)
    assert frechet.distance(two, one) == pytest.approx(expected, rel=1e-6)


def test_distance_of_covariances_that_do_not_commute():
    # tr (S1 S2)^(1/2) of 2x2 matrices is sqrt(tr S1 S2 + 2 sqrt(det S1 S2)).
    s1, s2 = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[5.0, -2.0], [-2.0, 1.0]])
    cross = np.sqrt(np.trace(s1 @ s2) + 2 * np.sqrt(np.linalg.det(s1 @ s2)))
    expected = np.trace(s1) + np.trace(s2) - 2 * cross
    assert frechet.distance(Gaussian(np.zeros(2), s1), Gaussian(np.zeros(2), s2)) == pytest.approx(expected, rel=1e-10)


def test_distance_is_never_negative():
    for seed in range(8):
        gaussian = frechet.fit(features(20, 32, seed))  # rank deficient: rounding alone decides the sign
        assert 0 <= frechet.distance(gaussian, gaussian) < 1e-5


def test_wide_features():
    # 2048 dimensions and few features: only the mean differs.
    x = features(40, 8) @ np.eye(8, 2048, dtype=np.float32)
    assert frechet.distance(frechet.fit(x), frechet.fit(x + 0.125)) == pytest.approx(2048 * 0.125**2, rel=1e-3)


def test_sums_in_float32_lose_what_float64_keeps():
    # The same three features: in float32 squares of 1e4 differ by less than their rounding.
    x = np.array([[1e4 - 1], [1e4], [1e4 + 1]], np.float32)
    single = frechet.FeatureSums(3, x.sum(0), x.T @ x)
    assert single.outer.dtype == np.float32
    assert abs(frechet.compute(single).covariance.item() - 1.0) > 0.5
