"""Codes that are signs: what their quantizers share, ids of bits, and entropies of independent bits."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.tokenizers._code_use import CodeGuard
from jaxar.tokenizers._quantizers.base import UNGUARDED
from jaxar.typing import Array, Bool, Float, Int, Key, Variables, typechecked

_TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class Signs:
    """Codes in {-1, 1}^channels up to their length, without parameters; 0 counts as negative.

    Attributes:
      channels: bits of an id.
      beta: weight of the commitment loss.
      entropy_weight: of the entropy of a feature's codes minus `diversity` times that of all features' codes, 0 for
        none.
      group: bits whose joint law is enumerated for the second entropy; divides `channels`.
    """

    channels: int = 18
    beta: float = 0.25
    entropy_weight: float = 0.1
    diversity: float = 1.0
    group: int = 9
    codebook_weight: ClassVar[float] = 0.0
    guard: ClassVar[CodeGuard] = UNGUARDED

    def __post_init__(self):
        if not 1 <= self.channels <= 30:
            raise ConfigError(f"tokenizer.quantizer.channels={self.channels} must lie in 1..30: each is a bit of an id")
        if self.group < 1 or self.channels % self.group:
            raise ConfigError(
                f"tokenizer.quantizer.group={self.group} must divide tokenizer.quantizer.channels={self.channels}"
            )

    @property
    def vocab_size(self) -> int:
        return 1 << self.channels

    def init(self, key: Key) -> Variables:
        return {"params": {}}

    def choose(self, variables: Variables, bounded: Float[Array, "*n c"]) -> Int[Array, "*n"]:
        return to_ids(bounded > 0)


@typechecked
def to_ids(bits: Bool[Array, "*n c"]) -> Int[Array, "*n"]:
    """The numbers that bits spell, the first bit lowest."""
    return jnp.sum(bits * (1 << np.arange(bits.shape[-1])), axis=-1).astype(jnp.int32)


@typechecked
def signs(ids: Int[Array, "*n"], count: int) -> Float[Array, "*n c"]:
    """The first `count` bits of ids, as 1 and -1."""
    return 2.0 * (ids[..., None] >> np.arange(count) & 1) - 1


class Entropies(NamedTuple):
    """In nats, means over features.

    Attributes:
      sample: of the codes of a feature.
      codebook: of the codes of all features together; an upper bound of it if there are several groups of bits.
    """

    sample: Float[Array, ""]
    codebook: Float[Array, ""]


@typechecked
def entropies(logits: Float[Array, "*n c"], group: int) -> Entropies:
    """Entropies of independent bits that are 1 with probability sigmoid(logits).

    The sum over bits is the exact entropy over all 2^c codes of one feature. Averaged over features bits are no longer
    independent: their joint law is enumerated within groups of `group` bits, and the groups' entropies are added.

    Reference: Zhao et al., Image and Video Tokenization with Binary Spherical Quantization, 2024, Sec. 3.2.
    """
    logits = logits.reshape(-1, logits.shape[-1] // group, group)
    log_probs = jnp.stack([jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits)])
    sample = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=(0, 2, 3))
    codes = np.arange(1 << group)[:, None] >> np.arange(group) & 1
    of_codes = jnp.sum(jnp.where(codes == 1, log_probs[1][..., None, :], log_probs[0][..., None, :]), axis=-1)
    # Codes that no feature is near have probability 0 in float32, where the entropy's slope is infinite.
    mean = jnp.maximum(jnp.mean(jnp.exp(of_codes), axis=0), _TINY)
    return Entropies(sample.mean(), jnp.sum(jax.scipy.special.entr(mean)))
