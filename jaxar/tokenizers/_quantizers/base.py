"""What every quantizer is: a frozen dataclass of its options, and functions over a tokenizer's variables."""

from typing import Protocol

import jax
import jax.numpy as jnp

from jaxar.tokenizers._code_use import CodeGuard
from jaxar.typing import Array, Float, Int, Key, Metrics, Variables

UNGUARDED = CodeGuard(revive_below=None)  # codes without parameters of their own cannot be revived


class Quantizer(Protocol):
    """The interface.

    Attributes:
      vocab_size, channels: number and width of the codes.
      codebook_weight, beta: of the losses that pull codes to features, and features to codes (commitment).
      guard: against dead codes.
    """

    vocab_size: int
    channels: int
    codebook_weight: float
    beta: float
    guard: CodeGuard

    def init(self, key: Key) -> Variables:
        """What the quantizer adds to the tokenizer's variables: "params", and "fixed" for what nothing trains."""

    def bound(self, features: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        """What is quantized in place of the encoder's features: of unit length, within bounds, or as it is.

        The gradient of the decoder's input passes to it straight through.
        """

    def choose(self, variables: Variables, bounded: Float[Array, "*n c"]) -> Int[Array, "*n"]:
        """Ids of bounded features."""

    def codes(self, variables: Variables, ids: Int[Array, "*n"]) -> Float[Array, "*n c"]:
        """What the decoder reads for ids."""

    def entropy_terms(self, variables: Variables, bounded: Float[Array, "*n c"]) -> Metrics:
        """Weighted losses on how surely and evenly codes are used, by name; {} for none."""


def distances(quantizer: Quantizer, features: Float[Array, "*n c"], codes: Float[Array, "*m c"]) -> Metrics:
    """Weighted squared distances between bounded features and codes, by name; the shapes broadcast."""
    stop, weights = jax.lax.stop_gradient, (quantizer.codebook_weight, quantizer.beta)
    pairs = ((codes, stop(features)), (stop(codes), features))
    named = zip(("codebook_loss", "commitment_loss"), weights, pairs)
    return {name: weight * jnp.mean((a - b) ** 2) for name, weight, (a, b) in named if weight}
