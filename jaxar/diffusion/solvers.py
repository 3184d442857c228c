"""Samplers as tables: a row for each call of the network says how to combine what has been seen so far.

    x_new = sum_j state[j] x_(-j) + sum_j denoised[j] D_(-j) + noise z

x_(-j) are the inputs of the last k calls, newest first, D_(-j) what the network made of them (the expectation of x_0),
z fresh noise. One-step, multi-step, two-stage and stochastic solvers have this form, so one scan runs them all. Tables
are computed in float64 before tracing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.diffusion.paths import Path
from jaxar.typing import Array, Float, Int

Denoise = Callable[[Float[Array, "b *n"], Float[Array, "b"]], Float[Array, "b *n"]]  # (x, time) -> expectation of x_0
Noise = Callable[[Int[Array, ""]], Float[Array, "b *n"]]  # number of the call -> noise


class Table(NamedTuple):
    """Weights of a sampler with n network calls; see the head of this file.

    Attributes:
      times: [n], what each call is told.
      state, denoised: [n k].
      noise: [n].
    """

    times: np.ndarray
    state: np.ndarray
    denoised: np.ndarray
    noise: np.ndarray

    @property
    def num_calls(self) -> int:
        return len(self.times)


def sample(table: Table, denoise: Denoise, start: Float[Array, "b *n"], noise: Noise) -> Float[Array, "b *n"]:
    """Follows the table from `start`, standard normal noise where the path has no signal, to data."""
    history = jnp.zeros((table.state.shape[1], *start.shape), start.dtype)
    stochastic = bool(np.any(table.noise))
    rows = jax.tree.map(lambda column: jnp.asarray(column, jnp.float32), table)

    def advance(carry: tuple[Array, Array], inputs: tuple[Int[Array, ""], Any]) -> tuple[tuple[Array, Array], None]:
        (states, estimates), (index, row) = carry, inputs
        estimates = _push(estimates, denoise(states[0], jnp.full(start.shape[:1], row.times)))
        x = jnp.tensordot(row.state, states, 1) + jnp.tensordot(row.denoised, estimates, 1)
        if stochastic:
            x = x + row.noise * noise(index)
        return (_push(states, x), estimates), None

    carry = _push(history, start), history
    (states, _), _ = jax.lax.scan(advance, carry, (jnp.arange(table.num_calls), rows))
    return states[0]


def _push(history: Array, newest: Array) -> Array:
    return jnp.concatenate([newest[None], history[:-1]])


def euler(path: Path, times: Float[np.ndarray, "m"]) -> Table:
    """x + (r - t) velocity from each time to the next; m - 1 calls.

    Args:
      times: falling; noise comes first.
    """
    gap, of_x, of_denoised = _velocity(path, times)
    return Table(times[:-1], (1 + gap * of_x)[:, None], (gap * of_denoised)[:, None], np.zeros(len(gap)))


def heun(path: Path, times: Float[np.ndarray, "m"]) -> Table:
    """Euler steps, each improved by the mean of the velocities at its ends, except for the last; 2 m - 3 calls.

    Reference: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, Alg. 1, in the
    time of the path.
    """
    gap, of_x, of_denoised = _velocity(path, times)
    state, denoised, called = [], [], []
    for i, h in enumerate(gap):
        state.append([1 + h * of_x[i], 0])
        denoised.append([h * of_denoised[i], 0])
        called.append(times[i])
        if i + 1 < len(gap):
            state.append([h / 2 * of_x[i + 1], 1 + h / 2 * of_x[i]])
            denoised.append([h / 2 * of_denoised[i + 1], h / 2 * of_denoised[i]])
            called.append(times[i + 1])
    return Table(np.array(called), np.array(state), np.array(denoised), np.zeros(len(called)))


def euler_maruyama(path: Path, times: Float[np.ndarray, "m"]) -> Table:
    """The reverse diffusion with the law of the path and noise of variance sigma(t) per unit of time; m - 1 calls.

    The last step gives the expectation of x_0 alone.

    Reference: Ma et al., SiT, 2024, Eq. 6 and Sec. 3.4, with w_t = sigma_t.
    """
    gap, of_x, of_denoised = _velocity(path, times)
    at = path(times[:-1])
    # half the noise's variance along the score (alpha D - x) / sigma^2
    pull = -gap * at.sigma / 2 / at.sigma**2
    state, denoised = 1 + gap * of_x - pull, gap * of_denoised + pull * at.alpha
    noise = np.sqrt(-gap * at.sigma)
    state[-1], denoised[-1], noise[-1] = 0, 1, 0
    return Table(times[:-1], state[:, None], denoised[:, None], noise)


def _velocity(path: Path, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Length of each step (negative), and weights of x and of D in the velocity at its start."""
    at = path(times[:-1])
    of_x = at.sigma_slope / at.sigma
    return np.diff(times), of_x, at.alpha_slope - at.alpha * of_x


class Levels(NamedTuple):
    """alpha and sigma [m] of the levels that a sampler visits, from noise to data, and what the network is told there.

    `times` are those of all levels but the last, which is data: alpha 1, sigma 0.
    """

    times: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray


def levels(path: Path, times: Float[np.ndarray, "m"]) -> Levels:
    """Those of a path at falling times that end in 0."""
    at = path(times)
    return Levels(times[:-1], at.alpha, at.sigma)


def ddim(visited: Levels) -> Table:
    """Moves along the direction of the estimated noise, without fresh noise; exact if the estimate does not change.

    Reference: Song et al., Denoising Diffusion Implicit Models, 2021, Eq. 12 with sigma = 0.
    """
    ratio = visited.sigma[1:] / visited.sigma[:-1]
    denoised = visited.alpha[1:] - visited.alpha[:-1] * ratio
    return Table(visited.times, ratio[:, None], denoised[:, None], np.zeros(len(ratio)))


def dpm_solver(visited: Levels) -> Table:
    """DPM-Solver++(2M): DDIM with the estimate extrapolated from the last two; the first and last step are plain.

    Reference: Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, 2022, Alg. 2.
    """
    plain = ddim(visited)
    with np.errstate(divide="ignore"):  # levels without signal or noise lie at infinity
        log_ratio = np.log(visited.alpha / visited.sigma)
    gap = np.diff(log_ratio)
    more = np.zeros(len(gap))
    more[1:-1] = gap[1:-1] / gap[:-2] / 2
    denoised = plain.denoised * np.stack([1 + more, -more], axis=1)
    return Table(plain.times, np.pad(plain.state, ((0, 0), (0, 1))), denoised, plain.noise)
