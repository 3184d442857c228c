"""Laws of the sampler on targets whose score is known, and the loss terms in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxar.diffusion import ddpm
from jaxar.diffusion.process import Process

MEAN, STD = 0.7, 0.4
LONG, SHORT = Process("cosine", 200), Process("cosine", 200, "8")


def gaussian_output(tables, x, t, variance="exact"):
    """What a perfect network says of N(MEAN, STD^2): the expected noise, and v of the exact reverse variance."""
    signal = jnp.asarray(tables.alphas_cumprod, jnp.float32)[t][:, None]
    total = signal * STD**2 + 1 - signal
    eps = jnp.sqrt(1 - signal) * (x - jnp.sqrt(signal) * MEAN) / total
    v = jnp.asarray(share(tables, variance), jnp.float32)[t][:, None]
    return jnp.concatenate([eps, jnp.broadcast_to(v, x.shape)], axis=-1)


def share(tables, variance):
    """v of each step: of the exact variance, var(x_{t-1} | x_0, x_t) + coef1^2 var(x_0 | x_t), or the extremes."""
    signal, low = tables.alphas_cumprod, tables.posterior_log_variance_clipped
    if variance != "exact":
        return np.full(signal.shape, variance)
    of_data = (1 - signal) * STD**2 / (signal * STD**2 + 1 - signal)
    exact = np.log(np.exp(low) + tables.posterior_mean_coef1**2 * of_data)
    return 2 * (exact - low) / (np.log(tables.betas) - low) - 1


def moments(process, variance="exact", temperature=1.0):
    """Mean and variance of the samples: every step is affine in x and noise, so they follow without sampling."""
    tables, num_steps = process.tables, process.num_steps
    t = jnp.repeat(jnp.arange(num_steps), 3)
    x, noise = (jnp.tile(jnp.array(values), num_steps)[:, None] for values in ([0.0, 1.0, 0.0], [0.0, 0.0, 1.0]))

    @jax.jit
    def step(x, t, noise):
        return ddpm.step(tables, x, t, gaussian_output(tables, x, t, variance), noise, temperature)

    stepped = step(x, t, noise)
    mean, total = 0.0, 1.0
    for offset, slope, std in np.asarray(stepped, np.float64).reshape(num_steps, 3)[::-1]:
        mean, total = offset + (slope - offset) * mean, (slope - offset) ** 2 * total + (std - offset) ** 2
    return mean, total


@pytest.mark.parametrize("process", [LONG, SHORT, Process("linear", 200, "5,4")], ids=["long", "short", "sections"])
def test_gaussian_targets_have_their_law_at_any_respacing(process):
    """With the exact reverse variance a chain of eight steps has the law of the full one: that of the target.

    Step 0 adds no noise, so what the first step of the process adds to the data is missing from the variance.
    """
    signal = process.tables.alphas_cumprod[0]
    last = (1 - signal) * STD**2 / (signal * STD**2 + 1 - signal)
    unreached = process.tables.alphas_cumprod[-1]  # a chain starts from N(0, 1), not from the last marginal
    mean, variance = moments(process)
    np.testing.assert_allclose(mean, MEAN, atol=1e-3 + np.sqrt(unreached))
    np.testing.assert_allclose(variance, STD**2 - last, rtol=5e-3 + 2 * np.sqrt(unreached))


def test_the_extremes_of_the_variance_miss_the_law_of_a_short_chain():
    assert moments(SHORT, -1.0)[1] < 0.8 * STD**2
    assert moments(SHORT, 1.0)[1] > 1.1 * STD**2


def test_temperature_scales_the_noise_of_every_step_alone():
    cold, warm = moments(LONG, temperature=0.5), moments(LONG)
    np.testing.assert_allclose(cold[0], warm[0], atol=1e-4)
    np.testing.assert_allclose(cold[1], 0.25 * warm[1], rtol=1e-2)  # hardly anything is left of the starting noise


def mixture_output(tables, x, t):
    """The expected noise for 0.3 N(-0.8, 0.2^2) + 0.7 N(0.6, 0.1^2), whose posterior weights follow x."""
    weights, means, stds = (jnp.array(values) for values in ([0.3, 0.7], [-0.8, 0.6], [0.2, 0.1]))
    signal = jnp.asarray(tables.alphas_cumprod, jnp.float32)[t][:, None]
    total = signal * stds**2 + 1 - signal
    distance = x - jnp.sqrt(signal) * means
    posterior = jax.nn.softmax(jnp.log(weights) - 0.5 * jnp.log(total) - 0.5 * distance**2 / total, axis=-1)
    eps = jnp.sqrt(1 - signal) * jnp.sum(posterior * distance / total, axis=-1, keepdims=True)
    return jnp.concatenate([eps, jnp.zeros_like(eps)], axis=-1)


@pytest.fixture(scope="module")
def mixture_p_value():
    tables, count = Process("cosine", 1000).tables, 4000

    @jax.jit
    def draw(temperature):
        key = jax.random.key(3)
        start = jax.random.normal(key, (count, 1))
        return ddpm.sample(
            tables,
            lambda x, t: mixture_output(tables, x, t),  # all steps are kept: the told timestep is the step
            start,
            lambda index: jax.random.normal(jax.random.fold_in(key, index + 1), start.shape),
            temperature,
        )

    def cdf(x):
        return 0.3 * scipy.stats.norm.cdf(x, -0.8, 0.2) + 0.7 * scipy.stats.norm.cdf(x, 0.6, 0.1)

    return lambda temperature: scipy.stats.kstest(np.asarray(draw(temperature))[:, 0], cdf).pvalue


def test_a_mixture_is_sampled(mixture_p_value):
    assert mixture_p_value(1.0) > 1e-3
    assert mixture_p_value(0.8) < 1e-6


def test_the_network_is_told_the_kept_timesteps():
    told = []

    def predict(x, t):
        jax.debug.callback(lambda t: told.append(int(t[0])), t, ordered=True)
        return jnp.zeros((*x.shape[:-1], 2 * x.shape[-1]))

    ddpm.sample(SHORT.tables, predict, jnp.zeros((1, 1)), lambda index: jnp.zeros((1, 1)))
    jax.effects_barrier()
    assert told == list(reversed(SHORT.kept))


def test_a_perfect_network_pays_the_noise_that_cannot_be_known():
    """E mse = var(eps | x_t) = signal STD^2 / total, and the bound's gradient in v vanishes at the exact variance."""
    t = jnp.full(200_000, 60)
    x_key, noise_key = jax.random.split(jax.random.key(0))
    x = MEAN + STD * jax.random.normal(x_key, (t.size, 1))
    noise = jax.random.normal(noise_key, x.shape)
    signal = LONG.tables.alphas_cumprod[60]

    @jax.jit
    def terms(shift):
        output = gaussian_output(LONG.tables, ddpm.add_noise(LONG.tables, x, t, noise), t)
        return ddpm.training_terms(LONG.tables, x, t, noise, output + jnp.array([0.0, 1.0]) * shift)

    mse = terms(0.0).mse
    np.testing.assert_allclose(jnp.mean(mse), signal * STD**2 / (signal * STD**2 + 1 - signal), rtol=0.02)

    slope = jax.jit(jax.grad(lambda shift: jnp.mean(terms(shift).vb)))
    gradient, far = slope(0.0), slope(0.2)
    assert abs(gradient) < 0.05 * abs(far)


