"""Discrete Gaussian diffusion processes: their noise schedules, shortened ones, and the tables that follow from both.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise,    t = 0 .. T-1, the larger the noisier

Everything here is known before tracing and computed in float64.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import numpy as np

from jaxar.config import ConfigError
from jaxar.typing import Array, Float, Int

Numbers = np.ndarray | Array
Schedule = Literal["cosine", "linear"]
_MAX_BETA = 0.999  # keeps the last step of the cosine schedule from destroying the signal altogether


@dataclasses.dataclass(frozen=True)
class Process:
    """A diffusion process.

    Attributes:
      base_steps: of the process that a network is trained on.
      schedule: "cosine", or "linear" with the betas of DDPM at any number of steps.
      respacing: the steps that are kept: "" all; "N" so many, evenly spaced; "A,B,C" so many from each of equal
        consecutive sections; "ddimN" those of the largest constant stride that gives N.
      max_start: the noisiest kept step of "N", None for the last. Shortened processes that begin in the last steps of
        the cosine schedule divide by a signal of nearly nothing.

    Reference: Nichol & Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, Sec. 3.2, 4, and its code for
    the spellings of `respacing`.
    """

    schedule: Schedule = "cosine"
    base_steps: int = 1000
    respacing: str = ""
    max_start: int | None = None

    def __post_init__(self):
        if self.max_start is not None and not 1 <= self.max_start < self.base_steps:
            raise ConfigError(f"max_start={self.max_start} must lie in 1..{self.base_steps - 1}; None is the last step")
        if len(self.kept) < 2:
            raise ConfigError(f"respacing={self.respacing!r} keeps {len(self.kept)} steps; a process has at least 2")

    @property
    def num_steps(self) -> int:
        """Kept steps, and calls of the network for a sample."""
        return len(self.kept)

    @functools.cached_property
    def kept(self) -> tuple[int, ...]:
        """Kept steps of the base process, rising: what the network is told."""
        return respace(self.respacing, self.base_steps if self.max_start is None else self.max_start + 1)

    @functools.cached_property
    def tables(self) -> "Tables":
        return make_tables(base_betas(self.schedule, self.base_steps), np.array(self.kept))


class Tables(NamedTuple):
    """Numbers of each kept step, [num_steps] in float64, in the terms of DDPM.

    The posterior q(x_{t-1} | x_t, x_0) has mean `posterior_mean_coef1` x_0 + `posterior_mean_coef2` x_t. Its variance
    is 0 at t = 0; the logarithm has the value of t = 1 there. Roots and logarithms are stored because float32 would
    lose them: 1 - alphas_cumprod begins at 4e-5.
    """

    timesteps: Numbers
    betas: Numbers
    log_betas: Numbers
    alphas_cumprod: Numbers
    sqrt_alphas_cumprod: Numbers
    sqrt_one_minus_alphas_cumprod: Numbers
    sqrt_recip_alphas_cumprod: Numbers
    sqrt_recipm1_alphas_cumprod: Numbers
    posterior_log_variance_clipped: Numbers
    posterior_mean_coef1: Numbers
    posterior_mean_coef2: Numbers


def base_betas(schedule: Schedule, num_steps: int) -> Float[np.ndarray, "t"]:
    """Variance of the noise that each step adds.

    "cosine": abar(u) = cos^2((u + 0.008) / 1.008 * pi / 2) at u = t / T. "linear": from 1e-4 to 0.02, times 1000 / T.

    Reference: Nichol & Dhariwal, 2021, Eq. 17; Ho et al., Denoising Diffusion Probabilistic Models, 2020, Sec. 4.
    """
    if schedule == "linear":
        return np.linspace(1e-4, 0.02, num_steps, dtype=np.float64) * (1000 / num_steps)
    signal = np.cos((np.linspace(0, 1, num_steps + 1) + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - signal[1:] / signal[:-1], _MAX_BETA)


def respace(respacing: str, num_steps: int) -> tuple[int, ...]:
    """The kept ones of `num_steps` steps, rising; see `Process`.

    Raises:
      ConfigError: no such spelling, or more steps than there are.
    """
    if not respacing:
        return tuple(range(num_steps))
    if respacing.startswith("ddim"):
        wanted = _counts(respacing.removeprefix("ddim"), respacing)[0]
        for stride in range(1, num_steps):
            if len(range(0, num_steps, stride)) == wanted:
                return tuple(range(0, num_steps, stride))
        raise ConfigError(f"respacing={respacing!r}: no constant stride gives {wanted} of {num_steps} steps")
    return _sections(_counts(respacing, respacing), num_steps, respacing)


def _counts(text: str, respacing: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"respacing={respacing!r} must be '', 'N', 'A,B,C' or 'ddimN'") from None


def _sections(counts: list[int], num_steps: int, respacing: str) -> tuple[int, ...]:
    kept, start = [], 0
    for index, count in enumerate(counts):
        size = num_steps // len(counts) + (index < num_steps % len(counts))
        if not 1 <= count <= size:
            raise ConfigError(f"respacing={respacing!r} wants {count} steps of a section of {size}")
        stride, position = ((size - 1) / (count - 1) if count > 1 else 1.0), 0.0
        for _ in range(count):  # accumulated, as the reference does: a product rounds differently
            kept.append(start + round(position))
            position += stride
        start += size
    return tuple(kept)


def make_tables(betas: Float[np.ndarray, "s"], kept: Int[np.ndarray, "t"]) -> Tables:
    """The tables of the process that visits the `kept` steps alone; its marginals are those of the base process."""
    signal = np.cumprod(1 - betas)[kept]
    before = np.concatenate([[1.0], signal[:-1]])
    betas = 1 - signal / before
    alphas = 1 - betas
    signal = np.cumprod(alphas)
    before = np.concatenate([[1.0], signal[:-1]])
    variance = betas * (1 - before) / (1 - signal)
    return Tables(
        timesteps=kept.astype(np.int32),
        betas=betas,
        log_betas=np.log(betas),
        alphas_cumprod=signal,
        sqrt_alphas_cumprod=np.sqrt(signal),
        sqrt_one_minus_alphas_cumprod=np.sqrt(1 - signal),
        sqrt_recip_alphas_cumprod=np.sqrt(1 / signal),
        sqrt_recipm1_alphas_cumprod=np.sqrt(1 / signal - 1),
        posterior_log_variance_clipped=np.log(np.concatenate([variance[1:2], variance[1:]])),
        posterior_mean_coef1=betas * np.sqrt(before) / (1 - signal),
        posterior_mean_coef2=(1 - before) * np.sqrt(alphas) / (1 - signal),
    )
