"""Lookup-free quantization: a code is the signs of its feature, and its id the number that these bits spell.

Reference: Yu et al., Language Model Beats Diffusion: Tokenizer is Key to Visual Generation, 2024, Sec. 3.1.
"""

import dataclasses
from typing import Literal

from jaxar.config import ConfigError
from jaxar.tokenizers._quantizers import _bits
from jaxar.typing import Array, Float, Int, Metrics, Variables


@dataclasses.dataclass(frozen=True)
class LFQ(_bits.Signs):
    """Codes in {-1, 1}^channels; options as in `_bits.Signs`.

    Attributes:
      temperature: of the law of codes, softmax(-|z - code|^2 / temperature).
    """

    name: Literal["lfq"] = "lfq"
    temperature: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        if self.temperature <= 0:
            raise ConfigError(f"tokenizer.quantizer.temperature={self.temperature} must be positive")

    def bound(self, features: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        return features

    def codes(self, variables: Variables, ids: Int[Array, "*n"]) -> Float[Array, "*n c"]:
        return _bits.signs(ids, self.channels)

    def entropy_terms(self, variables: Variables, bounded: Float[Array, "*n c"]) -> Metrics:
        if not self.entropy_weight:
            return {}
        found = _bits.entropies(4 * bounded / self.temperature, self.group)
        return {"entropy_loss": self.entropy_weight * (found.sample - self.diversity * found.codebook)}
