"""What samplers did: guided logits, every step of masked decoding; and options in the official spelling."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.decoding import masked
from jaxar.decoding.mask_schedules import Segment
from jaxar.diffusion.process import Process
from jaxar.typing import Array, Float, Int, Keys


def guided(cond: Float[Array, "b n v"], null: Float[Array, "b n v"], scales: np.ndarray) -> Float[Array, "b n v"]:
    """Guided logits of all tokens, each with its own scale [n]."""
    return jax.vmap(lg.guide, in_axes=(1, 1, 0), out_axes=1)(cond, null, jnp.asarray(scales))


def keys(count: int) -> Keys:
    """Keys of greedy samples, which draw nothing."""
    return jax.vmap(jax.random.key)(jnp.arange(count))


def masked_steps(
    law: masked.Law,
    state: masked.State,
    keys: Keys,
    segments: tuple[Segment, ...],
    choose: masked.Choose = masked.all_masked,
    keep: masked.Keep = masked.all_drawn,
) -> list[tuple[masked.State, masked.Drawn, masked.State]]:
    """What `masked.decode` does: for each step the state before it, what was drawn, and the state after it."""
    taken = []
    for segment in segments:

        @jax.jit
        def advance(state: masked.State, step: Int[Array, ""], segment: Segment = segment) -> tuple:
            return masked.advance(law, state, step, keys, segment, choose, keep)

        for step in range(len(taken), segment.stop):
            after, drawn = advance(state, jnp.int32(step))
            taken.append((state, drawn, after))
            state = after
    return taken


def process(base_steps: int, noise_schedule: str, respacing: str) -> Process:
    """A diffusion process in the official spelling."""
    return Process(noise_schedule, base_steps, respacing)


def require_greedy(draw: str) -> None:
    """Random draws of other libraries cannot be repeated."""
    if draw != "argmax":
        raise ConfigError(f"draw={draw!r} cannot be recomputed; only 'argmax' can")
