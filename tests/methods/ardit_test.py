"""ARDiT's distillation on Gaussian data with exact conditionals: gradients in closed form, the law that is drawn."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.methods import ardit, mar
from jaxar.methods.base import Task
from jaxar.models.diffusion_head import Sizes as HeadSizes
from jaxar.tokenizers.base import ImageSpec, TokenSpec

TOWER = mar.mar.Tower(1, 8, 2)
SIZES = mar.Model(TOWER, TOWER, HeadSizes(1, 8), buffer_size=2, dropout=0.0)
TASK = Task(ImageSpec(8, 1), 5, TokenSpec("continuous", ((4, 4),), 3))
# Three tokens of one value: a Gaussian with this covariance, whose conditionals are known.
COVARIANCE = np.array([[1.0, 0.8, 0.5], [0.8, 1.0, 0.6], [0.5, 0.6, 1.0]])
COUNT = 20_000


def conditionals():
    """For each set of known tokens: the matrix from them to the means of all, and the deviations of all."""
    gains, deviations = np.zeros((8, 3, 3), np.float32), np.zeros((8, 3), np.float32)
    for row, known in enumerate(map(np.array, itertools.product((False, True), repeat=3))):
        gain = COVARIANCE[:, known] @ np.linalg.inv(COVARIANCE[known][:, known])
        gains[row][:, known] = gain
        deviations[row] = np.sqrt(np.maximum(np.diag(COVARIANCE - gain @ COVARIANCE[known]), 0))
    return gains, deviations


GAINS, DEVIATIONS = conditionals()


@dataclasses.dataclass(frozen=True)
class Gaussians:
    """In place of the network: z is the conditional mean and deviation of a token.

    As a denoiser, variables {"law": s}, the head knows the law whose deviation is s times as large; as a generator,
    {"size": s}, it makes tokens of that law.
    """

    num_tokens: int = 3
    channels: int = 1
    num_classes: int = 1
    sizes: mar.Model = SIZES

    def apply(self, variables, *args, method=None, rngs=None):
        return self._velocity(variables, *args) if method == "denoise" else self._conditionals(*args)

    def _conditionals(self, shown, positions, cond, count, deterministic):
        z = jax.vmap(self._conditional)(shown[..., 0], positions, count)
        return z.at[..., 0].add(0.5 * cond["label"][:, None])  # the null label has another mean

    def _conditional(self, shown, positions, count):
        at = jnp.where(jnp.arange(len(positions)) < count, positions, 3)
        known, x = (jnp.zeros(3).at[at].set(values, mode="drop") for values in (jnp.ones_like(shown), shown))
        row = (known @ jnp.array([4, 2, 1])).astype(jnp.int32)
        return jnp.stack([jnp.asarray(GAINS)[row] @ x, jnp.asarray(DEVIATIONS)[row]], axis=-1)

    def _velocity(self, variables, x, t, z):
        mean, deviation, t = z[:, :1], z[:, 1:], t[:, None] / 1000
        if "size" in variables:
            return x - (mean + variables["size"] * deviation * x)
        variance = (variables["law"] * deviation) ** 2
        gain = (1 - t) * variance / ((1 - t) ** 2 * variance + t**2)
        return (x - mean - gain * (x - (1 - t) * mean)) / t


def exact(order="raster", min_masked=0.0, **config):
    teacher = mar.MAR(Gaussians(), (1, 3), mar.Config(head="flow", order=order, min_masked=min_masked))
    return ardit.ARDiT(teacher, ardit.Config(**config))


def batch(seed=0, count=COUNT):
    tokens = np.random.default_rng(seed).multivariate_normal(np.zeros(3), COVARIANCE, count)
    return {"latents": jnp.asarray(tokens[..., None], jnp.float32), "label": jnp.zeros(count, jnp.int32)}


def slopes(method, *cases):
    """Gradients of the generator's loss in its size, for pairs of size and the score's law."""

    def loss(size, of_score):
        players = {"generator": {"size": size}, "teacher": {"law": 1.0}, "score": {"law": of_score}}
        return method.generator_loss(players, batch(), jax.random.key(1), jnp.int32(0))[0]

    slope = jax.jit(jax.grad(loss))
    return [float(slope(*case)) for case in cases]


@pytest.mark.parametrize("order", ["raster", "random"])
def test_the_generator_is_led_to_its_teachers_law(order):
    at_it, below, above, other = slopes(exact(order, draws=1), (1.0, 1.0), (0.7, 0.7), (1.3, 1.3), (1.0, 1.3))
    assert at_it == 0
    assert below < -0.01 and above > 0.01
    assert abs(other) > 0.01  # the score of another law


def test_without_given_tokens_the_slope_is_that_of_an_integral_of_divergences():
    """E[w(t) alpha(t) (s_S - s_T) . dq] with w alpha = t / (1 - t): Diff-Instruct, on each token's own law N(0, 1)."""
    method, size = exact("random", 0.99, draws=1), 0.7
    t = np.linspace(*method.config.times, 10_001)
    variances = [(1 - t) ** 2 * s**2 + t**2 for s in (1.0, size)]
    expected = np.mean(t / (1 - t) * (1 / variances[0] - 1 / variances[1]) * (1 - t) * size)
    assert method.teacher.most_known == 0
    np.testing.assert_allclose(slopes(method, (size, size)), expected, rtol=0.05)


