"""Trajectories of Gaussian data in closed form: exact teachers, and students that know what each method asks of them.

Data of label 0 are N(MEAN, STD^2) at every pixel, those of the null label N(0, STD^2). A trajectory goes from x at t to
alpha_s m + sqrt(V_s / V_t) (x - alpha_t m) at s, with V_t = alpha^2 STD^2 + sigma^2.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.diffusion import paths, trajectories
from jaxar.methods import _canvas as canvases
from jaxar.methods import _denoiser as denoisers
from tests.closed_form import ClosedForm

MEAN, STD, NULL = 0.7, 0.5, 1
SHAPE = (1, 1, 2)


@dataclasses.dataclass(frozen=True)
class Exact(ClosedForm):
    """A denoiser of the kind that `role` names, plus what its weights add: shift + slope x.

    Attributes:
      role: "denoiser", the expectation of data; "end", whose jump ends where the trajectory is at the last of `ends`
        before it; "guided", the expectation for the scale that it is told; "signal", the signal part at the time that
        it is told, for noise; "average", whose velocity is the mean one over the span that it is told; "line", whose
        velocity is that of straight lines between each noise and the data that it leads to.
    """

    role: str = "denoiser"
    kind: str = "linear"
    ends: tuple[float, ...] = (0.002,)
    canvas: ClassVar[canvases.Canvas] = canvases.Canvas(SHAPE, latent=False)
    num_classes: ClassVar[int] = NULL

    def init(self, key):
        return {"model": weights()}

    def student(self, num_scalars=0):
        return self

    def denoise(self, model, x, t, labels, *scalars):
        role = {"average": "denoiser", "line": "denoiser"}.get(self.role, self.role)
        return _added(model, x, getattr(self, role)(x, t, mean_of(labels), *scalars))

    def velocity(self, model, x, t, labels, *scalars):
        if self.role == "average":
            return _added(model, x, self.average(x, t, mean_of(labels), *scalars))
        if self.role == "line":
            return _added(model, x, self.line(x, t, mean_of(labels)))
        return super().velocity(model, x, t, labels, *scalars)

    def denoiser(self, x, t, mean, *ignored):
        at = self.path(t).like(x)
        return mean + at.alpha * STD**2 / variance(at) * (x - at.alpha * mean)

    def end(self, x, t, mean):
        ends = jnp.array(self.ends)
        stop = ends[jnp.searchsorted(ends, t - 1e-6) - 1]
        aimed = trajectories.aim(self.path(t), self.path(stop), x, flow(self.path, x, t, stop, mean))
        return jnp.where((t - stop > 1e-6)[:, None, None, None], aimed, x)  # at the end itself any will do

    def guided(self, x, t, mean, scale):
        null, cond = self.denoiser(x, t, 0.0), self.denoiser(x, t, mean)
        return null + scale[:, None, None, None] * (cond - null)

    def signal(self, x, t, mean, told):
        at = self.path(told).like(x)
        return mean + at.alpha * STD**2 / (jnp.sqrt(variance(at)) + at.sigma) * (x - self.path(t).like(x).alpha * mean)

    def average(self, x, t, mean, span):
        gap = span[:, None, None, None]
        moved = (x - flow(self.path, x, t, t - span, mean)) / jnp.where(gap > 0, gap, 1.0)
        now = paths.convert(self.path(t), x, self.denoiser(x, t, mean), "denoised", "velocity")
        return jnp.where(gap > 0, moved, now)

    def line(self, x, t, mean):
        t = t[:, None, None, None]
        noise = (x - (1 - t) * mean) / ((1 - t) * STD + t)
        return noise - mean - STD * noise


def variance(point):
    return point.alpha**2 * STD**2 + point.sigma**2


def mean_of(labels):
    return jnp.where(labels == NULL, 0.0, MEAN)[:, None, None, None]


def _added(model, x, value):
    return value + model["params"]["shift"] + model["params"]["slope"] * x


def flow(path, x, t, s, mean):
    """Where the trajectory through x at times t is at times s."""
    a, b = path(t).like(x), path(s).like(x)
    return b.alpha * mean + jnp.sqrt(variance(b) / variance(a)) * (x - a.alpha * mean)


def weights(shift=0.0, slope=0.0):
    return {"params": {"shift": jnp.float32(shift), "slope": jnp.float32(slope)}}


def variables(**added):
    """Of an exact teacher, and of a student to whose output `added` is added; its slower weights are the same."""
    student = weights(**added)
    return {"teacher": weights(), "model": {**student, "target": student["params"]}}


def data(count, seed=0):
    """Data of label 0, and their condition."""
    x = MEAN + STD * jax.random.normal(jax.random.key(seed), (count, *SHAPE))
    return x, {"label": jnp.zeros(count, int)}


def errors(method, count=512, step=0, seed=1, **added):
    """The method's errors [count] on data."""
    x, cond = data(count)
    call = jax.jit(lambda v, k: method.errors(v, x, cond, k, jnp.int32(step)))
    return np.asarray(call(variables(**added), jax.random.key(seed)))


def gradients(method, batches=200, size=64, step=0, **added):
    """Gradients [batches, 2] in (shift, slope) of the mean error of independent batches."""

    @jax.jit
    def one(key):
        data_key, key = jax.random.split(key)
        x = MEAN + STD * jax.random.normal(data_key, (size, *SHAPE))
        given = variables(**added)

        def loss(params):
            model = {**given["model"], "params": params}
            cond = {"label": jnp.zeros(size, int)}
            return jnp.mean(method.errors({**given, "model": model}, x, cond, key, jnp.int32(step)))

        return jax.grad(loss)(given["model"]["params"])

    found = jax.lax.map(one, jax.random.split(jax.random.key(2), batches))
    return np.stack([found["shift"], found["slope"]], axis=1)


def deviations(values):
    """Means over the first axis in units of their standard errors."""
    return values.mean(axis=0) / (values.std(axis=0) / np.sqrt(len(values)))


def samples(method, options, count=256):
    """Samples of label 0, and the noise that they start from."""
    keys = jax.random.split(jax.random.key(3), count)
    draw = jax.jit(lambda v: method.sample(v, {"label": jnp.zeros(count, int)}, keys, options).latents)
    return np.asarray(draw(variables())), np.asarray(denoisers.noise_of(method, keys))
