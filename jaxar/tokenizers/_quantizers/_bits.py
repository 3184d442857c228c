"""Codes that are signs: ids of bits, and entropies of independent bits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.typing import Array, Bool, Float, Int, typechecked

_TINY = 1e-30


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


def check(channels: int, group: int) -> None:
    """Refuses ids that int32 cannot hold, and groups that do not divide the bits."""
    if not 1 <= channels <= 30:
        raise ConfigError(f"tokenizer.quantizer.channels={channels} must lie in 1..30: each is a bit of an id")
    if group < 1 or channels % group:
        raise ConfigError(f"tokenizer.quantizer.group={group} must divide tokenizer.quantizer.channels={channels}")
