"""Discriminator on top of another network's features, of noised maps: one logit per map.

Reference: Yin et al., Improved Distribution Matching Distillation for Fast Image Synthesis, 2024, Sec. 4.3. There the
features are a map of a U-Net, and strided convolutions reduce it; here they are the vectors of a transformer's patches,
and their mean does.
"""

import flax.linen as nn
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.partition import logical
from jaxar.typing import Array, Float, typechecked


class FeatureDiscriminator(nn.Module):
    """Features to a logit, positive for real data; two layers of `width` values, the first before the mean."""

    width: int = 256

    def __post_init__(self):
        if self.width < 1:
            raise ConfigError(f"method.discriminator_width={self.width} must be at least 1")
        super().__post_init__()

    @nn.compact
    @typechecked
    def __call__(self, features: Float[Array, "b n d"]) -> Float[Array, "b"]:
        x = nn.silu(self._dense(self.width, "token", "mlp")(features))
        x = nn.silu(self._dense(self.width, "map", "mlp")(jnp.mean(x, axis=1)))
        return self._dense(1, "logit", None)(x)[:, 0]

    def _dense(self, features: int, name: str, out_axis: str | None) -> nn.Dense:
        kernel = logical(nn.initializers.lecun_normal(), None, out_axis)
        return nn.Dense(features, kernel_init=kernel, bias_init=logical(nn.initializers.zeros, out_axis), name=name)
