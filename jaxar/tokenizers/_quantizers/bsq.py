"""Binary spherical quantization: signs of a feature on the unit sphere, scaled back onto it.

Reference: Zhao et al., Image and Video Tokenization with Binary Spherical Quantization, 2024.
"""

import dataclasses
import math
from typing import Literal

from jaxar.config import ConfigError
from jaxar.nn import quantize
from jaxar.tokenizers._quantizers import _bits
from jaxar.typing import Array, Float, Int, Metrics, Variables


@dataclasses.dataclass(frozen=True)
class BSQ(_bits.Signs):
    """Codes in {-1, 1}^channels / sqrt(channels); options as in `_bits.Signs`.

    Attributes:
      beta: by default 0, the distance is bounded by itself.
      sharpness: tau in the law of codes, softmax(2 tau feature . code); the entropies are in units of it.
    """

    name: Literal["bsq"] = "bsq"
    beta: float = 0.0
    sharpness: float = 100.0

    def __post_init__(self):
        super().__post_init__()
        if self.sharpness <= 0:
            raise ConfigError(f"tokenizer.quantizer.sharpness={self.sharpness} must be positive")

    def bound(self, features: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        return quantize.l2_normalize(features)

    def codes(self, variables: Variables, ids: Int[Array, "*n"]) -> Float[Array, "*n c"]:
        return _bits.signs(ids, self.channels) / math.sqrt(self.channels)

    def entropy_terms(self, variables: Variables, bounded: Float[Array, "*n c"]) -> Metrics:
        if not self.entropy_weight:
            return {}
        found = _bits.entropies(4 * self.sharpness * bounded / math.sqrt(self.channels), self.group)
        penalty = (found.sample - self.diversity * found.codebook) / self.sharpness
        return {"entropy_loss": self.entropy_weight * penalty}
