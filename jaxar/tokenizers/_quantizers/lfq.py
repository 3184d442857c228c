"""Lookup-free quantization: a code is the signs of its feature, and its id the number that these bits spell.

Reference: Yu et al., Language Model Beats Diffusion: Tokenizer is Key to Visual Generation, 2024, Sec. 3.1.
"""

import dataclasses
from typing import ClassVar, Literal

from jaxar.config import ConfigError
from jaxar.tokenizers._code_use import CodeGuard
from jaxar.tokenizers._quantizers import _bits
from jaxar.tokenizers._quantizers.base import UNGUARDED
from jaxar.typing import Array, Float, Int, Key, Metrics, Variables


@dataclasses.dataclass(frozen=True)
class LFQ:
    """Codes in {-1, 1}^channels; 0 counts as negative.

    Attributes:
      channels: bits of an id.
      beta: weight of the commitment loss.
      entropy_weight: of the entropy of a feature's codes minus `diversity` times that of all features' codes, 0 for
        none. The law of codes is softmax(-|z - code|^2 / temperature).
      group: bits whose joint law is enumerated for the second entropy; divides `channels`.
    """

    name: Literal["lfq"] = "lfq"
    channels: int = 18
    beta: float = 0.25
    entropy_weight: float = 0.1
    diversity: float = 1.0
    temperature: float = 0.01
    group: int = 9
    codebook_weight: ClassVar[float] = 0.0
    guard: ClassVar[CodeGuard] = UNGUARDED

    def __post_init__(self):
        _bits.check(self.channels, self.group)
        if self.temperature <= 0:
            raise ConfigError(f"tokenizer.quantizer.temperature={self.temperature} must be positive")

    @property
    def vocab_size(self) -> int:
        return 1 << self.channels

    def init(self, key: Key) -> Variables:
        return {"params": {}}

    def bound(self, features: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        return features

    def choose(self, variables: Variables, bounded: Float[Array, "*n c"]) -> Int[Array, "*n"]:
        return _bits.to_ids(bounded > 0)

    def codes(self, variables: Variables, ids: Int[Array, "*n"]) -> Float[Array, "*n c"]:
        return _bits.signs(ids, self.channels)

    def entropy_terms(self, variables: Variables, bounded: Float[Array, "*n c"]) -> Metrics:
        if not self.entropy_weight:
            return {}
        found = _bits.entropies(4 * bounded / self.temperature, self.group)
        return {"entropy_loss": self.entropy_weight * (found.sample - self.diversity * found.codebook)}
