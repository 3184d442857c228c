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
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(64)  # of integrals over [-1, 1]


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
    """Follows the table from `start`, normal noise of the path's first deviation, to data."""
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
    gap, (of_x, of_denoised) = np.diff(times), _velocity(path, times[:-1])
    return Table(times[:-1], (1 + gap * of_x)[:, None], (gap * of_denoised)[:, None], np.zeros(len(gap)))


def heun(path: Path, times: Float[np.ndarray, "m"], raised: Float[np.ndarray, "m-1"] | None = None) -> Table:
    """Euler steps, each improved by the mean of the velocities at its ends, except for the last; 2 m - 3 calls.

    Args:
      times: as in `euler`.
      raised: noisier times, to which fresh noise carries x before each step that leaves `times[:-1]`; None for none.
        The sampler's start belongs to the first of them.

    Reference: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, Alg. 1 and 2, in
    the time of the path.
    """
    raised = times[:-1] if raised is None else raised
    ends = times[1:-1]
    gap, (of_x, of_denoised) = times[1:] - raised, _velocity(path, raised)
    end_of_x, end_of_denoised = _velocity(path, ends)
    kept, fresh = _rise(path, ends, raised[1:])
    state, denoised, noise, called = [], [], [], []
    for i, h in enumerate(gap):
        state.append([1 + h * of_x[i], 0])
        denoised.append([h * of_denoised[i], 0])
        noise.append(0)
        called.append(raised[i])
        if i < len(ends):
            state.append(kept[i] * np.array([h / 2 * end_of_x[i], 1 + h / 2 * of_x[i]]))
            denoised.append(kept[i] * np.array([h / 2 * end_of_denoised[i], h / 2 * of_denoised[i]]))
            noise.append(fresh[i])
            called.append(ends[i])
    return Table(np.array(called), np.array(state), np.array(denoised), np.array(noise))


def _rise(path: Path, times: np.ndarray, raised: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From times to noisier ones by fresh noise: the weight of x, and the deviation of the noise."""
    before, after = path(times), path(raised)
    kept = after.alpha / before.alpha
    return kept, np.sqrt(np.maximum(after.sigma**2 - (kept * before.sigma) ** 2, 0))


def euler_maruyama(path: Path, times: Float[np.ndarray, "m"]) -> Table:
    """The reverse diffusion with the law of the path and noise of variance sigma(t) per unit of time; m - 1 calls.

    The last step gives the expectation of x_0 alone.

    Reference: Ma et al., SiT, 2024, Eq. 6 and Sec. 3.4, with w_t = sigma_t.
    """
    gap, (of_x, of_denoised) = np.diff(times), _velocity(path, times[:-1])
    at = path(times[:-1])
    # half the noise's variance along the score (alpha D - x) / sigma^2
    pull = -gap * at.sigma / 2 / at.sigma**2
    state, denoised = 1 + gap * of_x - pull, gap * of_denoised + pull * at.alpha
    noise = np.sqrt(-gap * at.sigma)
    state[-1], denoised[-1], noise[-1] = 0, 1, 0
    return Table(times[:-1], state[:, None], denoised[:, None], noise)


def _velocity(path: Path, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of x and of D in the velocity."""
    at = path(times)
    of_x = at.sigma_slope / at.sigma
    return of_x, at.alpha_slope - at.alpha * of_x


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


def deis(path: Path, times: Float[np.ndarray, "m"], order: int) -> Table:
    """Adams-Bashforth steps in sigma / alpha with the estimated noise extrapolated through the last `order` calls.

    With y = x / alpha and rho = sigma / alpha the flow is dy = noise drho. The noise is a polynomial in the time of the
    path through what the last calls estimated, and its integral over rho is exact. The first steps have fewer calls to
    look back on, and so lower orders; the first one is DDIM.

    Args:
      times: falling; the path must have no signal at the first alone, if anywhere.
      order: calls looked at, 1 to 3.

    Reference: Zhang & Chen, Fast Sampling of Diffusion Models with Exponential Integrator, 2023, Eq. 15 (tAB-DEIS).
    """
    at, plain = path(times), ddim(levels(path, times))
    state, denoised = np.zeros((2, len(times) - 1, order))
    state[0, 0], denoised[0, 0] = plain.state[0, 0], plain.denoised[0, 0]
    for i in range(1, len(times) - 1):
        seen = i - np.arange(min(order, i + 1))
        weights = at.alpha[i + 1] * _lagrange_integrals(path, times[seen], times[i + 1])
        state[i, 0] = at.alpha[i + 1] / at.alpha[i]
        state[i, : len(seen)] += weights / at.sigma[seen]
        denoised[i, : len(seen)] = -weights * at.alpha[seen] / at.sigma[seen]
    return Table(times[:-1], state, denoised, np.zeros(len(state)))


def _lagrange_integrals(path: Path, nodes: Float[np.ndarray, "k"], end: float) -> Float[np.ndarray, "k"]:
    """Integrals over rho = sigma / alpha, from the first node's to the end's, of the polynomials in time that are 1 at
    one node and 0 at the others.

    By parts, so that they sum to the difference in rho whatever the quadrature.
    """
    half = (end - nodes[0]) / 2
    inner = nodes[0] + half * (_POINTS + 1)

    def rho(t: np.ndarray) -> np.ndarray:
        at = path(t)
        return at.sigma / at.alpha

    start_rho, end_rho = rho(np.array([nodes[0], end]))
    result = np.zeros(len(nodes))
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)
        basis = np.poly1d(others, r=True) / np.prod(node - others)
        change = half * np.sum(_WEIGHTS * basis.deriv()(inner) * rho(inner))
        result[j] = basis(end) * end_rho - basis(nodes[0]) * start_rho - change
    return result
