"""The per-token head of MAR: a small MLP that denoises one token given the vector of its position.

Time and condition are added; their sum modulates every residual block by adaLN. The head sees one token alone, so a
call costs little beside one of the transformer, and sampling can afford many.

Reference: Li et al., Autoregressive Image Generation without Vector Quantization, 2024, Sec. 3.3.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.nn.layers import LayerNorm, modulate
from jaxar.nn.timestep import TimestepEmbedding
from jaxar.nn.transformer import Remat, scan_layers
from jaxar.partition import constrain, logical
from jaxar.typing import Array, Float, typechecked

XAVIER = nn.initializers.xavier_uniform()
ZEROS = nn.initializers.zeros


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Residual blocks and width of the head; `remat` says what the backward pass recomputes."""

    num_layers: int = 3
    width: int = 1024
    remat: Remat = "none"

    def __post_init__(self):
        for name in ("num_layers", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.head.{name}={getattr(self, name)} must be at least 1")


class ResidualBlock(nn.Module):
    """x + gate * mlp(modulate(norm(x))), in the form that `scan_layers` wants; `y` is what modulates."""

    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b w"], _: None, y: Float[Array, "b w"]) -> tuple[Float[Array, "b w"], None]:
        width, types = x.shape[-1], dict(dtype=self.dtype, param_dtype=self.param_dtype)
        modulation = dense(3 * width, "modulation", ("embed", "mlp"), ZEROS, **types)(nn.silu(y))
        shift, scale, gate = jnp.split(modulation.astype(jnp.float32), 3, axis=-1)
        h = LayerNorm(param_dtype=self.param_dtype, name="norm")(x)
        h = _modulated(h, scale, shift).astype(self.dtype)
        h = nn.silu(dense(width, "up", ("embed", "mlp"), **types)(h))
        h = dense(width, "down", ("mlp", "embed"), **types)(h)
        return constrain(x + (gate * h).astype(x.dtype), "batch", "act_embed"), None


class DiffusionHead(nn.Module):
    """Outputs of width `out_channels` for noised tokens, float32; zero at the start.

    Attributes:
      out_channels: twice the token's for diffusion (noise and variance), the token's for flow matching.
    """

    sizes: Sizes
    out_channels: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    @typechecked
    def __call__(
        self, x: Float[Array, "b c"], t: Float[Array, "b"], z: Float[Array, "b d"]
    ) -> Float[Array, "b {self.out_channels}"]:
        """Denoises tokens.

        Args:
          x: noised tokens.
          t: time of each; 0..999 in diffusion, and 1000 times the time of a flow.
          z: condition of each.
        """
        width, types = self.sizes.width, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        y = TimestepEmbedding(width, name="time", **types)(t) + dense(width, "condition", (None, "embed"), **types)(z)
        x = dense(width, "input", (None, "embed"), **types)(x)
        blocks = scan_layers(ResidualBlock, self.sizes.num_layers, self.sizes.remat)
        x, _ = blocks(self.dtype, self.param_dtype, name="layers")(x, None, y)
        modulation = dense(2 * width, "modulation", ("embed", "mlp"), ZEROS, **types)(nn.silu(y))
        shift, scale = jnp.split(modulation.astype(jnp.float32), 2, axis=-1)
        x = _modulated(LayerNorm(affine=False, name="norm")(x), scale, shift)
        head = {"dtype": jnp.float32, "param_dtype": self.param_dtype}
        return dense(self.out_channels, "output", ("embed", None), ZEROS, **head)(x)


def dense(features: int, name: str, axes: tuple[str | None, str | None], init: Any = XAVIER, **types: Any) -> nn.Dense:
    """A linear layer with bias whose kernel carries the logical names `axes`."""
    bias_init = logical(nn.initializers.zeros, axes[1])
    return nn.Dense(features, kernel_init=logical(init, *axes), bias_init=bias_init, name=name, **types)


def _modulated(x: Array, scale: Array, shift: Array) -> Array:
    return modulate(x[:, None], scale[:, None], shift[:, None])[:, 0]
