"""Decoding with a model that gives both independent and joint laws of the next tokens: it drafts for itself.

A round takes two calls. The first draws a few tokens independently, each given only what is decided. The second gives
each of them its law given the drafts before it, and accepts or replaces them as speculative sampling does, so that the
result follows the joint law exactly. The first draft is always right, for it was drawn from its own law, so a round
decides at least two tokens, and there are never more calls than tokens.

Reference: Guo, Ermon, Reviving Any-Subset Autoregressive Models with Principled Parallel Sampling and Speculative
Decoding, 2025, Alg. 1; Leviathan et al., Fast Inference from Transformers via Speculative Decoding, 2023.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxar.decoding import logits as lg
from jaxar.decoding.masked import fold, fold_positions
from jaxar.typing import Array, Float, Int, Keys, typechecked

Conditionals = Callable[[Int[Array, "b n"], Int[Array, "b k"], Int[Array, "b k"]], Float[Array, "b k v"]]
"""(ids, ranks, seen) -> logits of the tokens of `ranks`, each given the first `seen` of `ids`."""


class Progress(NamedTuple):
    """A batch under way.

    Attributes:
      ids: [b n] in the order of ranks; what lies beyond `decided` has no meaning.
      decided: [b], tokens decided.
      calls: [b], calls of the network that each sample needed.
    """

    ids: Int[Array, "b n"]
    decided: Int[Array, "b"]
    calls: Int[Array, "b"]


@typechecked
def speculate(
    conditionals: Conditionals,
    ids: Int[Array, "b n"],
    decided: Int[Array, "b"],
    keys: Keys,
    draft: int,
    options: lg.Sampling,
) -> tuple[Int[Array, "b n"], Int[Array, "b"]]:
    """Draws all tokens that are not decided from the product of their conditionals in the order of ranks.

    Args:
      conditionals: guided logits.
      ids: in the order of ranks, read below `decided`.
      keys: one per sample.
      draft: tokens drafted per round; 1 is sequential decoding.
      options: temperature, top-k, top-p or greedy choice; the conditionals are those after filtering.
    Returns:
      Ids, and the calls that each sample needed: at most as many as there were tokens to decide.
    """
    start = Progress(ids, decided, jnp.zeros_like(decided))

    def round_of(progress: Progress) -> Progress:
        return _round(conditionals, progress, keys, draft, options)

    last = jax.lax.while_loop(lambda progress: jnp.any(progress.decided < ids.shape[1]), round_of, start)
    return last.ids, last.calls


def _round(conditionals: Conditionals, progress: Progress, keys: Keys, draft: int, options: lg.Sampling) -> Progress:
    ids, decided, calls = progress
    n = ids.shape[1]
    ranks = decided[:, None] + jnp.arange(draft)
    asked = jnp.minimum(ranks, n - 1)
    drafted = jnp.minimum(draft, n - decided)
    keys = jax.vmap(jax.random.fold_in)(keys, decided)
    draft_keys, accept_keys, replace_keys = (fold_positions(fold(keys, i), draft) for i in range(3))

    log_p = _log_law(conditionals(ids, asked, jnp.broadcast_to(decided[:, None], asked.shape)), options)
    drafts = _draw(draft_keys, log_p)
    rows = jnp.arange(len(ids))[:, None]
    proposed = ids.at[rows, ranks].set(drafts, mode="drop")
    if draft == 1:
        return Progress(proposed, decided + drafted, calls + drafted)

    log_q = _log_law(conditionals(proposed, asked, asked), options)
    accepted = _accepted(log_p, log_q, drafts, accept_keys)
    replaced = _draw(replace_keys, _residual(log_p, log_q))
    tokens = jnp.where(jnp.arange(draft) < accepted[:, None], drafts, replaced)
    advance = jnp.minimum(accepted + 1, drafted)
    calls = calls + jnp.minimum(drafted, 2)
    return Progress(ids.at[rows, ranks].set(tokens, mode="drop"), decided + advance, calls)


def _log_law(logits: Float[Array, "b k v"], options: lg.Sampling) -> Float[Array, "b k v"]:
    logits = lg.filtered(logits, options)
    if options.greedy:
        best = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
        logits = jnp.where(best, 0.0, -jnp.inf)
    return jax.nn.log_softmax(logits, axis=-1)


def _draw(keys: Array, log_probs: Float[Array, "b k v"]) -> Int[Array, "b k"]:
    return jax.vmap(jax.vmap(jax.random.categorical))(keys, log_probs)


def _accepted(log_p: Array, log_q: Array, drafts: Int[Array, "b k"], keys: Array) -> Int[Array, "b"]:
    """How many drafts stay: all before the first one with u >= q / p. The first one's laws are the same."""
    p, q = (jnp.take_along_axis(x, drafts[..., None], axis=-1)[..., 0] for x in (log_p, log_q))
    stays = jnp.log(jax.vmap(jax.vmap(jax.random.uniform))(keys)) < q - p
    return jnp.sum(jnp.cumprod(stays.at[:, 0].set(True), axis=1), axis=1)


def _residual(log_p: Float[Array, "b k v"], log_q: Float[Array, "b k v"]) -> Float[Array, "b k v"]:
    """Logarithm of max(q - p, 0), not normalised; q where rounding leaves nothing of the difference."""
    rest = jnp.maximum(jnp.exp(log_q) - jnp.exp(log_p), 0)
    return jnp.where(jnp.any(rest > 0, axis=-1, keepdims=True), jnp.log(rest), log_q)
