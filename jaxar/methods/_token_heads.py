"""How a small network draws a continuous token from the vector of its position: by diffusion or by flow matching.

Both see rows: r tokens x [r c] with conditions z [r d], and the network as a function (x, t, z) -> output. Guided
sampling gives z of the conditional rows, then of the null ones; both halves see the same x.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.diffusion import ddpm, flow
from jaxar.diffusion.process import Process, Schedule, Tables
from jaxar.typing import Array, Float, Int, Key

Denoise = Callable[[Float[Array, "r c"], Float[Array, "r"], Float[Array, "r d"]], Float[Array, "r o"]]
_FLOW_TIME = 1000  # the time that the network sees at t = 1, so that both heads use the same range of frequencies


@dataclasses.dataclass(frozen=True)
class Steps:
    """Steps of the head in each of the transformer's steps.

    Attributes:
      first: their number, or for diffusion a respacing as in `Process` ("ddim20").
      last: steps at the transformer's last step, to which they fall from the first; None for no annealing.
      annealing: how they fall: along a line, along half a cosine, or at once after the first half ("two_stage").
      start: the noisiest diffusion step that is used, None for the last one. DiSA starts at 950 of 1000.
      temperature: multiplies the noise of every diffusion step, or the starting noise of a flow.

    Reference: Zhao et al., DiSA: Diffusion Step Annealing in Autoregressive Image Generation, 2025.
    """

    first: int | str = 100
    last: int | None = None
    annealing: Literal["linear", "cosine", "two_stage"] = "linear"
    start: int | None = None
    temperature: float = 1.0

    def __post_init__(self):
        if self.last is not None and not (isinstance(self.first, int) and 2 <= self.last <= self.first):
            raise ConfigError(
                f"sample.head.last={self.last} anneals from sample.head.first={self.first!r}, which must be a number "
                "that is not smaller; None switches annealing off"
            )
        if self.temperature < 0:
            raise ConfigError(f"sample.head.temperature={self.temperature} must be at least 0")

    def counts(self, num_steps: int) -> tuple[int, ...]:
        """Steps of the head in each of the transformer's `num_steps` steps; `first` must be a number."""
        last, rest = self.first if self.last is None else self.last, max(num_steps - 1, 1)
        fall = self.first - last
        if self.annealing == "linear":
            return tuple(last + (rest - k) * fall // rest for k in range(num_steps))
        if self.annealing == "cosine":
            return tuple(last + math.floor((1 + math.cos(math.pi * k / rest)) / 2 * fall) for k in range(num_steps))
        return tuple(self.first if 2 * k < rest else last for k in range(num_steps))


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """The head predicts noise and variance of a diffusion process with `base_steps` steps."""

    schedule: Schedule = "cosine"
    base_steps: int = 1000

    def output_channels(self, channels: int) -> int:
        return 2 * channels

    def draw_times(self, key: Key, shape: tuple[int, ...]) -> Int[Array, "*n"]:
        return jax.random.randint(key, shape, 0, self.base_steps)

    def losses(
        self, denoise: Denoise, x: Float[Array, "r c"], z: Float[Array, "r d"], t: Int[Array, "r"], noise: Array
    ) -> dict[str, Float[Array, "r"]]:
        """The terms "mse" and "vb", whose sum is the loss."""
        tables = Process(self.schedule, self.base_steps).tables
        output = denoise(ddpm.add_noise(tables, x, t, noise), t.astype(jnp.float32), z)
        return ddpm.training_terms(tables, x, t, noise, output)._asdict()

    def sample(
        self,
        denoise: Denoise,
        z: Float[Array, "all d"],
        start: Float[Array, "r c"],
        noise: ddpm.Noise,
        scale: Float[Array, "r 1"] | None,
        steps: Steps,
        step: Int[Array, ""],
        num_steps: int,
    ) -> Float[Array, "r c"]:
        """Tokens drawn at the transformer's step `step` of `num_steps`; `scale` is the guidance, None for none."""

        def predict(x: Array, t: Array) -> Array:
            t = t.astype(jnp.float32)
            if scale is None:
                return denoise(x, t, z)
            return ddpm.guided(denoise(_twice(x), _twice(t), z), scale)

        tables, count = self._tables(steps, step, num_steps)
        return ddpm.sample(tables, predict, start, noise, steps.temperature, num_steps=count)

    def _tables(self, steps: Steps, step: Int[Array, ""], num_steps: int) -> tuple[Tables, Int[Array, ""] | None]:
        """The process of a step and its length; annealed processes are padded to the longest."""
        if steps.last is None:
            return self._process(steps.first, steps.start).tables, None
        counts = np.array(steps.counts(num_steps))
        tables = [self._process(count, steps.start).tables for count in counts]
        padded = [jax.tree.map(lambda row: np.resize(row, counts.max()), each) for each in tables]
        stacked = jax.tree.map(lambda *rows: jnp.asarray(np.stack(rows), _narrow(rows[0])), *padded)
        return jax.tree.map(lambda rows: rows[step], stacked), jnp.asarray(counts)[step]

    def check(self, steps: Steps) -> None:
        """Refuses steps that the process does not have."""
        self._process(steps.first, steps.start)

    def _process(self, respacing: int | str, start: int | None) -> Process:
        return Process(self.schedule, self.base_steps, str(respacing), start)


@dataclasses.dataclass(frozen=True)
class Flow:
    """The head predicts the velocity of straight paths from data to noise; Euler steps follow it back."""

    def output_channels(self, channels: int) -> int:
        return channels

    def draw_times(self, key: Key, shape: tuple[int, ...]) -> Float[Array, "*n"]:
        return jax.random.uniform(key, shape)

    def losses(
        self, denoise: Denoise, x: Float[Array, "r c"], z: Float[Array, "r d"], t: Float[Array, "r"], noise: Array
    ) -> dict[str, Float[Array, "r"]]:
        """The loss "mse"."""
        velocity = self.velocity(denoise, flow.interpolate(x, t, noise), z, t)
        return {"mse": flow.squared_error(x, noise, velocity)}

    def velocity(
        self, denoise: Denoise, x: Float[Array, "r c"], z: Float[Array, "r d"], t: Float[Array, "r"]
    ) -> Float[Array, "r c"]:
        """The expectation of noise - token, given tokens noised to the times t in [0, 1]."""
        return denoise(x, _FLOW_TIME * t, z)

    def sample(
        self,
        denoise: Denoise,
        z: Float[Array, "all d"],
        start: Float[Array, "r c"],
        noise: ddpm.Noise,
        scale: Float[Array, "r 1"] | None,
        steps: Steps,
        step: Int[Array, ""],
        num_steps: int,
    ) -> Float[Array, "r c"]:
        """As `Diffusion.sample`; nothing is drawn after the start."""

        def velocity(x: Array, t: Array) -> Array:
            if scale is None:
                return denoise(x, _FLOW_TIME * t, z)
            cond, null = jnp.split(denoise(_twice(x), _FLOW_TIME * _twice(t), z), 2)
            return null + scale * (cond - null)

        return flow.sample(velocity, steps.temperature * start, jnp.asarray(steps.counts(num_steps))[step])

    def check(self, steps: Steps) -> None:
        """Refuses what only a diffusion process knows."""
        if not isinstance(steps.first, int) or steps.first < 1 or steps.start is not None:
            raise ConfigError(
                f"sample.head.first={steps.first!r}, sample.head.start={steps.start}: a flow takes a positive number "
                "of steps and starts at noise; set start=None"
            )


def _twice(x: Array) -> Array:
    return jnp.concatenate([x, x])


def _narrow(row: np.ndarray) -> type:
    return np.int32 if row.dtype.kind == "i" else np.float32
