"""Distribution matching distillation 2: gradient, discriminator's optimum, inputs of later calls, whole trainings."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.methods import _canvas as canvases
from jaxar.methods import _denoiser as denoisers
from jaxar.methods import dmd2, flow_matching
from jaxar.models import dit
from jaxar.models.feature_discriminator import FeatureDiscriminator
from tests import gaussians, toys
from tests.closed_form import ClosedForm

TEACHER, STUDENT, T = (0.0, 1.0), (0.3, 1.6), 0.4


@dataclasses.dataclass(frozen=True)
class LogRatio:
    """In place of the discriminator's layers: `scale` times log of data's density over samples', known Gaussians."""

    data: tuple[float, float] = TEACHER
    samples: tuple[float, float] = STUDENT

    def init(self, key, features):
        return {"params": {"scale": jnp.ones(())}}

    def apply(self, variables, features):
        x, _, t = jnp.moveaxis(features[:, 0], -1, 0)

        def log_density(mean, std):
            variance = (1 - t) ** 2 * std**2 + t**2
            return -0.5 * (x - (1 - t) * mean) ** 2 / variance - 0.5 * jnp.log(variance)

        return variables["params"]["scale"] * (log_density(*self.data) - log_density(*self.samples))


def method(**options):
    return gaussians.distiller(dmd2.DMD2, dmd2.Config(**options), head=LogRatio())


def with_scale(variables, scale):
    return {**variables, "discriminator": {"params": {"scale": jnp.asarray(scale)}}}


def test_the_gradient_is_the_weighted_difference():
    """Against float64 sums over the same nodes; at the optimum it is zero."""
    z, noise, probs = gaussians.nodes(24)
    x = STUDENT[0] + STUDENT[1] * z
    noised = (1 - T) * x + T * noise

    def denoised(mean, std):
        return mean + (1 - T) * std**2 / ((1 - T) ** 2 * std**2 + T**2) * (noised - (1 - T) * mean)

    real = denoised(*TEACHER)
    slope = probs * (denoised(*STUDENT) - real) / np.abs(x - real)
    plain = method(adversarial_weight=0.0)
    variables = with_scale(gaussians.players(TEACHER, STUDENT), 1.0)
    ours = gaussians.expected_gradient(plain, variables, T)
    np.testing.assert_allclose(ours, [slope.sum(), (slope * z).sum()], rtol=1e-4)
    at_rest = with_scale(gaussians.players(TEACHER, TEACHER), 1.0)
    np.testing.assert_allclose(gaussians.expected_gradient(plain, at_rest, T), 0, atol=1e-6)
    pulled = gaussians.expected_gradient(method(adversarial_weight=1.0), variables, T)
    assert pulled[1] > ours[1] + 0.01  # the discriminator, too, wants it narrower


def test_the_discriminator_is_best_at_the_ratio_of_densities():
    game, size = method(discriminator_weight=1.0), 60_000
    variables = gaussians.players(TEACHER, STUDENT)
    batch = gaussians.batch(size)

    @jax.jit
    def slope(scale):
        def loss(scale):
            made = game.make(variables["generator"], batch, game.draw(jax.random.key(1), batch, (0.0, 1.0)))
            terms = game.score_terms(with_scale(variables, scale), made, batch, jax.random.key(2))
            return jnp.mean(terms["discriminator"])

        return jax.grad(loss)(scale)

    assert abs(float(slope(1.0))) < 2e-3
    assert float(slope(0.5)) < -0.01 and float(slope(1.5)) > 0.01


def test_score_and_discriminator_share_a_loss_and_the_generator_waits():
    losses = {loss.name: loss for loss in method().losses()}
    assert losses["score"].updates == ("score", "discriminator") and losses["generator"].updates == ("generator",)
    assert [method().active(step) for step in (0, 1, 5)] == [("score", "generator"), ("score",), ("score", "generator")]


def test_later_calls_are_trained_on_what_sampling_gives_them():
    """The input of the second call is the first one's sample, noised: mean (1 - t) m, variance (1 - t)^2 s^2 + t^2."""
    game, size = method(calls=(1.0, 0.6)), 50_000
    variables = gaussians.players(TEACHER, STUDENT)
    batch = gaussians.batch(size)
    drawn = jax.jit(lambda key: game.draw(key, batch, (0.0, 1.0)))(jax.random.key(3))
    given, t = jax.jit(game.given)(variables["generator"], batch, drawn.starts, drawn.call)
    second = np.asarray(drawn.call) == 1
    assert abs(second.mean() - 0.5) < 0.02
    np.testing.assert_allclose(t, np.where(second, 0.6, 1.0), rtol=1e-6)
    later, std = np.asarray(given)[second].ravel(), np.hypot(0.4 * STUDENT[1], 0.6)
    assert abs(later.mean() - 0.4 * STUDENT[0]) < 4 * std / np.sqrt(size / 2)
    np.testing.assert_allclose(later.std(), std, rtol=0.02)
    np.testing.assert_array_equal(np.asarray(given)[~second], np.asarray(drawn.starts[0])[~second])


