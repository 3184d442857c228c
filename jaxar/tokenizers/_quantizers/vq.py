"""A trained codebook: each feature becomes the nearest code.

Reference: van den Oord et al., Neural Discrete Representation Learning, 2017; with codes of unit length, Yu et al.,
Vector-quantized Image Modeling with Improved VQGAN, 2022.
"""

import dataclasses
from typing import ClassVar, Literal

import jax

from jaxar.config import ConfigError
from jaxar.nn import quantize
from jaxar.partition import logical
from jaxar.tokenizers._code_use import DEFAULT_GUARD, CodeGuard
from jaxar.typing import Array, Float, Int, Key, Metrics, Variables


@dataclasses.dataclass(frozen=True)
class VQ:
    """Codes of any length, compared by Euclidean distance.

    Attributes:
      vocab_size, channels: number and width of the codes.
      beta: weight of the commitment loss against the codebook loss.
      entropy_weight: of the entropy loss, 0 for none; it costs a softmax over all codes per token.
      guard: against dead codes.
    """

    name: Literal["vq"] = "vq"
    vocab_size: int = 4096
    channels: int = 32
    beta: float = 0.25
    entropy_weight: float = 0.0
    guard: CodeGuard = DEFAULT_GUARD
    codebook_weight: ClassVar[float] = 1.0

    def __post_init__(self):
        check_sizes(self.vocab_size, self.channels)

    def init(self, key: Key) -> Variables:
        codes = jax.random.normal(key, (self.vocab_size, self.channels)) * self.channels**-0.5
        return {"params": {"codebook": logical(lambda: self.bound(codes), "vocab", "embed_table")()}}

    def bound(self, features: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        return features

    def codebook(self, variables: Variables) -> Float[Array, "v c"]:
        """All codes."""
        return self.bound(variables["params"]["codebook"])

    def choose(self, variables: Variables, bounded: Float[Array, "*n c"]) -> Int[Array, "*n"]:
        return quantize.nearest(bounded, self.codebook(variables))

    def codes(self, variables: Variables, ids: Int[Array, "*n"]) -> Float[Array, "*n c"]:
        return quantize.lookup(self.codebook(variables), ids)

    def entropy_terms(self, variables: Variables, bounded: Float[Array, "*n c"]) -> Metrics:
        if not self.entropy_weight:
            return {}
        return {"entropy_loss": self.entropy_weight * quantize.entropy_loss(bounded, self.codebook(variables))}


@dataclasses.dataclass(frozen=True)
class L2VQ(VQ):
    """Codes and features of unit length, compared by their angle."""

    name: Literal["l2_vq"] = "l2_vq"
    vocab_size: int = 16384
    channels: int = 8

    def bound(self, features: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        return quantize.l2_normalize(features)


def check_sizes(vocab_size: int, channels: int) -> None:
    """Refuses a codebook without codes."""
    for name, value in (("vocab_size", vocab_size), ("channels", channels)):
        if value < 1:
            raise ConfigError(f"tokenizer.quantizer.{name}={value} must be at least 1")
