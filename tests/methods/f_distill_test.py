"""Eight f-divergences between Gaussians: their gradients by quadrature, and the normalised weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.methods import dmd2, f_distill
from tests import gaussians
from tests.methods.dmd2_test import STUDENT, TEACHER, LogRatio, T, with_scale

# f(r), the factor of h that `WEIGHTS` leaves out, and the known derivative for N(0, 1) and N(0, 0.7^2) at noise 0.5.
DIVERGENCES = {
    "reverse_kl": (lambda r: -np.log(r), 1, -0.3859),
    "softened_reverse_kl": (lambda r: (r + 1) * np.log((r + 1) / (2 * r)), 1, -0.1623),
    "jensen_shannon": (lambda r: r * np.log(r) - (r + 1) * np.log((r + 1) / 2), 1, -0.2236),
    "squared_hellinger": (lambda r: 1 - np.sqrt(r), 1 / 4, -0.1192),
    "kl": (lambda r: r * np.log(r), 1, -0.6519),
    "jeffreys": (lambda r: (r - 1) * np.log(r), 1, -1.0379),
    "neyman": (lambda r: (1 - r) ** 2 / r, 2, -0.6005),
    "pearson": (lambda r: (r - 1) ** 2, 2, -5.7896),
}
X = np.linspace(-11, 11, 20001)  # beyond, squares of the ratio exceed float32


def density(std, sigma=0.5):
    variance = std**2 + sigma**2
    return np.exp(-0.5 * X**2 / variance) / np.sqrt(2 * np.pi * variance)


@pytest.mark.parametrize("name", f_distill.WEIGHTS)
def test_the_weighted_difference_is_the_gradient_of_the_divergence(name):
    """d D_f / d theta = -E_q h(r) (s_T - s_S)(x_t) z, with E[z | x_t] = theta x_t / V."""
    f, factor, known = DIVERGENCES[name]
    theta, width, step = 0.7, X[1] - X[0], 1e-4
    values = [np.sum(density(v) * f(density(1) / density(v))) * width for v in (theta + step, theta - step)]
    numeric = (values[0] - values[1]) / (2 * step)
    assert numeric == pytest.approx(known, abs=2e-3 * abs(known))
    ratio, ours, theirs = density(1) / density(theta), theta**2 + 0.25, 1.25
    weights = np.asarray(f_distill.WEIGHTS[name](jnp.asarray(ratio)))
    scores = -X / theirs + X / ours
    gradient = -factor * np.sum(density(theta) * weights * scores * theta * X / ours) * width
    assert gradient == pytest.approx(numeric, rel=1e-3)
    inverted = np.asarray(f_distill.WEIGHTS[name](jnp.asarray(1 / ratio)))  # q / p in place of p / q
    wrong = -factor * np.sum(density(theta) * inverted * scores * theta * X / ours) * width
    assert name == "reverse_kl" or abs(wrong / numeric - 1) > 0.1


def test_reverse_kl_is_dmd2():
    variables = with_scale(gaussians.players(TEACHER, STUDENT), 1.0)
    gradients = [
        gaussians.expected_gradient(gaussians.distiller(cls, config, head=LogRatio()), variables, T)
        for cls, config in (
            (f_distill.FDistill, f_distill.Config(divergence="reverse_kl")),
            (dmd2.DMD2, dmd2.Config(features="teacher")),
        )
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-5)


def test_equal_densities_make_all_divergences_one():
    logits, shares = jnp.zeros(64), jnp.linspace(0, 1, 64)
    for name in f_distill.WEIGHTS:
        np.testing.assert_allclose(f_distill.density_weights(name, logits, shares), 1, rtol=1e-6)


def test_ratios_are_normalised_at_each_time_and_weights_over_all():
    logits = jax.random.normal(jax.random.key(0), (400,)) * 0.3
    shares = jnp.linspace(0, 1, 400)
    drift = jnp.floor(shares * 10).clip(0, 9) / 5  # a discriminator that errs by a factor that depends on time
    weights = jax.jit(f_distill.density_weights, static_argnums=0)
    assert jnp.std(weights("kl", logits, shares)) > 0.1
    np.testing.assert_allclose(weights("kl", logits + drift, shares), weights("kl", logits, shares), rtol=1e-4)
    assert float(jnp.mean(weights("pearson", logits, shares))) == pytest.approx(1, rel=1e-5)
    extreme = weights("neyman", jnp.array([-1e9, 1e9, 0.0]), jnp.full(3, 0.5))
    np.testing.assert_allclose(extreme / extreme[2], [10, 1 / 20, 1], rtol=1e-5)
    broken = weights("kl", logits.at[0].set(jnp.nan), shares)
    assert jnp.all(jnp.isfinite(broken[1:]))
