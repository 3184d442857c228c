"""Denoisers of Gaussian data that are also generators, and expectations over them by quadrature.

Data of class k are N(mean_k, std_k^2) at every pixel. Called at its greatest time, such a network is the generator
mean_k + std_k z; at all others it is the exact expectation of data. So one kind of network is generator and score, each
with weights of its own. The teacher is exact at all times.
"""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxar.methods import _canvas as canvases
from jaxar.methods import _score_distillation as distillation
from tests.closed_form import ClosedForm

SHAPE, CLASSES = (1, 1, 1), 2


@dataclasses.dataclass(frozen=True)
class Gaussian(ClosedForm):
    """See above. Weights are [CLASSES + 1], the last of the null label."""

    kind: str = "linear"
    generates: bool = True
    canvas: ClassVar[canvases.Canvas] = canvases.Canvas(SHAPE, latent=False)
    num_classes: ClassVar[int] = CLASSES

    def init(self, key):
        def boxed(value):
            return nn.LogicallyPartitioned(jnp.full(CLASSES + 1, value), (None,), rules=())

        return {"model": {"params": {"mean": boxed(0.0), "std": boxed(2.0)}}}

    def denoise(self, model, x, t, labels):
        params = nn.meta.unbox(model["params"])
        mean, std = (params[name][labels][:, None, None, None] for name in ("mean", "std"))
        at = self.path(t).like(x)
        posterior = mean + at.alpha * std**2 / (at.alpha**2 * std**2 + at.sigma**2) * (x - at.alpha * mean)
        last = (t[:, None, None, None] == self.times[1]) & self.generates
        return jnp.where(last, mean + std * x / at.sigma, posterior)


def weights(mean, std):
    """Weights of classes, the null label included: numbers, or lists by class."""
    values = {"mean": mean, "std": std}
    return {"params": {k: jnp.broadcast_to(jnp.asarray(v, jnp.float32), CLASSES + 1) for k, v in values.items()}}


def distiller(cls, config, kind="linear", **parts):
    """The method for a Gaussian teacher."""
    return cls(Gaussian(kind, generates=False), Gaussian(kind), config, **parts)


def players(teacher, generator, score=None):
    """Variables, each given as (mean, std); the score is exact if it is not given."""
    names = {"teacher": teacher, "generator": generator, "score": score or generator}
    return {name: weights(*law) for name, law in names.items()} | {"discriminator": {"params": {}}}


@functools.cache
def nodes(size):
    """Nodes [size^2] for a pair of standard normal variables, and their weights."""
    points, probs = np.polynomial.hermite_e.hermegauss(size)
    z, noise = (values.ravel() for values in np.meshgrid(points, points))
    return z, noise, np.outer(probs, probs).ravel() / probs.sum() ** 2


def draws(t, call=0, calls=1, size=24):
    """Draws in which the generator's noise and that of x_t are the nodes, all at time t of one call."""
    z, noise, _ = nodes(size)
    z, noise = (jnp.asarray(values, jnp.float32).reshape(-1, *SHAPE) for values in (z, noise))
    time = jnp.full(len(z), t)
    return distillation.Draws(jnp.stack([z] * calls), jnp.full(len(z), call), time, time, noise)


def expectation(values, size=24):
    """The mean of values [b] at the nodes."""
    return jnp.sum(jnp.asarray(nodes(size)[2], jnp.float32) * values)


@functools.partial(jax.jit, static_argnames=("method", "call", "size"))
def make(method, variables, t, label=0, call=0, size=24):
    """What the generator makes of the nodes: `Made`."""
    cond = {"label": jnp.full(size**2, label)}
    return method.make(variables["generator"], cond, draws(t, call, len(method.config.calls), size))


@functools.partial(jax.jit, static_argnames=("method", "size"))
def _expected_gradient(method, variables, t, label, size):
    def loss(generator):
        current = {**variables, "generator": generator}
        terms = method.terms(current, make(method, current, t, label, 0, size), jax.random.key(0))
        return sum(expectation(values, size) for values in terms.values())

    return jax.grad(loss)(variables["generator"])["params"]


def expected_gradient(method, variables, t, label=0, size=24):
    """Gradient in the generator's (mean, std) of the expected loss at time t, for one class."""
    gradient = _expected_gradient(method, variables, t, label, size)
    return np.array([gradient["mean"][label], gradient["std"][label]])


def batch(size, label=0):
    """A batch of data of N(0, 1) under one label."""
    images = jax.random.normal(jax.random.key(9), (size, *SHAPE))
    return {"image": images, "label": jnp.full(size, label)}
