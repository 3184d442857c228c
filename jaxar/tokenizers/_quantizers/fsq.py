"""Finite scalar quantization: every channel is squashed and rounded to a few levels; the codes are their grid.

Reference: Mentzer et al., Finite Scalar Quantization: VQ-VAE Made Simple, 2024, Sec. 3.1.
"""

import dataclasses
import math
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.tokenizers._code_use import CodeGuard
from jaxar.tokenizers._quantizers.base import UNGUARDED
from jaxar.typing import Array, Float, Int, Key, Metrics, Variables

_MARGIN = 1e-3  # the squashed range ends this much beyond the outer levels, relative to it


@dataclasses.dataclass(frozen=True)
class FSQ:
    """Levels -1 .. 1 in each channel, evenly spaced; with an even number of levels the uppermost is missing.

    The id counts through the grid, the first channel fastest.

    Attributes:
      levels: of each channel, at least two. The paper has (8, 6, 5) for about 2^8 codes, (8, 5, 5, 5) for 2^10,
        (7, 5, 5, 5, 5) for 2^12, (8, 8, 8, 6, 5) for 2^14 and (8, 8, 8, 5, 5, 5) for 2^16.
      beta: weight of a commitment loss, which the published form does not have.
    """

    name: Literal["fsq"] = "fsq"
    levels: tuple[int, ...] = (8, 8, 8, 6, 5)
    beta: float = 0.0
    codebook_weight: ClassVar[float] = 0.0
    guard: ClassVar[CodeGuard] = UNGUARDED

    def __post_init__(self):
        if not self.levels or min(self.levels) < 2:
            raise ConfigError(f"tokenizer.quantizer.levels={self.levels} must be at least 2 in each channel")

    @property
    def vocab_size(self) -> int:
        return math.prod(self.levels)

    @property
    def channels(self) -> int:
        return len(self.levels)

    @property
    def _half(self) -> np.ndarray:
        """Levels below 0 in each channel: the distance of neighbours is 1 / half."""
        return np.array(self.levels) // 2

    def init(self, key: Key) -> Variables:
        return {"params": {}}

    def bound(self, features: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        levels = np.array(self.levels)
        reach, offset = (levels - 1) * (1 + _MARGIN) / 2, (levels % 2 == 0) / 2
        shift = np.arctanh(offset / reach)  # 0 stays 0
        return (jnp.tanh(features + shift) * reach - offset) / self._half

    def choose(self, variables: Variables, bounded: Float[Array, "*n c"]) -> Int[Array, "*n"]:
        digits = jnp.round(bounded * self._half).astype(jnp.int32) + self._half
        return jnp.sum(digits * self._strides, axis=-1).astype(jnp.int32)

    def codes(self, variables: Variables, ids: Int[Array, "*n"]) -> Float[Array, "*n c"]:
        digits = ids[..., None] // self._strides % np.array(self.levels)
        return (digits - self._half) / self._half.astype(np.float32)

    @property
    def _strides(self) -> np.ndarray:
        return np.cumprod((1, *self.levels[:-1]))

    def entropy_terms(self, variables: Variables, bounded: Float[Array, "*n c"]) -> Metrics:
        return {}
