"""A small network over whole maps read as vectors: affine in them, plus a residual MLP; time and class modulate both.

For data of few dimensions, such as the mixtures that closed-form teachers know. Without layers it is affine in x with
coefficients that depend on time and class, which is all that Gaussian data ask for.
"""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.models.diffusion_head import ZEROS, dense
from jaxar.nn.layers import DEFAULT_INIT, Embedding
from jaxar.nn.timestep import TimestepEmbedding
from jaxar.typing import Array, Float, Int, typechecked

_FREQUENCIES = 32
_TURN = 2 * np.pi  # the fastest sinusoid turns once per unit of time


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The network's size. `num_layers`: residual layers, 0 for an affine network."""

    num_layers: int = 3
    width: int = 64
    name: Literal["vector"] = "vector"

    def __post_init__(self):
        if self.num_layers < 0:
            raise ConfigError(f"model.num_layers={self.num_layers} must be at least 0")
        if self.width < 1:
            raise ConfigError(f"model.width={self.width} must be at least 1")


class VectorNetwork(nn.Module):
    """Maps of `out_channels` channels for noised maps, float32; zero at the start.

    Attributes:
      out_channels: a multiple of the maps'.
      last_time: unit of the time that it is told.
      num_classes: labels are below it; `num_classes` itself is the null class.
    """

    sizes: Sizes
    out_channels: int
    num_classes: int
    last_time: float = 1.0
    num_scalars = 0  # it is told nothing beside time and class

    @nn.compact
    @typechecked
    def __call__(
        self, x: Float[Array, "b h w c"], t: Float[Array, "b"], labels: Int[Array, "b"]
    ) -> Float[Array, "b h w {self.out_channels}"]:
        """The network's output.

        Args:
          x: noised maps.
          t: time of each, of the order of `last_time`.
          labels: 0..num_classes, the last being the null class.
        """
        width, shape = self.sizes.width, (*x.shape[1:3], self.out_channels)
        size = math.prod(shape)
        time = TimestepEmbedding(width, frequencies=_FREQUENCIES, name="time")(_TURN / self.last_time * t)
        label = Embedding(self.num_classes + 1, width, ("classes", "embed"), DEFAULT_INIT, name="label")(labels)
        cond = nn.silu(time + label)
        affine = dense(2 * size, "affine", ("embed", None), ZEROS)(cond).reshape(len(x), 2, *shape)
        y = affine[:, 0] * jnp.tile(x, self.out_channels // x.shape[-1]) + affine[:, 1]
        if self.sizes.num_layers:
            h = dense(width, "input", (None, "embed"))(x.reshape(len(x), -1))
            for i in range(self.sizes.num_layers):
                up, shift = (dense(width, f"{name}_{i}", ("embed", "mlp")) for name in ("up", "condition"))
                h = h + dense(width, f"down_{i}", ("mlp", "embed"))(nn.silu(up(h) + shift(cond)))
            y = y + dense(size, "output", ("embed", None), ZEROS)(h).reshape(y.shape)
        return y