def test_the_score_learns_the_generators_law():
    method, size = exact(draws=1), 0.7

    def loss(law):
        players = {"generator": {"size": size}, "score": {"law": law}}
        return method.score_loss(players, batch(), jax.random.key(2), jnp.int32(0))[0]

    slope = jax.jit(jax.grad(loss))
    assert abs(slope(size)) < 0.02 and slope(0.5) < -0.1 and slope(1.0) > 0.1


@pytest.mark.parametrize("order", ["raster", "random"])
def test_one_call_of_the_head_per_token_draws_the_joint_law(order):
    method, keys = exact(order), jax.random.split(jax.random.key(3), COUNT)
    options = ardit.Sampling(num_steps=3)
    sample = jax.jit(lambda size: method.sample({"generator": {"size": size}}, batch(), keys, options).latents[..., 0])
    error = 4 * np.sqrt(2 / COUNT)
    np.testing.assert_allclose(np.cov(np.asarray(sample(1.0)).T), COVARIANCE, atol=error)
    assert np.abs(np.cov(np.asarray(sample(0.9)).T) - COVARIANCE).max() > error
    assert method.network_calls(options) == 3


def test_guidance_moves_the_teachers_denoiser_alone():
    players = {"generator": {"size": 0.8}, "score": {"law": 0.8}, "teacher": {"law": 1.0}}
    plain, guided = exact(), exact(guidance_scale=3.0)

    @jax.jit
    def denoised(key):
        made = plain._make(players, batch(count=4), key)
        null = made._replace(cond={"label": jnp.ones(4, jnp.int32)})
        return plain._denoised(players, made), plain._denoised(players, null)[0], guided._denoised(players, made)

    (real, fake), null, (moved, same) = denoised(jax.random.key(0))
    np.testing.assert_allclose(moved, null + 3 * (real - null), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(same, fake, rtol=1e-5, atol=1e-5)
    assert np.abs(real - null).max() > 0.01


def test_both_players_start_as_the_teacher():
    teacher = mar.build(mar.Config(head="flow"), SIZES, TASK)
    method = ardit.build(ardit.Config(), ardit.Model(), dataclasses.replace(TASK, teacher=teacher))
    assert list(method.players()) == ["generator", "score"]
    taught = {"params": {"w": 1}}
    assert method.warm_start({"generator": 0, "score": 0}, {"teacher": taught}) == {
        "generator": taught["params"],
        "score": taught["params"],
    }


def test_mistakes_name_the_field():
    with pytest.raises(ConfigError, match="method.draws=0"):
        ardit.Config(draws=0)
    with pytest.raises(ConfigError, match="method.times"):
        ardit.Config(times=(0.5, 0.4))
    with pytest.raises(ConfigError, match="sample.num_steps=0"):
        ardit.Sampling(0)
    diffusion = mar.build(mar.Config(), SIZES, TASK)
    for teacher in (None, diffusion):
        with pytest.raises(ConfigError, match="needs a teacher of the method mar with head 'flow'"):
            ardit.build(ardit.Config(), ardit.Model(), dataclasses.replace(TASK, teacher=teacher))
