"""Autoregressive loops over an `extend` function: next token (or block of tokens), and next scale.

`extend` advances a sequence: it takes the newest inputs and a state (a key-value cache, or whatever a toy needs), and
returns logits and the new state. The loops know nothing else about the network, and the whole loop is one program.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.decoding import logits as lg
from jaxar.typing import Array, Float, Int, Keys

State = Any
Draw = Callable[[Float[Array, "b t v"], Keys, Int[Array, "t"]], Int[Array, "b t"]]
"""(guided logits, keys of the samples, positions) -> ids; `logits.draw` with options, or any other rule."""


class Extend(Protocol):
    """(inputs, step, state, *static) -> (logits [b t v], state).

    `inputs` are what step `step` reads, with leading axis b. Under `guided` the batch is doubled, conditional samples
    first.
    """

    def __call__(
        self, inputs: Any, step: Int[Array, ""] | int, state: State, *static: Any
    ) -> tuple[Float[Array, "b t v"], State]: ...


def guided(extend: Extend, scales: np.ndarray) -> Extend:
    """Classifier-free guidance around an `extend` over a doubled batch: conditional samples first, then null ones.

    Args:
      scales: of each step; if none differs from 1 the result is `extend` itself, over a batch that is not doubled.
    """
    if not lg.is_guided(scales):
        return extend
    table = jnp.asarray(scales)

    def both(inputs: Any, step: Int[Array, ""] | int, state: State, *static: Any) -> tuple[Array, State]:
        doubled = jax.tree.map(lambda x: jnp.concatenate([x, x]), inputs)
        logits, state = extend(doubled, step, state, *static)
        cond, uncond = jnp.split(logits, 2)
        return lg.guide(cond, uncond, table[step]), state

    return both


def next_token(
    extend: Extend,
    start: Any,
    state: State,
    keys: Keys,
    num_steps: int,
    draw: Draw,
    segments: int = 1,
    first: int = 0,
) -> Int[Array, "b n"]:
    """Draws token after token, or block after block where `extend` gives logits for several tokens at once.

    Args:
      extend: (ids [b t] or `start`, step, state, stop) -> (logits [b t v], state); `stop` is a static bound on the
        number of steps done after this one, so that a cache need not be read further than it is filled.
      start: what the first step reads in place of ids (a condition); None is fine.
      state: before the first step.
      keys: one per sample.
      num_steps: where the steps end.
      segments: pieces of the loop, each with its own `stop`; more of them read less and compile longer.
      first: number of the first step; those before are what `start` or `state` stands for.
    Returns:
      n = (num_steps - first) t ids.
    """

    def choose(logits: Array, step: Int[Array, ""] | int) -> Int[Array, "b t"]:
        count = logits.shape[1]
        return draw(logits, keys, step * count + jnp.arange(count))

    stops = [first + stop for stop in segment_stops(num_steps - first, segments)]
    logits, state = extend(start, first, state, stops[0])
    ids = choose(logits, first)
    pieces, done = [ids], first + 1
    for stop in stops:

        def advance(carry: tuple[Array, State], step: Int[Array, ""], stop: int = stop) -> tuple[Any, Array]:
            logits, state = extend(carry[0], step, carry[1], stop)
            ids = choose(logits, step)
            return (ids, state), ids

        (ids, state), drawn = jax.lax.scan(advance, (ids, state), jnp.arange(done, stop))
        pieces.append(jnp.moveaxis(drawn, 0, 1).reshape(ids.shape[0], (stop - done) * ids.shape[1]))
        done = stop
    return jnp.concatenate(pieces, axis=1)


def segment_stops(num_steps: int, segments: int) -> tuple[int, ...]:
    """Ends of `segments` pieces of nearly equal length that cover the steps; fewer if there are fewer steps."""
    segments = min(segments, num_steps)
    return tuple(math.ceil(num_steps * (i + 1) / segments) for i in range(segments))


NextInput = Callable[[int, Any, Int[Array, "b t"]], tuple[Any, Any]]
Refine = Callable[[int, Any, Float[Array, "b t v"], Int[Array, "b t"]], Int[Array, "b t"]]


def next_scale(
    extend: Extend,
    next_input: NextInput,
    canvas: Any,
    state: State,
    keys: Keys,
    scale_lengths: tuple[int, ...],
    draw: Draw,
    refine: Refine | None = None,
) -> tuple[Int[Array, "b n"], Any]:
    """Draws scale after scale, all tokens of a scale at once and independently of one another.

    Args:
      extend: (inputs, scale, state) -> (logits [b t v], state); `inputs` is None at the first scale, and `scale` is a
        Python integer: every scale is its own piece of the program.
      next_input: (scale, canvas, ids [b t]) -> (canvas, inputs of the next scale).
      canvas: what the scales are added to (VAR's f_hat), before the first.
      keys: one per sample.
      scale_lengths: tokens of each scale.
      refine: (scale, inputs, guided logits, ids drawn from them) -> ids of the scale, before the next one is looked at;
        None leaves them as they are.
    Returns:
      n = sum(scale_lengths) ids, coarse to fine, and the final canvas.

    Reference: Tian et al., Visual Autoregressive Modeling: Image Generation via Next-Scale Prediction, 2024, Sec. 3.2.
    """
    inputs, pieces, begin = None, [], 0
    for scale, length in enumerate(scale_lengths):
        logits, state = extend(inputs, scale, state)
        ids = draw(logits, keys, begin + jnp.arange(length))
        ids = ids if refine is None else refine(scale, inputs, logits, ids)
        canvas, inputs = next_input(scale, canvas, ids)
        pieces.append(ids)
        begin += length
    return jnp.concatenate(pieces, axis=1), canvas
