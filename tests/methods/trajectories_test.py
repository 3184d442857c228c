"""Short trainings on data of one dimension, where the curve from noise to data is known: F^-1(Phi(z))."""

import dataclasses
import functools
import itertools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxar.diffusion import paths
from jaxar.methods import _canvas as canvases
from jaxar.methods import _denoiser as denoisers
from jaxar.methods import _students as students
from jaxar.methods import (
    boot,
    consistency,
    flow_matching,
    meanflow,
    pcm,
    progressive,
    reflow,
    scott,
    shortcut,
    slimflow,
)
from jaxar.models import dit
from tests import exact_flows as exact

pytestmark = pytest.mark.slow
SHARES, MEANS, STDS = np.array([0.6, 0.4]), np.array([1.0, -0.8]), np.array([0.3, 0.35])
BATCH = 256
Z = np.linspace(-2.2, 2.2, 89)


@dataclasses.dataclass(frozen=True)
class Mixture(exact.Exact):
    """The exact denoiser of two Gaussians; its student is a small network."""

    canvas: ClassVar[canvases.Canvas] = canvases.Canvas((1, 1, 1), latent=False)

    def denoiser(self, x, t, mean):
        at = self.path(t).like(x)
        variance = (at.alpha * STDS) ** 2 + at.sigma**2
        gap = x - at.alpha * MEANS
        law = jax.nn.softmax(jnp.log(SHARES) - jnp.log(variance) / 2 - gap**2 / variance / 2)
        return jnp.sum(law * (MEANS + at.alpha * STDS**2 / variance * gap), axis=-1, keepdims=True)

    def student(self, num_scalars=0):
        return network(num_scalars)


def network(num_scalars=0, clock="data"):
    sizes = dit.Sizes(num_layers=2, width=32, num_heads=2, patch_size=1)
    net = dit.DiT(sizes, (1, 1, 1), 1, 1, num_scalars)
    return flow_matching.FlowMatching(net, Mixture.canvas, flow_matching.Config(clock=clock))


def curve():
    """Data of the noise Z by quadrature."""
    x = np.linspace(-3, 3, 200_001)
    density = sum(p / s * np.exp(-(((x - m) / s) ** 2) / 2) for p, m, s in zip(SHARES, MEANS, STDS))
    below = np.cumsum(density) / density.sum()
    return np.interp(jax.scipy.stats.norm.cdf(Z), below, x)


def data(key):
    which_key, key = jax.random.split(key)
    which = jax.random.bernoulli(which_key, SHARES[1], (BATCH,)).astype(int)
    x = jnp.array(MEANS)[which] + jnp.array(STDS)[which] * jax.random.normal(key, (BATCH,))
    return {"image": x[:, None, None, None], "label": jnp.zeros(BATCH, int)}


def train(method, teacher, num_steps):
    """The averaged weights of a student, trained as the trainer would."""
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))
    fresh = nn.meta.unbox(method.init(jax.random.key(0)))["model"]
    params, aux = fresh["params"], {name: value for name, value in fresh.items() if name != "params"}
    spec = method.players()["model"]

    def one(carry, step, fn):
        params, aux, moments, average = carry
        data_key, key = jax.random.split(jax.random.fold_in(jax.random.key(1), step))
        batch = data(data_key)

        def loss(params):
            return fn({"model": {"params": params, **aux}, "teacher": teacher}, batch, key, step)[0]

        change, moments = optimizer.update(jax.grad(loss)(params), moments, params)
        params = optax.apply_updates(params, change)
        if spec.project is not None:
            params, aux = spec.project(params, aux, key)
        return (params, aux, moments, optax.incremental_update(params, average, 0.02)), None

    carry = (params, aux, optimizer.init(params), params)
    programs = {
        loss.name: jax.jit(functools.partial(jax.lax.scan, functools.partial(one, fn=loss.fn)))
        for loss in method.losses()
    }
    stages = method.stages()
    for stage, after in zip(stages, [*(stage.start for stage in stages[1:]), num_steps]):
        if stage.enter is not None:
            carry = (carry[0], {**carry[1], "target": carry[0]}, *carry[2:])
        name = next(loss.name for loss in method.losses() if stage.losses is None or loss.name in stage.losses)
        carry, _ = programs[name](carry, jnp.arange(stage.start, after))
    return {"params": carry[3], **carry[1]}


