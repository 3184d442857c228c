"""One transformer layer that updates the last hidden vectors of a masked model after a few tokens were revealed.

Reference: Bansal, Sanghavi, Enabling Approximate Joint Sampling in Diffusion LMs, 2025. How old vectors and new tokens
are joined is not stated there; here they are concatenated and projected, and the layer's output is added to the old
vectors through a projection that starts at zero.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.nn.layers import DEFAULT_INIT, LayerNorm
from jaxar.nn.transformer import BlockSpec, Stack
from jaxar.partition import logical
from jaxar.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The layer's size; its width is the teacher's. The section `model` of a joint sampler's configuration.

    Attributes:
      mlp_ratio: width inside the feed-forward layer, relative to the width.
      dtype, param_dtype: of computation and of storage.
    """

    num_heads: int = 16
    mlp_ratio: float = 4.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"


class JointLayer(nn.Module):
    """Hidden vectors given new tokens: the old ones plus a correction, which is zero for fresh parameters."""

    sizes: Sizes
    width: int

    def __post_init__(self):
        if self.width % self.sizes.num_heads:
            raise ConfigError(
                f"model.num_heads={self.sizes.num_heads} does not divide the teacher's width {self.width}; "
                "use a divisor"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, hidden: Float[Array, "b n d"], new: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Args:
        hidden: the teacher's, from its last full pass.
        new: the teacher's embeddings of tokens revealed since then, and of the mask elsewhere.
        """
        sizes = self.sizes
        types = dict(dtype=sizes.dtype, param_dtype=sizes.param_dtype)
        spec = BlockSpec(
            num_heads=sizes.num_heads,
            head_dim=self.width // sizes.num_heads,
            hidden=round(self.width * sizes.mlp_ratio),
            bias="qkv",
            out_bias=True,
            **types,
        )
        x = self._project("join", DEFAULT_INIT)(jnp.concatenate([hidden, new], axis=-1))
        x, _ = Stack(spec, 1, name="stack")(x)
        return hidden + self._project("out", nn.initializers.zeros)(LayerNorm(name="norm", **types)(x))

    def _project(self, name: str, init: nn.initializers.Initializer) -> nn.Dense:
        return nn.Dense(
            self.width,
            kernel_init=logical(init, "embed", "mlp"),
            bias_init=logical(nn.initializers.zeros, "mlp"),
            dtype=self.sizes.dtype,
            param_dtype=self.sizes.param_dtype,
            name=name,
        )
