import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.nn import quantize, resize


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_nearest_is_the_brute_force_minimum():
    x, codebook = normal(0, 3, 7, 4), normal(1, 11, 4) * jnp.linspace(0.2, 2, 11)[:, None]  # unequal lengths
    distances = np.sum((np.asarray(x)[..., None, :] - np.asarray(codebook)) ** 2, axis=-1)
    np.testing.assert_array_equal(quantize.nearest(x, codebook), distances.argmin(axis=-1))


def test_nearest_takes_the_first_of_equals():
    codebook = jnp.asarray([[5.0, 5.0], [1.0, 0.0], [1.0, 0.0]])
    assert quantize.nearest(jnp.asarray([[0.9, 0.1]]), codebook)[0] == 1


def test_nearest_builds_no_array_of_differences():
    n, v, c = 6, 11, 4
    jaxpr = jax.make_jaxpr(quantize.nearest)(jnp.zeros((n, c)), jnp.zeros((v, c)))
    assert max(np.prod(var.aval.shape) for eqn in jaxpr.eqns for var in eqn.outvars) <= n * v


def test_l2_normalize_has_a_finite_gradient_at_zero():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(quantize.l2_normalize(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert jnp.all(jnp.isfinite(jax.grad(lambda y: quantize.l2_normalize(y).sum())(x)))


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    x, q, weight = normal(0, 5), normal(1, 5), normal(2, 5)
    value, (dx, dq) = jax.value_and_grad(lambda a, b: quantize.straight_through(a, b) @ weight, argnums=(0, 1))(x, q)
    np.testing.assert_allclose(value, q @ weight, rtol=1e-5)
    np.testing.assert_array_equal(dx, weight)
    np.testing.assert_array_equal(dq, 0)


@pytest.mark.parametrize(
    "x, expected",
    [
        ([[1, 0], [0, 1], [-1, 0], [0, -1]], -np.log(4)),  # sure, and all codes equally used
        ([[1, 0], [1, 0], [1, 0], [1, 0]], 0.0),  # sure, but one code alone
        ([[0, 0], [0, 0]], 0.0),  # unsure
    ],
)
def test_entropy_loss_in_closed_form(x, expected):
    codebook = jnp.asarray([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    loss = quantize.entropy_loss(jnp.asarray(x, jnp.float32), codebook, temperature=0.01)
    np.testing.assert_allclose(loss, expected, atol=1e-4)  # the published guard against log 0 costs 4e-5


def test_entropy_loss_against_sums_in_numpy():
    x, codebook, temperature = np.asarray(normal(0, 6, 3)), np.asarray(normal(1, 5, 3)), 0.7
    affinity = np.exp(-((x[:, None] - codebook) ** 2).sum(-1) / temperature)
    probs = affinity / affinity.sum(-1, keepdims=True)
    mean = probs.mean(0)
    expected = -(probs * np.log(probs)).sum(-1).mean() + (mean * np.log(mean + 1e-5)).sum()
    loss = quantize.entropy_loss(jnp.asarray(x), jnp.asarray(codebook), temperature)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def residual_lift(codebook, scales):
    """What a scale adds: its codes, enlarged."""

    def lift(scale, ids):
        codes = quantize.lookup(codebook, ids).reshape(len(ids), *scales[scale], -1)
        return resize.bicubic(codes, scales[-1])

    return lift


def residual(features, codebook, scales):
    choose = lambda z: quantize.nearest(z, codebook)  # noqa: E731
    return quantize.quantize_residual(features, scales, choose, residual_lift(codebook, scales))


def test_residual_identity():
    """features - r_K == f_hat_K, where r_K is what the last scale leaves over."""
    features, codebook, scales = normal(0, 2, 4, 4, 3), normal(1, 20, 3), ((1, 1), (2, 2), (3, 3), (4, 4))
    result = jax.jit(lambda f, c: residual(f, c, scales))(features, codebook)
    last = result.targets[:, -16:].reshape(2, 4, 4, 3)  # r_{K-1}, before the last scale
    np.testing.assert_allclose(features - last, result.sums[-2], atol=1e-6)
    left = last - codebook[result.ids[:, -16:]].reshape(2, 4, 4, 3)  # r_K
    np.testing.assert_allclose(features - left, result.sums[-1], atol=1e-6)


def test_residual_is_exact_with_a_codebook_of_all_residuals():
    """Far codes for the coarse scale, and the residuals that they leave as codes of the fine one: nothing is lost."""
    features, scales = normal(0, 1, 4, 4, 3), ((2, 2), (4, 4))
    coarse = jnp.full((1, 3), 0.5)
    left = features - 0.5  # a constant map stays constant when enlarged
    codebook = jnp.concatenate([coarse, left.reshape(16, 3)])
    chosen = {2: lambda z: jnp.zeros(z.shape[:-1], jnp.int32), 4: lambda z: quantize.nearest(z, codebook)}
    lift = residual_lift(codebook, scales)
    result = jax.jit(lambda f: quantize.quantize_residual(f, scales, lambda z: chosen[z.shape[1]](z), lift))(features)
    np.testing.assert_array_equal(result.ids[0, 4:], np.arange(1, 17))
    np.testing.assert_allclose(result.sums[-1], features, atol=1e-6)


def test_residual_gradient_reaches_codes_of_every_scale_and_no_features():
    features, codebook, scales = normal(0, 1, 2, 2, 3), normal(1, 6, 3), ((1, 1), (2, 2))

    def loss(features, codebook):
        result = residual(features, codebook, scales)
        return jnp.sum(result.sums[-1]), result.ids[0]

    (to_features, to_codes), ids = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(features, codebook)
    np.testing.assert_array_equal(to_features, 0)
    # A coarse code adds its value to all four cells, a fine one to its own.
    expected = np.zeros((6, 3))
    np.add.at(expected, np.asarray(ids), np.array([4, 1, 1, 1, 1])[:, None])
    np.testing.assert_allclose(to_codes, expected, rtol=1e-6)