def distance(method, model):
    """Mean distance of samples of the noise Z from the curve."""
    noise = jnp.asarray(Z, jnp.float32)[:, None, None, None]
    labels = jnp.zeros(len(Z), int)
    if isinstance(method, pcm.PCM):
        drawn = students.follow(
            lambda x, t, s: method.advance(model, x, t, s, labels), noise, method.visited(pcm.Sampling())
        )
    else:
        drawn = denoisers.generate(method, model, noise, {"label": labels})
    return float(np.mean(np.abs(np.asarray(drawn)[:, 0, 0, 0] - curve())))


TEACHER = Mixture()
EXACT = {"params": {"shift": jnp.zeros(()), "slope": jnp.zeros(())}}
FAST = dict(target_decay=0.9)
CASES = {
    "consistency": consistency.Consistency(network(), TEACHER, consistency.Config(consistency.Fixed(count=24), **FAST)),
    "consistency_training": consistency.Consistency(
        network(),
        None,
        consistency.Config(
            consistency.Doubling(num_steps=3000, first=4, last=64), target_decay=None, huber=0.03, weight="gap"
        ),
    ),
    # Without its weights of samples, which of one value would learn the median velocity.
    "meanflow": meanflow.MeanFlow(
        network(1, "noise"), None, meanflow.Config(label_drop=0.0, instant_share=0.5, norm_power=0.0)
    ),
    "meanflow_distilled": meanflow.MeanFlow(network(1), TEACHER, meanflow.Config(instant_share=0.25)),
    "shortcut": shortcut.Shortcut(
        network(1), None, shortcut.Config(shortest=16, bootstrap_share=0.5, target_decay=0.95, label_drop=0.0)
    ),
    "progressive": progressive.Progressive(network(), TEACHER, progressive.Config(first=16, stage_steps=500)),
    "boot": boot.Boot(network(1), TEACHER, boot.Config()),
    "pcm": pcm.PCM(network(), TEACHER, pcm.Config(phases=4, levels=24, huber=None)),
    "scott": scott.SCott(network(), TEACHER, scott.Config(levels=24, substeps=1, eta=0.1, **FAST)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_trained_student_draws_the_curve(name):
    method = CASES[name]
    steps = 3000
    if name == "progressive":  # in place of the warm start, which a network of another kind cannot have
        method = dataclasses.replace(
            method,
            config=dataclasses.replace(method.config, guidance_steps=1000, guidance=students.Scales(1.0, 1.0 + 1e-6)),
        )
        method = dataclasses.replace(method, network=network(1))
        steps = 4000
    assert distance(method, train(method, EXACT, steps)) < 0.1


@pytest.mark.parametrize("cls", [reflow.Reflow, slimflow.SlimFlow])
def test_straightened_and_distilled_flows_draw_the_curve(cls):
    make = {reflow.Reflow: reflow.Config, slimflow.SlimFlow: functools.partial(slimflow.Config, anneal_steps=500)}[cls]
    straight = cls(network(), TEACHER, make())
    model = train(straight, EXACT, 2000)
    once = cls(network(), straight, make(distil=True))
    assert distance(once, train(once, model, 2000)) < 0.1
    assert straightness(straight, model) < straightness(TEACHER, EXACT) / 3


def straightness(flow, model):
    """Mean of |noise - data - v|^2 along trajectories of the flow itself."""
    x = noise = jax.random.normal(jax.random.key(5), (500, 1, 1, 1))
    labels, times, seen = jnp.zeros(500, int), np.linspace(1, 0.01, 41), []
    for t, s in itertools.pairwise(times):
        velocity = flow.velocity(model, x, jnp.full(500, t), labels)
        seen.append(velocity)
        x = x + (s - t) * velocity
    return float(np.mean([(noise - x - velocity) ** 2 for velocity in seen]))


def test_the_teacher_itself_is_far_from_the_curve_in_one_call():
    assert distance(TEACHER, EXACT) > 0.4
    assert TEACHER.path is paths.linear
