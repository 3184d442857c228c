"""Statistics of code use, and the guard that revives dead codes.

A tokenizer with a codebook keeps the untrained collection `code_use`:

* `frequencies` [s v]: how often each code is chosen at each scale, a running mean; rows sum to 1.
* `features` [v c], where codes can be revived: recent features, their seeds. It starts as the codebook itself, so that
  rows not yet replaced are valid codes.

Both are small and replicated. Counts are taken over the global batch, so the result does not depend on the mesh.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.tokenizers.base import TokenSpec
from jaxar.typing import Array, Float, Int, Key, Metrics, Params, Variables, typechecked

COLLECTION = "code_use"
# A code counts as used at a scale if its frequency there is at least this share of 1/v.
USED = 0.01

CodeUse = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class CodeGuard:
    """How code use is tracked and dead codes are revived.

    Attributes:
      decay: of the running frequencies, per training batch.
      revive_below: a code is dead, and replaced by a recent feature, once its running frequency is under this share of
        1/vocab_size; None never replaces any. Without any use it takes log(revive_below) / log(decay) batches.
    """

    decay: float = 0.99
    revive_below: float | None = 0.03

    def __post_init__(self):
        if not 0 < self.decay < 1:
            raise ConfigError(f"guard.decay={self.decay} of a tokenizer must lie in (0, 1)")
        if self.revive_below is not None and not 0 < self.revive_below < 1:
            raise ConfigError(
                f"guard.revive_below={self.revive_below} of a tokenizer must lie in (0, 1); None switches the guard off"
            )


DEFAULT_GUARD = CodeGuard()


class Observation(NamedTuple):
    """Figures of code use to log, and the collections after the batch ({} outside training)."""

    metrics: Metrics
    collections: dict[str, Any]


@typechecked
def create(codebook: Float[Array, "v c"], num_scales: int) -> CodeUse:
    """The initial statistics: all codes equally frequent, so that none is dead before it had a chance."""
    # A copy: the train step donates its state, and refuses to donate one buffer twice.
    return {**create_frequencies(codebook.shape[0], num_scales), "features": jnp.copy(codebook)}


def create_frequencies(vocab_size: int, num_scales: int) -> CodeUse:
    """The same for codes that are never revived."""
    return {"frequencies": jnp.full((num_scales, vocab_size), 1 / vocab_size)}


def initial(params: Params, spec: TokenSpec) -> CodeUse:
    """The initial statistics for a quantizer with these fresh parameters: a trained codebook among them is revived."""
    if "codebook" in params:
        return create(nn.meta.unbox(params["codebook"]), len(spec.scales))
    return create_frequencies(spec.vocab_size, len(spec.scales))


@typechecked
def frequencies(ids: Int[Array, "b n"], spec: TokenSpec) -> Float[Array, "s v"]:
    """How often each code occurs in `ids`, per scale; rows sum to 1."""
    lengths = np.asarray(spec.scale_lengths)
    scale_of_token = np.repeat(np.arange(len(lengths)), lengths)
    counts = jnp.zeros((len(lengths), spec.vocab_size)).at[scale_of_token, ids].add(1.0)
    return counts / (ids.shape[0] * lengths[:, None])


@typechecked
def pooled(frequency: Float[Array, "s v"], spec: TokenSpec) -> Float[Array, "v"]:
    """Frequencies over the tokens of all scales together."""
    lengths = np.asarray(spec.scale_lengths)
    return jnp.einsum("sv,s->v", frequency, lengths / lengths.sum())


@typechecked
def perplexity(frequency: Float[Array, "v"]) -> Float[Array, ""]:
    """exp(entropy) of a distribution over codes: the number of codes in effective use, from 1 to v."""
    return jnp.exp(jnp.sum(jax.scipy.special.entr(frequency)))


@typechecked
def metrics(frequency: Float[Array, "s v"], spec: TokenSpec) -> Metrics:
    """Share of codes used (0 to 1) and perplexity (1 to v), over all tokens and, with several scales, for each."""
    rows = {"": pooled(frequency, spec)}
    if spec.multiscale:
        rows |= {f"/{h}x{w}": row for (h, w), row in zip(spec.scales, frequency)}
    use = {f"code_use{name}": jnp.mean(row * row.shape[0] >= USED) for name, row in rows.items()}
    return use | {f"perplexity{name}": perplexity(row) for name, row in rows.items()}


@typechecked
def update(use: CodeUse, frequency: Float[Array, "s v"], features: Float[Array, "b n c"], decay: float) -> CodeUse:
    """The statistics after a batch.

    Args:
      use: from before it.
      frequency: of the batch.
      features: what its codes were chosen for. Evenly spaced rows enter the store, the oldest leave it.
      decay: of the running mean, per batch.
    """
    frequencies = decay * use["frequencies"] + (1 - decay) * frequency
    if "features" not in use:
        return {"frequencies": frequencies}
    size, rows = use["features"].shape[0], features.reshape(-1, features.shape[-1])
    taken = min(size, rows.shape[0])
    new = rows[np.arange(taken) * rows.shape[0] // taken]
    kept = use["features"][: size - taken]
    return {"frequencies": frequencies, "features": jnp.concatenate([new.astype(kept.dtype), kept])}


@typechecked
def revive(
    codebook: Float[Array, "v c"], use: CodeUse, spec: TokenSpec, below: float, key: Key
) -> tuple[Float[Array, "v c"], CodeUse]:
    """Replaces dead codes by recent features; codes in use keep their bits.

    Args:
      codebook: the trained codes.
      use: statistics of their use.
      spec: of the tokens.
      below: a code is dead if its pooled frequency is under this share of 1/v.
      key: which features become codes; each dead code gets another one.
    Returns:
      The codebook, and the statistics with revived codes about as frequent as at the start.
    Reference: Dhariwal et al., Jukebox: A Generative Model for Music, 2020, section 3 (random restarts).
    """
    vocab_size = codebook.shape[0]
    dead = pooled(use["frequencies"], spec) * vocab_size < below
    seeds = jax.random.permutation(key, use["features"], axis=0).astype(codebook.dtype)
    frequency = jnp.where(dead, 1 / vocab_size, use["frequencies"])
    frequency = frequency / jnp.sum(frequency, axis=1, keepdims=True)
    return jnp.where(dead[:, None], seeds, codebook), {**use, "frequencies": frequency}


@typechecked
def observe(
    variables: Variables,
    ids: Int[Array, "b n"],
    features: Float[Array, "b n c"],
    spec: TokenSpec,
    guard: CodeGuard,
    train: bool,
) -> Observation:
    """What one batch says about code use.

    Args:
      variables: of the tokenizer.
      ids: tokens of the batch.
      features: what they were chosen for, gradients stopped.
      spec: of the tokens.
      guard: settings.
      train: figures are those of the running frequencies, which take in the batch; otherwise of the batch alone.
    """
    frequency = frequencies(ids, spec)
    if not train:
        return Observation(metrics(frequency, spec), {})
    use = update(variables[COLLECTION], frequency, features, guard.decay)
    return Observation(metrics(use["frequencies"], spec), {COLLECTION: use})


def project(
    params: Params, collections: dict[str, Any], spec: TokenSpec, guard: CodeGuard, key: Key
) -> tuple[Params, dict[str, Any]]:
    """`params` and `collections` after the guard, for `Tokenizer.project`."""
    if guard.revive_below is None:
        return params, collections
    codebook, use = revive(params["codebook"], collections[COLLECTION], spec, guard.revive_below, key)
    return {**params, "codebook": codebook}, {**collections, COLLECTION: use}