def test_sampling_makes_as_many_calls_as_it_is_asked_for():
    game, keys = method(calls=(1.0, 0.6)), jax.random.split(jax.random.key(0), 5)
    variables, cond = gaussians.players(TEACHER, STUDENT), {"label": jnp.zeros(5, int)}
    one, two = (game.sample(variables, cond, keys, dmd2.Sampling(steps)).latents for steps in (1, 2))
    starts = [denoisers.noise_of(game.student, keys, i) for i in range(2)]
    np.testing.assert_allclose(one, STUDENT[0] + STUDENT[1] * starts[0], rtol=1e-5)
    again = 0.4 * one + 0.6 * starts[1]
    gain = 0.4 * STUDENT[1] ** 2 / (0.4**2 * STUDENT[1] ** 2 + 0.6**2)
    np.testing.assert_allclose(two, STUDENT[0] + gain * (again - 0.4 * STUDENT[0]), rtol=1e-4)
    assert game.network_calls(dmd2.Sampling(2)) == 2
    with pytest.raises(ConfigError, match="sample.steps=3 must be at most 2"):
        game.sample(variables, cond, keys, dmd2.Sampling(3))


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="method.adversarial_weight=-1"):
        dmd2.Config(adversarial_weight=-1)
    with pytest.raises(ConfigError, match="method.discriminator_width=0"):
        dmd2.build(dmd2.Config(discriminator_width=0), dmd2.Model(), None)
    with pytest.raises(ConfigError, match="sample.steps=0"):
        dmd2.Sampling(0)


@pytest.mark.slow
def test_a_score_that_is_trained_more_often_keeps_up_with_the_generator():
    """From three times the width of data, with one learning rate for both. With K = 1 it swings."""

    def widths(generator_every):
        game = method(adversarial_weight=0.0, discriminator_weight=0.0, generator_every=generator_every)
        start = gaussians.weights(0.0, 3.0)["params"]
        seen, _ = toys.alternated(
            game,
            toys.SGD | {"name": "adamw", "learning_rate": 0.02, "b1": 0.0},
            {"teacher": gaussians.weights(*TEACHER)},
            lambda key: gaussians.batch(512),
            600,
            {"generator": start, "score": start},
            lambda state: state.players["generator"].params["std"][0],
        )
        return np.abs(np.asarray(seen))  # their sign is not identified

    often, once = widths(5), widths(1)
    assert abs(often[-100:].mean() - 1) < 0.02
    assert once[-100:].std() > 1.5 * often[-100:].std()


MODES = 1.5 * np.stack([np.cos(np.pi / 4 * np.arange(8)), np.sin(np.pi / 4 * np.arange(8))], axis=1)
SPREAD = 0.15


@dataclasses.dataclass(frozen=True)
class Ring(ClosedForm):
    """The exact denoiser of eight Gaussians on a circle; its student is a small network."""

    kind: str = "linear"
    canvas: ClassVar[canvases.Canvas] = canvases.Canvas((1, 1, 2), latent=False)
    num_classes: ClassVar[int] = 1

    def init(self, key):
        return {"model": {"params": {}}}

    def denoise(self, model, x, t, labels):
        at = self.path(t).like(x)
        variance = (at.alpha * SPREAD) ** 2 + at.sigma**2
        means = jnp.asarray(MODES)[:, None, None, None]  # [8 1 1 1 2]
        gap = x - at.alpha * means
        law = jax.nn.softmax(-jnp.sum(gap**2, axis=-1, keepdims=True) / (2 * variance), axis=0)
        return jnp.sum(law * (means + at.alpha * SPREAD**2 / variance * gap), axis=0)

    def student(self, num_scalars=0):
        net = dit.DiT(dit.Sizes(num_layers=2, width=48, num_heads=2, patch_size=1), (1, 1, 2), 2, 1, num_scalars)
        return flow_matching.FlowMatching(net, self.canvas, flow_matching.Config())


def ring(key, size=256):
    """A batch of its data."""
    which, noise = jax.random.split(key)
    means = jnp.asarray(MODES)[jax.random.randint(which, (size,), 0, 8)]
    values = means + SPREAD * jax.random.normal(noise, (size, 2))
    return {"image": values[:, None, None, :], "label": jnp.zeros(size, int)}


def shares(values):
    """Of samples [b 1 1 2] within three deviations of each mode."""
    distances = np.linalg.norm(np.asarray(values)[:, 0, 0, None] - MODES, axis=-1)
    return np.mean(distances < 3 * SPREAD, axis=0)


@pytest.mark.slow
def test_a_student_reaches_all_modes_of_a_ring():
    teacher = Ring()
    config = dmd2.Config(adversarial_weight=0.03, discriminator_weight=0.1)
    game = dmd2.DMD2(teacher, teacher.student(), config, head=FeatureDiscriminator(32))
    changed = {"name": "adamw", "learning_rate": 1e-3, "b2": 0.99, "schedule": {"name": "cosine"}, "ema": (0.99,)}
    _, last = toys.alternated(game, toys.SGD | changed, {"teacher": {"params": {}}}, ring, 1000)
    trained = last.players["generator"]
    fresh = nn.meta.unbox(game.init(jax.random.key(0)))["generator"]
    keys = jax.random.split(jax.random.key(3), 8000)

    def reached(generator):
        cond = {"label": jnp.zeros(8000, int)}
        return shares(jax.jit(game.sample, static_argnums=3)(generator, cond, keys, dmd2.Sampling()).latents)

    found = reached({"generator": {"params": trained.emas["0.99"], **trained.aux}})
    assert found.min() > 0.05
    assert found.sum() > 0.6  # a continuous map of normal noise has to pass from mode to mode
    assert reached({"generator": fresh}).sum() < 0.4
    assert shares(ring(jax.random.key(0), 8000)["image"]).min() > 0.1