def test_the_bound_trains_the_variance_alone():
    x, t, noise = jnp.full((2, 3), 0.2), jnp.array([0, 5]), jnp.full((2, 3), 0.5)
    output = jnp.full((2, 6), 0.1)
    pullback = jax.jit(
        jax.jacrev(lambda o: jnp.stack([v.sum() for v in ddpm.training_terms(LONG.tables, x, t, noise, o)]))
    )
    of_mse, of_bound = np.asarray(pullback(output))
    assert np.all(of_bound[:, :3] == 0) and np.all(of_bound[:, 3:] != 0)
    assert np.all(of_mse[:, :3] != 0) and np.all(of_mse[:, 3:] == 0)


def test_the_bound_at_step_zero_is_the_likelihood_of_an_8_bit_bin():
    x, t = jnp.array([[-1.0], [0.1], [1.0]]), jnp.zeros(3, jnp.int32)
    noise = jnp.array([[0.3], [-0.2], [0.1]])
    output = jnp.concatenate([noise, jnp.zeros((3, 1))], axis=-1)
    noised = ddpm.add_noise(LONG.tables, x, t, noise)
    moments_ = ddpm.reverse(LONG.tables, noised, t, output)
    std = np.exp(0.5 * np.asarray(moments_.log_variance))
    upper = scipy.stats.norm.cdf((x - moments_.mean + 1 / 255) / std)
    lower = scipy.stats.norm.cdf((x - moments_.mean - 1 / 255) / std)
    upper[2], lower[0] = 1, 0
    expected = -np.log2(upper - lower)[:, 0]
    np.testing.assert_allclose(ddpm.training_terms(LONG.tables, x, t, noise, output).vb, expected, rtol=2e-3, atol=2e-3)


def test_guidance_leaves_the_variance_and_scale_one_alone():
    output = jnp.arange(8.0).reshape(2, 4)
    np.testing.assert_array_equal(ddpm.guided(output, 1.0), output[:1])
    np.testing.assert_array_equal(ddpm.guided(output, 2.0), [[-4, -3, 2, 3]])


def test_clipping_bounds_the_estimate_of_the_data():
    x, t, output = jnp.full((1, 2), 3.0), jnp.array([150]), jnp.zeros((1, 4))
    assert ddpm.reverse(LONG.tables, x, t, output).denoised.max() > 1
    np.testing.assert_array_equal(ddpm.reverse(LONG.tables, x, t, output, clip=True).denoised, 1)
