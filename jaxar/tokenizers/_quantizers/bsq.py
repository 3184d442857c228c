"""Binary spherical quantization: signs of a feature on the unit sphere, scaled back onto it.

Reference: Zhao et al., Image and Video Tokenization with Binary Spherical Quantization, 2024.
"""

import dataclasses
import math
from typing import ClassVar, Literal

from jaxar.config import ConfigError
from jaxar.nn import quantize
from jaxar.tokenizers._code_use import CodeGuard
from jaxar.tokenizers._quantizers import _bits
from jaxar.tokenizers._quantizers.base import UNGUARDED
from jaxar.typing import Array, Float, Int, Key, Metrics, Variables


@dataclasses.dataclass(frozen=True)
class BSQ:
    """Codes in {-1, 1}^channels / sqrt(channels); 0 counts as negative.

    Attributes:
      channels: bits of an id.
      beta: weight of a commitment loss; the distance is bounded by itself.
      entropy_weight: of the entropy of a feature's codes minus `diversity` times that of all features' codes, in units
        of `sharpness`, 0 for none.
      sharpness: tau in the law of codes, softmax(2 tau feature . code).
      group: bits whose joint law is enumerated for the second entropy; divides `channels`.
    """

    name: Literal["bsq"] = "bsq"
    channels: int = 18
    beta: float = 0.0
    entropy_weight: float = 0.1
    diversity: float = 1.0
    sharpness: float = 100.0
    group: int = 9
    codebook_weight: ClassVar[float] = 0.0
    guard: ClassVar[CodeGuard] = UNGUARDED

    def __post_init__(self):
        _bits.check(self.channels, self.group)
        if self.sharpness <= 0:
            raise ConfigError(f"tokenizer.quantizer.sharpness={self.sharpness} must be positive")

    @property
    def vocab_size(self) -> int:
        return 1 << self.channels

    def init(self, key: Key) -> Variables:
        return {"params": {}}

    def bound(self, features: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        return quantize.l2_normalize(features)

    def choose(self, variables: Variables, bounded: Float[Array, "*n c"]) -> Int[Array, "*n"]:
        return _bits.to_ids(bounded > 0)

    def codes(self, variables: Variables, ids: Int[Array, "*n"]) -> Float[Array, "*n c"]:
        return _bits.signs(ids, self.channels) / math.sqrt(self.channels)

    def entropy_terms(self, variables: Variables, bounded: Float[Array, "*n c"]) -> Metrics:
        if not self.entropy_weight:
            return {}
        found = _bits.entropies(4 * self.sharpness * bounded / math.sqrt(self.channels), self.group)
        penalty = (found.sample - self.diversity * found.codebook) / self.sharpness
        return {"entropy_loss": self.entropy_weight * penalty}
