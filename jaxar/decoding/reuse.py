"""Keys and values that masked decoding keeps from step to step, so that a step costs less the fewer tokens are left.

All tokens attend one another, so every token that is decided changes what the network computes for all others. Reuse
neglects that for old ones: a step computes the tokens that are masked, and those that were decided in the step before,
whose keys and values are those of masks. The others stay as they were computed last. Every `refresh_every`-th step,
the first one included, computes everything.

This is exact if every step computes everything, and for keys and values that depend on their own token alone, as those
of a network's first layer do. Everywhere else it is an approximation. How many tokens a step computes is static
(`Segment.due`) and follows from the table of how many are masked.

Reference: Hu et al., Accelerating Diffusion Language Model Inference via Efficient KV Caching and Guided Diffusion,
2025. Difference: they keep what lies before the block under way, here each token is kept by itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.decoding import masked
from jaxar.decoding.mask_schedules import Segment
from jaxar.typing import Array, Bool, Int


def check(refresh_every: int | None) -> None:
    """Refuses numbers of steps below 1; None stands for no reuse.

    Raises:
      ConfigError: that.
    """
    if refresh_every is not None and refresh_every < 1:
        raise ConfigError(f"sample.refresh_every={refresh_every} must be at least 1; None reuses nothing")


class Memory(NamedTuple):
    """`State.extra` of a law with reuse; under guidance its batch is doubled.

    Attributes:
      cache: the network's.
      settled: [b n], tokens that were known when their keys and values were computed.
    """

    cache: Any
    settled: Bool[Array, "b n"]


Compute = Callable[[masked.State, Segment], tuple[Any, Any]]  # (state, segment) -> (result, new cache)


def begin(cache: Any, batch: int, num_tokens: int) -> Memory:
    """Before the first step."""
    return Memory(cache, jnp.zeros((batch, num_tokens), bool))


def due(state: masked.State, segment: Segment) -> tuple[Int[Array, "b m"], Bool[Array, "b m"]]:
    """The positions that a step has to compute, padded to `segment.due` by settled ones, and which are no padding."""
    return masked.positions_of(~state.extra.settled, segment.due)


def asked(state: masked.State, segment: Segment) -> Int[Array, "b m"]:
    """The same positions without those of null samples, for `masked.token_law`."""
    return due(state, segment)[0][: len(state.known)]


def alternating(
    whole: Compute, part: Compute, refresh_every: int
) -> Callable[[masked.State, Int[Array, ""], Segment], tuple[Any, Memory]]:
    """(state, step, segment) -> (result, new memory): of `whole` in every so many steps, else of `part`.

    Args:
      whole, part: see the state with its memory; both results have one shape, and so have the caches.
    """

    def compute(state: masked.State, step: Int[Array, ""], segment: Segment) -> tuple[Any, Memory]:
        refresh = step % refresh_every == 0
        result, cache = jax.lax.cond(refresh, lambda s: whole(s, segment), lambda s: part(s, segment), state)
        return result, Memory(cache, state.known)

    return compute
