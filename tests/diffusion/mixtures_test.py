"""Denoisers and flows of mixtures against quadrature and quantiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxar.config import ConfigError
from jaxar.diffusion import codebook, mixtures, paths

TWO = mixtures.Mixture(means=((-0.8,), (0.5,)), stds=((0.3,), (0.1,)), weights=(1.0, 3.0))
PARTS = TWO.components(1, 1)
LABELS = jnp.zeros(5, int)
X = jnp.array([-2.1, -0.6, 0.1, 0.4, 1.7])


def density(x, law=TWO):
    probs = np.array(law.weights) / sum(law.weights)
    return sum(p * scipy.stats.norm.pdf(x, m, s) for p, (m,), (s,) in zip(probs, law.means, law.stds))


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_the_denoiser_is_the_mean_of_the_posterior(path):
    times = np.linspace(0.15, 0.95, 5)
    grid = np.linspace(-3, 3, 20_001)
    point = paths.PATHS[path](times)
    likelihood = scipy.stats.norm.pdf(np.asarray(X)[:, None], point.alpha[:, None] * grid, point.sigma[:, None])
    posterior = likelihood * density(grid)
    expected = (posterior * grid).sum(1) / posterior.sum(1)
    found = mixtures.denoise(PARTS, paths.PATHS[path](jnp.asarray(times, jnp.float32)), X[:, None], LABELS)
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)


def test_at_the_ends_the_denoiser_is_the_point_itself_and_the_mean():
    start, end = (paths.linear(jnp.full(5, t)) for t in (0.0, 1.0))
    np.testing.assert_allclose(mixtures.denoise(PARTS, start, X[:, None], LABELS)[:, 0], X, atol=1e-6)
    np.testing.assert_allclose(mixtures.denoise(PARTS, end, X[:, None], LABELS), 0.75 * 0.5 - 0.25 * 0.8, atol=1e-6)


def test_components_without_deviation_are_a_codebook():
    rng = np.random.default_rng(0)
    codes, weights = rng.normal(size=(6, 3)), rng.uniform(0.1, 1, 6)
    law = mixtures.Mixture(tuple(map(tuple, codes)), ((0.0,),) * 6, tuple(weights)).components(3, 1)
    x, t = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32), jnp.array([0.05, 0.3, 0.5, 0.8, 1.0])
    log_probs = jnp.broadcast_to(jnp.log(jnp.asarray(weights, jnp.float32)), (5, 6))
    expected = codebook.denoise(x, t, jnp.asarray(codes, jnp.float32), log_probs)
    np.testing.assert_allclose(mixtures.denoise(law, paths.linear(t), x, LABELS), expected, atol=1e-5)
    there = mixtures.denoise(law, paths.linear(jnp.zeros(6)), jnp.asarray(codes, jnp.float32), jnp.zeros(6, int))
    np.testing.assert_allclose(there, codes, atol=1e-6)  # no NaN where nothing is left of the noise


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_the_flow_of_a_gaussian_is_affine(path):
    law = mixtures.Mixture(((0.3, -1.0),), ((0.2, 0.5),)).components(2, 1)
    x = jnp.stack([X, -X], axis=1)
    ends = [paths.PATHS[path](jnp.full(5, t)) for t in (1.0, 0.4, 0.0)]
    straight = mixtures.flow(law, ends[0], ends[2], x, LABELS)
    np.testing.assert_allclose(straight, np.array([0.3, -1.0]) + np.array([0.2, 0.5]) * x, atol=1e-6)
    halfway = mixtures.flow(law, ends[0], ends[1], x, LABELS)
    np.testing.assert_allclose(mixtures.flow(law, ends[1], ends[2], halfway, LABELS), straight, atol=1e-6)


def test_the_flow_in_one_dimension_keeps_quantiles_and_has_the_denoisers_velocity():
    ends = [paths.linear(jnp.full(5, t)) for t in (1.0, 0.0)]
    data = np.asarray(mixtures.flow(PARTS, *ends, X[:, None], LABELS))[:, 0]
    below = sum(p * scipy.stats.norm.cdf(data, m, s) for p, m, s in ((0.25, -0.8, 0.3), (0.75, 0.5, 0.1)))
    np.testing.assert_allclose(scipy.stats.norm.ppf(below), X, atol=1e-3)
    step, point = 1e-2, paths.linear(jnp.full(5, 0.6))
    near = [mixtures.flow(PARTS, point, paths.linear(jnp.full(5, 0.6 + d)), X[:, None], LABELS) for d in (step, -step)]
    denoised = mixtures.denoise(PARTS, point, X[:, None], LABELS)
    velocity = paths.convert(point, X[:, None], denoised, "denoised", "velocity")
    np.testing.assert_allclose((near[0] - near[1]) / (2 * step), velocity, atol=3e-3)


def test_each_class_has_its_components_and_the_null_class_all():
    law = mixtures.Mixture(((-1.0,), (0.0,), (1.0,)), ((0.1,),) * 3, (1.0, 3.0, 5.0), labels=(0, 0, 1))
    np.testing.assert_allclose(
        np.exp(law.components(1, 2).log_probs), [[0.25, 0.75, 0], [0, 0, 1], [0.125, 0.375, 0.5]], atol=1e-12
    )
    rng = np.random.default_rng(0)
    drawn = np.array([mixtures.draw(law.components(1, 2), 0, rng)[0] for _ in range(2000)])
    np.testing.assert_allclose([drawn.mean(), (drawn < -0.5).mean()], [-0.25, 0.25], atol=0.05)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stds": ((1.0,),)}, "law.stds=.* one entry for each of 2"),
        ({"weights": (1.0,)}, "law.weights=.* one entry for each of 2"),
        ({"weights": (1.0, 0.0)}, "law.weights=.* must be positive"),
        ({"stds": ((1.0,), (-1.0,))}, "law.stds=.* at least 0"),
        ({"labels": (0, 2)}, r"law.labels=\(0, 2\) must hold every class 0..1"),
        ({"means": ((1.0, 2.0), (0.0,))}, "law.means has an entry of 2 values; the data have 3"),
        ({"means": (), "stds": ()}, "at least one component"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        mixtures.Mixture(**{"means": ((0.0,), (1.0,)), "stds": ((1.0,), (1.0,)), **changes}).components(3, 2)


def test_a_flow_that_nobody_knows_is_refused():
    law = mixtures.Mixture(((0.0,), (1.0,)), ((1.0,), (1.0,))).components(2, 1)
    point = paths.linear(jnp.full(5, 0.5))
    with pytest.raises(ValueError, match="2 components in 2 dimensions"):
        jax.eval_shape(lambda x: mixtures.flow(law, point, point, x, LABELS), jnp.zeros((5, 2)))
