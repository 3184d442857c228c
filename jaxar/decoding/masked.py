"""Masked decoding: tokens start masked, and every step decides some of them until none is left.

One loop serves every masked method. What differs is given as functions:

* `Law`: draws tokens for masked positions given the known ones; discrete tokens from logits (`token_law`), continuous
  ones from a diffusion head. The loop knows nothing else about the network.
* `Choose`: which masked positions are drawn in a step, before anything is drawn: `all_masked` (MaskGIT), or the next
  ones of an order that is fixed in advance (`next_in_order`: MAR, any-order models, one token after another).
* `Keep`: which drawn tokens stay: `all_drawn`, or the most confident ones (`most_confident`).
* how many: a table of `mask_schedules`, which the rules above read through `Remaining`; or any function of that form.

With one token per step in an order that does not depend on the draws, the samples follow the product of the model's own
conditionals in that order. Several tokens of one step are independent given the known ones.

Randomness: one key per sample, folded with the step, then with what is drawn (choice, token, confidence), then with the
position. A sample depends on nothing else in its batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.decoding import logits as lg
from jaxar.decoding.mask_schedules import Segment, unbounded
from jaxar.typing import Array, Bool, Float, Int, Keys, Shaped, typechecked

_ORDER = 2**32 - 1  # a stream of random numbers that no step uses


class State(NamedTuple):
    """A batch under way.

    Attributes:
      tokens: ids [b n] or latents [b n c]; what stands at masked positions has no meaning.
      known: [b n], True where a token is decided.
      extra: whatever a law carries from step to step (a cache); None if nothing.
    """

    tokens: Shaped[Array, "b n *c"]
    known: Bool[Array, "b n"]
    extra: Any = None


class Drawn(NamedTuple):
    """What a law draws in one step.

    Attributes:
      tokens: as in `State`; only chosen positions are read.
      log_prob: [b n], logarithm of the probability (or a confidence of any kind) of each; None if there is none.
      extra: the new `State.extra`.
    """

    tokens: Shaped[Array, "b n *c"]
    log_prob: Float[Array, "b n"] | None = None
    extra: Any = None


class Law(Protocol):
    """(state, chosen [b n], step, keys [b], segment) -> Drawn, at least at the chosen positions.

    `keys` belong to this step; a draw folds in its position. `segment` holds static bounds: on the known tokens, and on
    the chosen ones if `Choose` follows the table that the segments were made from.
    """

    def __call__(
        self, state: State, chosen: Bool[Array, "b n"], step: Int[Array, ""], keys: Keys, segment: Segment
    ) -> Drawn: ...


Choose = Callable[[Bool[Array, "b n"], Int[Array, ""], Keys], Bool[Array, "b n"]]  # (masked, step, keys) -> chosen
Keep = Callable[[Drawn, Bool[Array, "b n"], Int[Array, ""], Keys], Bool[Array, "b n"]]  # (drawn, chosen, step, keys)
Remaining = Callable[[Int[Array, "b"], Int[Array, ""], Keys], Int[Array, "b"]]  # (masked before, step, keys) -> after


def all_masked(masked: Bool[Array, "b n"], step: Int[Array, ""], keys: Keys) -> Bool[Array, "b n"]:
    """The rule `Choose` that draws every masked position."""
    return masked


def all_drawn(drawn: Drawn, chosen: Bool[Array, "b n"], step: Int[Array, ""], keys: Keys) -> Bool[Array, "b n"]:
    """The rule `Keep` that keeps every chosen position."""
    return chosen


def decode(
    law: Law,
    state: State,
    keys: Keys,
    segments: tuple[Segment, ...],
    choose: Choose = all_masked,
    keep: Keep = all_drawn,
    stop_early: bool = False,
) -> State:
    """Runs all steps; one compiled loop per segment.

    Args:
      state: before step 0; tokens that are known there never change.
      keys: one per sample.
      segments: from `mask_schedules.segments`; the last one ends at the number of steps.
      stop_early: leave the loop once the whole batch is known, for rules that may decide more than the table.
    Returns:
      The state after the last step. Everything is known then if the rules decide everything, as those made from tables
      do.
    """
    first = 0
    for segment in segments:

        def step_in(state: State, step: Int[Array, ""], segment: Segment = segment) -> tuple[State, None]:
            return advance(law, state, step, keys, segment, choose, keep)[0], None

        if stop_early:
            state = _while_masked(lambda state, step: step_in(state, step)[0], state, first, segment.stop)
        else:
            state, _ = jax.lax.scan(step_in, state, jnp.arange(first, segment.stop))
        first = segment.stop
    return state


def refine(
    law: Law, first: Drawn, known: Bool[Array, "b n"], keys: Keys, counts: Int[np.ndarray, "k n_plus_1"]
) -> State:
    """Goes on from a draw of all tokens: the most confident ones stay, the others are drawn anew, and so on.

    Args:
      law: of the steps after the first.
      first: what the first step drew, by whatever law; the law sees it at masked positions until they are decided.
      known: what was given before the first step.
      counts: tokens that are masked after each step, the first one included; `mask_schedules` makes such tables.
    """
    confident = [most_confident(by_table(part, known), np.zeros(len(part))) for part in (counts[:1], counts[1:])]
    kept = confident[0](first, ~known, jnp.int32(0), keys)
    state = State(first.tokens, known | kept, first.extra)
    return decode(law, state, keys, (unbounded(len(counts) - 1, known.shape[1]),), keep=confident[1])


def _while_masked(step_in: Callable[[State, Int[Array, ""]], State], state: State, first: int, stop: int) -> State:
    def unfinished(carry: tuple[State, Int[Array, ""]]) -> Bool[Array, ""]:
        return (carry[1] < stop) & ~jnp.all(carry[0].known)

    def following(carry: tuple[State, Int[Array, ""]]) -> tuple[State, Int[Array, ""]]:
        return step_in(*carry), carry[1] + 1

    return jax.lax.while_loop(unfinished, following, (state, jnp.asarray(first)))[0]


def advance(
    law: Law,
    state: State,
    step: Int[Array, ""],
    keys: Keys,
    segment: Segment,
    choose: Choose = all_masked,
    keep: Keep = all_drawn,
) -> tuple[State, Drawn]:
    """One step: choose, draw, keep."""
    step_keys = fold(keys, step)
    choose_keys, draw_keys, keep_keys = (fold(step_keys, i) for i in range(3))
    chosen = choose(~state.known, step, choose_keys)
    drawn = law(state, chosen, step, draw_keys, segment)
    kept = keep(drawn, chosen, step, keep_keys) & ~state.known
    tokens = jnp.where(jnp.expand_dims(kept, range(2, state.tokens.ndim)), drawn.tokens, state.tokens)
    return State(tokens, state.known | kept, drawn.extra), drawn


def fold(keys: Keys, number: Int[Array, ""] | int) -> Keys:
    """Each key folded with the same number."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


