"""SimVQ: a codebook that never changes, seen through one trained linear map, so that all codes move together.

Reference: Zhu et al., Addressing Representation Collapse in Vector Quantized Models with One Linear Layer, 2024.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxar.nn import quantize
from jaxar.partition import logical
from jaxar.tokenizers._code_use import CodeGuard
from jaxar.tokenizers._quantizers.base import UNGUARDED
from jaxar.tokenizers._quantizers.vq import check_sizes
from jaxar.typing import FIXED, Array, Float, Int, Key, Metrics, Variables


@dataclasses.dataclass(frozen=True)
class SimVQ:
    """Codes W e + b of fixed Gaussian vectors e, compared by Euclidean distance.

    Attributes:
      vocab_size, channels: number and width of the codes.
      codebook_weight, beta: of codebook and commitment loss; the published code's "legacy" form has them swapped.
    """

    name: Literal["simvq"] = "simvq"
    vocab_size: int = 8192
    channels: int = 128
    codebook_weight: float = 1.0
    beta: float = 0.25
    guard: ClassVar[CodeGuard] = UNGUARDED

    def __post_init__(self):
        check_sizes(self.vocab_size, self.channels)

    def init(self, key: Key) -> Variables:
        code_key, map_key = jax.random.split(key)
        size = (self.channels, self.channels)
        kernel = logical(jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), None, None)
        projection = {
            "kernel": kernel(map_key, size, jnp.float32),
            "bias": logical(jax.nn.initializers.zeros, None)(map_key, size[:1], jnp.float32),
        }
        codes = jax.random.normal(code_key, (self.vocab_size, self.channels)) * self.channels**-0.5
        return {"params": {"projection": projection}, FIXED: {"codebook": codes}}

    def bound(self, features: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        return features

    def project(self, variables: Variables, fixed: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        """The codes of fixed vectors."""
        projection = variables["params"]["projection"]
        return jnp.matmul(fixed, projection["kernel"], precision=quantize.PRECISION) + projection["bias"]

    def codebook(self, variables: Variables) -> Float[Array, "v c"]:
        """All codes."""
        return self.project(variables, variables[FIXED]["codebook"])

    def choose(self, variables: Variables, bounded: Float[Array, "*n c"]) -> Int[Array, "*n"]:
        return quantize.nearest(bounded, self.codebook(variables))

    def codes(self, variables: Variables, ids: Int[Array, "*n"]) -> Float[Array, "*n c"]:
        return self.project(variables, quantize.lookup(variables[FIXED]["codebook"], ids))

    def entropy_terms(self, variables: Variables, bounded: Float[Array, "*n c"]) -> Metrics:
        return {}
