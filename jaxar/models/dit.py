"""The diffusion transformer: patches of a noised map attend one another, time and class modulate every layer.

Whatever noise a method adds and whatever it asks the network for (noise, velocity), the network is this one.

Reference: Peebles & Xie, Scalable Diffusion Models with Transformers, 2023, Sec. 3.2; Ma et al., SiT: Exploring Flow
and Diffusion-based Generative Models with Scalable Interpolant Transformers, 2024, which uses it unchanged.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.nn.layers import DEFAULT_INIT, Embedding, LayerNorm, Modulation, modulate
from jaxar.nn.positions import sincos_2d
from jaxar.nn.timestep import TimestepEmbedding
from jaxar.nn.transformer import BlockSpec, Remat, Stack
from jaxar.partition import logical
from jaxar.typing import FIXED, Array, Float, Int, typechecked

XAVIER = nn.initializers.xavier_uniform()
ZEROS = nn.initializers.zeros


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The network's size and how it is computed; the section `model` of a configuration. Defaults are those of XL/2.

    Attributes:
      patch_size: side of the squares that are the tokens.
      mlp_ratio: width inside the feed-forward layers, relative to `width`.
      remat: what the backward pass recomputes.
      attention: the kernel's implementation; "sliced" has forward-mode derivatives on every platform.
      dtype, param_dtype: of computation and of storage.
    """

    num_layers: int = 28
    width: int = 1152
    num_heads: int = 16
    patch_size: int = 2
    mlp_ratio: float = 4.0
    remat: Remat = "none"
    attention: Literal["auto", "sliced"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    name: Literal["dit"] = "dit"

    def __post_init__(self):
        for name in ("num_layers", "num_heads", "patch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}={getattr(self, name)} must be at least 1")
        if self.width < 1 or self.width % self.num_heads or self.width % 4:
            raise ConfigError(
                f"model.width={self.width} must be a multiple of 4, for the positions, and of model.num_heads="
                f"{self.num_heads}; use such a width"
            )

    def grid(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """Rows and columns of patches of maps (height, width, channels).

        Raises:
          ConfigError: the patches do not divide the maps.
        """
        if shape[0] % self.patch_size or shape[1] % self.patch_size:
            raise ConfigError(
                f"model.patch_size={self.patch_size} does not divide maps of {shape[0]}x{shape[1]}; use a divisor"
            )
        return shape[0] // self.patch_size, shape[1] // self.patch_size

    def block(self) -> BlockSpec:
        return BlockSpec(
            num_heads=self.num_heads,
            head_dim=self.width // self.num_heads,
            hidden=int(self.width * self.mlp_ratio),
            affine=False,
            bias="qkv",
            out_bias=True,
            implementation=self.attention,
            init=XAVIER,
            out_init=XAVIER,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )


class DiT(nn.Module):
    """Maps of `out_channels` channels for noised maps; zero at the start, as are all gates.

    Attributes:
      shape: height, width and channels of the noised maps.
      num_classes: labels are below it; `num_classes` itself is the null class.
      num_scalars: numbers beside the time that condition it (another time, a guidance scale), embedded as the time is.
    """

    sizes: Sizes
    shape: tuple[int, int, int]
    out_channels: int
    num_classes: int
    num_scalars: int = 0

    def setup(self):
        sizes, types = self.sizes, dict(dtype=self.sizes.dtype, param_dtype=self.sizes.param_dtype)
        self.positions = self.variable(FIXED, "positions", lambda: jnp.asarray(sincos_2d(self.grid, sizes.width)))
        self.patch_projection = nn.Dense(
            sizes.width, kernel_init=logical(XAVIER, None, "embed"), bias_init=logical(ZEROS, "embed"), **types
        )
        self.time = TimestepEmbedding(sizes.width, **types)
        self.scalars = [TimestepEmbedding(sizes.width, **types) for _ in range(self.num_scalars)]
        self.class_embedding = Embedding(self.num_classes + 1, sizes.width, ("classes", "embed"), DEFAULT_INIT, **types)
        self.modulation = Modulation(sizes.num_layers, (0.0,) * 6, **types)
        self.stack = Stack(sizes.block(), sizes.num_layers, remat=sizes.remat)
        self.head_modulation = Modulation(1, (0.0,) * 2, **types)
        self.norm = LayerNorm(affine=False)
        self.head = nn.Dense(
            sizes.patch_size**2 * self.out_channels,
            kernel_init=logical(ZEROS, "embed", None),
            bias_init=logical(ZEROS, None),
            param_dtype=sizes.param_dtype,
        )

    @property
    def grid(self) -> tuple[int, int]:
        return self.sizes.grid(self.shape)

    @typechecked
    def __call__(
        self, x: Float[Array, "b h w c"], t: Float[Array, "b"], labels: Int[Array, "b"], *scalars: Float[Array, "b"]
    ) -> Float[Array, "b h w {self.out_channels}"]:
        """The network's output, float32.

        Args:
          x: noised maps.
          t: time of each, in whatever unit the method trains with.
          labels: 0..num_classes, the last being the null class.
          scalars: the others of `num_scalars`.
        """
        return unpatchify(self.head(self.features(x, t, labels, *scalars)), self.grid, self.sizes.patch_size)

    @typechecked
    def features(
        self, x: Float[Array, "b h w c"], t: Float[Array, "b"], labels: Int[Array, "b"], *scalars: Float[Array, "b"]
    ) -> Float[Array, "b n d"]:
        """What the output layer reads: a normalised vector for each patch."""
        of_scalars = [embed(value) for embed, value in zip(self.scalars, scalars, strict=True)]
        cond = sum(of_scalars, self.time(t) + self.class_embedding(labels))[:, None]
        tokens = self.patch_projection(patchify(x, self.sizes.patch_size))
        tokens += self.positions.value.astype(self.sizes.dtype)
        tokens, _ = self.stack(tokens, modulation=self.modulation(cond))
        head = self.head_modulation(cond)[0]
        return modulate(self.norm(tokens), head[..., 0, :], head[..., 1, :])

    def embed_time(self, t: Float[Array, "b"]) -> Float[Array, "b d"]:
        """What of the condition depends on time."""
        return self.time(t)


@typechecked
def patchify(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b n o"]:
    """Squares of `size` x `size` values as tokens, rows first; channels are ordered (row, column, channel)."""
    b, h, w, c = x.shape
    squares = x.reshape(b, h // size, size, w // size, size, c)
    return squares.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, size * size * c)


@typechecked
def unpatchify(tokens: Float[Array, "b n o"], grid: tuple[int, int], size: int) -> Float[Array, "b h w c"]:
    """The map that `patchify` makes these tokens of."""
    squares = tokens.reshape(len(tokens), *grid, size, size, -1)
    return squares.transpose(0, 1, 3, 2, 4, 5).reshape(len(tokens), grid[0] * size, grid[1] * size, -1)