@typechecked
def fold_positions(keys: Keys, count: int) -> Shaped[Array, "b n"]:
    """Each key folded with the positions 0..count-1: one key per token."""
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys, jnp.arange(count))


def by_table(counts: Int[np.ndarray, "k n_plus_1"], known: Bool[Array, "b n"]) -> Remaining:
    """The number of masked tokens after each step, from a table of `mask_schedules.masked_counts`.

    Args:
      known: before step 0; it says which column of the table a sample follows.
    """
    after = jnp.asarray(counts)[:, jnp.sum(~known, axis=1)]
    return lambda masked, step, keys: after[step]


@typechecked
def random_priority(keys: Keys, count: int) -> Float[Array, "b n"]:
    """A uniformly random order of the positions for each sample, for `next_in_order`."""
    return jax.vmap(jax.vmap(jax.random.uniform))(fold_positions(fold(keys, _ORDER), count))


def next_in_order(priority: Float[Array, "b n"], remaining: Remaining) -> Choose:
    """The rule that takes masked positions by falling priority, as many as `remaining` asks for."""

    def choose(masked: Bool[Array, "b n"], step: Int[Array, ""], keys: Keys) -> Bool[Array, "b n"]:
        total = jnp.sum(masked, axis=1)
        return largest(jnp.where(masked, priority, -jnp.inf), total - remaining(total, step, keys))

    return choose


