"""What methods share whose network lands at the same end from every point of a trajectory: consistency models."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.diffusion import trajectories
from jaxar.methods import _denoiser as denoisers
from jaxar.methods import _students as students
from jaxar.typing import Array, Float, Int, Keys, Variables


def land(
    denoiser: denoisers.Denoiser,
    model: Variables,
    x: Float[Array, "b h w c"],
    t: Float[Array, "b"],
    end: Float[Array, "b"],
    labels: Int[Array, "b"],
    *scalars: Float[Array, "b"],
) -> Float[Array, "b h w c"]:
    """Where one call takes x from times t to `end`: the function that consistency models train."""
    denoised = denoiser.denoise(model, x, t, labels, *scalars)
    return trajectories.jump(denoiser.path(t), denoiser.path(end), x, denoised)


class LandingStudent(students.Student):
    """A student whose calls land at the least time; its `config` has `target_decay`, `least_time` and `rho`."""

    @property
    def slowness(self) -> float | None:
        return self.config.target_decay

    @property
    def bounds(self) -> tuple[float, float]:
        """The times of its trajectories."""
        return students.bounds(self.network, self.config.least_time)

    def visited(self, options: Any) -> Float[np.ndarray, "m"]:
        count = options.num_steps + 1
        return trajectories.level(np.arange(count)[::-1], count, self.bounds, self.config.rho)


class Neighbours(NamedTuple):
    """Two points of one trajectory: x at the later time t, and at the earlier s, which lies closer to data."""

    x: Float[Array, "b h w c"]
    t: Float[Array, "b"]
    earlier: Float[Array, "b h w c"]
    s: Float[Array, "b"]


class Landings(NamedTuple):
    """Where calls from two neighbours landed: `found` from the later, `target`, without gradient, from the earlier.

    `end`: the times of both.
    """

    found: Float[Array, "b h w c"]
    target: Float[Array, "b h w c"]
    end: Float[Array, "b"]


def landings(
    student: students.Student,
    model: Variables,
    points: Neighbours,
    end: Float[Array, "b"],
    labels: Int[Array, "b"],
    *scalars: Float[Array, "b"],
) -> Landings:
    """Calls from neighbours; the one from the earlier is the target."""
    found = land(student.network, model, points.x, points.t, end, labels, *scalars)
    slow = student.slow(model)
    target = jax.lax.stop_gradient(land(student.network, slow, points.earlier, points.s, end, labels, *scalars))
    return Landings(found, target, end)


def disagreement(landed: Landings, huber: float | None) -> Float[Array, "b"]:
    """How far apart they are: pseudo-Huber of this scale, or, with None, the mean square."""
    pair = landed.found, landed.target
    return students.squared(*pair) if huber is None else pseudo_huber(*pair, huber)


def renoised_sample(
    student: students.Student,
    model: Variables,
    keys: Keys,
    options: Any,
    labels: Int[Array, "b"],
    *scalars: Float[Array, "b"],
) -> Float[Array, "b h w c"]:
    """x at the last of the times that sampling visits: each call lands there, and new noise leads back to the next.

    Reference: Song et al., Consistency Models, 2023, Alg. 1.
    """
    times = jnp.asarray(student.visited(options), jnp.float32)
    path, end = student.path, jnp.full(len(labels), times[-1])

    def one(x: Array, inputs: tuple[Int[Array, ""], Array, Array]) -> tuple[Array, None]:
        index, t, s = inputs
        t, s = jnp.full(len(x), t), jnp.full(len(x), s)
        x = land(student.network, model, x, t, end, labels, *scalars)
        return trajectories.renoise(path(end), path(s), x, denoisers.noise_of(student, keys, index + 1)), None

    steps = jnp.arange(len(times) - 1), times[:-1], times[1:]
    return jax.lax.scan(one, student.start(keys, options), steps)[0]


def pseudo_huber(x: Float[Array, "b *n"], y: Float[Array, "b *n"], scale: float) -> Float[Array, "b"]:
    """sqrt(|x - y|^2 + c^2) - c with c = scale sqrt(number of values): straight far away, a parabola close by.

    Reference: Song & Dhariwal, Improved Techniques for Training Consistency Models, 2023, Eq. 8.
    """
    c = scale * np.sqrt(x[0].size)
    return jnp.sqrt(jnp.sum((x - y) ** 2, axis=tuple(range(1, x.ndim))) + c**2) - c