def steps_at(priority: Float[Array, "b n"], levels: np.ndarray | Float[Array, "k"]) -> Int[Array, "b n"]:
    """The step in which a falling level passes each priority; arguments as for `at_levels`."""
    return jnp.sum(priority[..., None] <= jnp.asarray(levels[:-1], priority.dtype), axis=-1)


def at_levels(
    priority: Float[Array, "b n"], levels: np.ndarray | Float[Array, "k"], known: Bool[Array, "b n"]
) -> Choose:
    """The rule that takes a masked position when a falling level passes its priority, without idle steps.

    With uniform priorities this is the ancestral sampler of masked diffusion whose share of masked tokens is
    `levels[k]` after step k: each masked token is decided in step k with probability 1 - levels[k] / levels[k-1]. When
    a token is decided does not depend on the tokens, so it is known beforehand, and steps in which a sample decides
    nothing are left out: min(K, n) steps of the loop are enough for any K.

    Args:
      priority: in [0, 1), from `random_priority`.
      levels: [K], falling from below 1 to 0.
      known: before the first step.
    """
    step_of = steps_at(priority, levels)
    rows = jnp.arange(len(priority))[:, None]
    busy = jnp.zeros((len(priority), len(levels)), jnp.int32).at[rows, step_of].max((~known).astype(jnp.int32))
    turn = jnp.take_along_axis(jnp.cumsum(busy, axis=1) - 1, step_of, axis=1)
    return lambda masked, step, keys: masked & (turn == step)


def most_confident(remaining: Remaining, noise: np.ndarray) -> Keep:
    """The rule that keeps the drawn tokens of largest log p + noise_k g, with g standard Gumbel noise.

    Args:
      remaining: how many tokens are masked after a step.
      noise: [num_steps], the weight of the noise in each step; infinity orders at random, 0 by confidence alone.

    Reference: Chang et al., MaskGIT: Masked Generative Image Transformer, 2022, Sec. 3.2; the published code adds noise
    whose weight is T (1 - (k + 1) / K).
    """
    table = jnp.asarray(noise, jnp.float32)

    def keep(drawn: Drawn, chosen: Bool[Array, "b n"], step: Int[Array, ""], keys: Keys) -> Bool[Array, "b n"]:
        total = jnp.sum(chosen, axis=1)
        gumbel = jax.vmap(jax.vmap(jax.random.gumbel))(fold_positions(keys, chosen.shape[1]))
        weight = table[step]
        finite = drawn.log_prob + jnp.where(jnp.isinf(weight), 0, weight) * gumbel
        confidence = jnp.where(jnp.isinf(weight), gumbel, finite)
        return largest(jnp.where(chosen, confidence, -jnp.inf), total - remaining(total, step, keys))

    return keep


def confident(keep: Keep, threshold: float) -> Keep:
    """The rule that keeps every token drawn with a probability above `threshold`, and follows `keep` if there is none.

    In a step in which `keep` would keep everything, everything stays. For `decode` with `stop_early`.

    Args:
      threshold: of exp(`Drawn.log_prob`); 0 finishes in one step, 1 leaves the decisions to `keep`.

    Reference: Yu et al., Dimple: Discrete Diffusion Multimodal Large Language Model with Parallel Decoding, 2025.
    """

    def rule(drawn: Drawn, chosen: Bool[Array, "b n"], step: Int[Array, ""], keys: Keys) -> Bool[Array, "b n"]:
        sure = chosen & (jnp.exp(drawn.log_prob) > threshold)
        usual = keep(drawn, chosen, step, keys)
        alone = jnp.any(sure, axis=1) & ~jnp.all(usual == chosen, axis=1)
        return jnp.where(alone[:, None], sure, usual)

    return rule


def at_least_one(remaining: Remaining) -> Remaining:
    """As `remaining`, but fewer than before while there are any: for samples that are ahead of their table."""
    return lambda masked, step, keys: jnp.clip(remaining(masked, step, keys), 0, jnp.maximum(masked - 1, 0))


@typechecked
def largest(scores: Float[Array, "b n"], count: Int[Array, "b"]) -> Bool[Array, "b n"]:
    """Marks exactly `count` largest scores of each row; of equal ones the first come first."""
    order = jnp.argsort(-scores, axis=1, stable=True)
    return jnp.argsort(order, axis=1) < count[:, None]


@typechecked
def positions_of(chosen: Bool[Array, "b n"], most: int) -> tuple[Int[Array, "b m"], Bool[Array, "b m"]]:
    """The chosen positions in rising order, padded to `most` by other positions, and which of them are chosen.

    For laws that compute the chosen tokens alone: gather, draw, and scatter back.
    """
    positions = jnp.argsort(~chosen, axis=1, stable=True)[:, :most]
    return positions, jnp.take_along_axis(chosen, positions, axis=1)


Predict = Callable[[State, Int[Array, ""], Segment], tuple[Float[Array, "b m v"], Any]]
"""(state, step, segment) -> (logits of every position, or of some, and the new `State.extra`)."""

Asked = Callable[[State, Segment], Int[Array, "b m"]]  # the positions of whose tokens a `Predict` gives logits


def token_law(
    predict: Predict,
    options: lg.Sampling,
    exact: bool = False,
    unfiltered: bool = False,
    asked: Asked | None = None,
) -> Law:
    """The law of discrete tokens: softmax of logits after temperature, top-k and top-p, each position by itself.

    Args:
      predict: guided logits; see `guided`.
      exact: as in `logits.draw`.
      unfiltered: `Drawn.log_prob` is the model's own, before temperature, top-k and top-p.
      asked: the positions that the logits are of, all chosen ones among them; None for every position in order.
    """
    plain = lg.Sampling(greedy=options.greedy)

    def law(state: State, chosen: Bool[Array, "b n"], step: Int[Array, ""], keys: Keys, segment: Segment) -> Drawn:
        own, extra = predict(state, step, segment)
        logits = lg.filtered(own, options)
        positions = jnp.arange(logits.shape[1]) if asked is None else asked(state, segment)
        ids = lg.draw(logits, keys, positions, plain, exact)
        log_prob = lg.log_prob(own if unfiltered else logits, ids)
        if asked is not None:
            rows = jnp.arange(len(ids))[:, None]
            ids = state.tokens.at[rows, positions].set(ids)
            log_prob = jnp.zeros(state.known.shape).at[rows, positions].set(log_prob)
        return Drawn(ids, log_prob, extra)

    return law


def guided(predict: Predict, scales: np.ndarray) -> Predict:
    """Classifier-free guidance around a `predict` over a doubled batch: conditional samples first, then null ones.

    `State.extra` belongs to the doubled batch.

    Args:
      scales: of each step; if none differs from 1 the result is `predict` itself, over a batch that is not doubled.
    """
    if not lg.is_guided(scales):
        return predict
    table = jnp.asarray(scales)

    def both(state: State, step: Int[Array, ""], segment: Segment) -> tuple[Float[Array, "b m v"], Any]:
        tokens, known = (jnp.concatenate([x, x]) for x in (state.tokens, state.known))
        logits, extra = predict(State(tokens, known, state.extra), step, segment)
        cond, uncond = jnp.split(logits, 2)
        return lg.guide(cond, uncond, table[step]), extra

    return both
