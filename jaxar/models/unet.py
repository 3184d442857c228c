"""The U-Net of diffusion models: residual blocks modulated by time and class, attention where the maps are small.

Down the levels and up again; each block on the way up reads what a block on the way down has left at its resolution.

Reference: Dhariwal & Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, Sec. 3, in the sizes of Karras et
al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, App. F.7. Resolutions change by plain
convolutions between levels, not within residual blocks, and there is no dropout.
"""

import dataclasses
import math
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.models.diffusion_head import dense
from jaxar.nn.attention import Attention
from jaxar.nn.convnet import Downsample, Upsample, conv, group_norm
from jaxar.nn.layers import DEFAULT_INIT, Embedding
from jaxar.nn.timestep import TimestepEmbedding
from jaxar.partition import constrain
from jaxar.typing import Array, Float, Int, typechecked

ZEROS = nn.initializers.zeros
_MAX_GROUPS = 32


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The network's size and how it is computed; the section `model` of a configuration.

    Attributes:
      channels: width of the first level; the vectors of time and class have four times as many.
      multipliers: width of each level, as a multiple of `channels`; each level but the last halves the resolution.
      num_blocks: residual blocks per level on the way down; one more on the way up.
      attention: sides of the maps that have attention after each of their blocks. The smallest maps have it in any
        case, between the way down and the way up.
      num_heads: of attention.
      dtype: of computation; weights are float32.
    """

    name: Literal["unet"] = "unet"
    channels: int = 192
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    num_blocks: int = 3
    attention: tuple[int, ...] = (32, 16, 8)
    num_heads: int = 8
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        for name in ("channels", "num_blocks", "num_heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}={getattr(self, name)} must be at least 1")
        if not self.multipliers or any(m < 1 for m in self.multipliers):
            raise ConfigError(f"model.multipliers={self.multipliers} must hold a number from 1 on for each level")
        if self.channels % 4:
            raise ConfigError(f"model.channels={self.channels} must be a multiple of 4, for group norms")

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.channels * m for m in self.multipliers)

    def check(self, shape: tuple[int, int, int]) -> None:
        """Refuses maps (height, width, channels) that do not fit.

        Raises:
          ConfigError: a side that the levels cannot halve, attention where no level is, heads that do not divide.
        """
        halvings = len(self.multipliers) - 1
        if shape[0] != shape[1] or shape[0] % 2**halvings:
            raise ConfigError(
                f"model.multipliers={self.multipliers} halves the side {halvings} times, the maps have "
                f"{shape[0]}x{shape[1]}; use fewer levels"
            )
        sides = [shape[0] >> level for level in range(halvings + 1)]
        if wrong := set(self.attention) - set(sides):
            raise ConfigError(f"model.attention={self.attention}: no level has maps of side {min(wrong)}; use {sides}")
        for side, width in zip(sides, self.widths):
            if (side in self.attention or side == sides[-1]) and width % self.num_heads:
                raise ConfigError(
                    f"model.num_heads={self.num_heads} does not divide {width} channels of the level with side {side}; "
                    "use a divisor"
                )


class UNet(nn.Module):
    """Maps of `out_channels` channels for noised maps, float32; zero at the start.

    Attributes:
      num_classes: labels are below it; `num_classes` itself is the null class.
    """

    sizes: Sizes
    out_channels: int
    num_classes: int
    num_scalars = 0  # it is told nothing beside time and class

    @nn.compact
    @typechecked
    def __call__(
        self, x: Float[Array, "b h w c"], t: Float[Array, "b"], labels: Int[Array, "b"]
    ) -> Float[Array, "b h w {self.out_channels}"]:
        """The network's output.

        Args:
          x: noised maps.
          t: time of each, in whatever unit the method trains with.
          labels: 0..num_classes, the last being the null class.
        """
        sizes, dtype = self.sizes, self.sizes.dtype
        rows = self.num_classes + 1
        label = Embedding(rows, 4 * sizes.channels, ("classes", "embed"), DEFAULT_INIT, dtype, name="label")(labels)
        cond = nn.silu(TimestepEmbedding(4 * sizes.channels, dtype=dtype, name="time")(t) + label)

        def block(x: Array, width: int, name: str) -> Array:
            x = Block(width, dtype, name=name)(x, cond)
            return self._attend(x, f"{name}_attention") if x.shape[1] in sizes.attention else x

        x = conv(sizes.channels, 3, "conv_in", dtype=dtype)(x)
        left = [x]
        for level, width in enumerate(sizes.widths):
            if level:
                x = Downsample(dtype, name=f"down_{level}")(x)
                left.append(x)
            for i in range(sizes.num_blocks):
                x = block(x, width, f"down_{level}_block_{i}")
                left.append(x)
        x = Block(width, dtype, name="middle_block_0")(x, cond)
        x = self._attend(x, "middle_attention")
        x = Block(width, dtype, name="middle_block_1")(x, cond)
        for level, width in reversed(list(enumerate(sizes.widths))):
            for i in range(sizes.num_blocks + 1):
                x = block(jnp.concatenate([x, left.pop()], axis=-1), width, f"up_{level}_block_{i}")
            if level:
                x = Upsample(dtype, name=f"up_{level}")(x)
        x = nn.silu(_norm(x, "norm_out"))
        return conv(self.out_channels, 3, "conv_out", out_axis=None, init=ZEROS)(x)

    def _attend(self, x: Float[Array, "b h w c"], name: str) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        sizes, tokens = self.sizes, _norm(x, f"{name}_norm").reshape(b, h * w, c)
        heads = {"num_heads": sizes.num_heads, "head_dim": c // sizes.num_heads}
        attention = Attention(**heads, bias="qkv", out_bias=True, out_init=ZEROS, dtype=sizes.dtype, name=name)
        return x + attention(tokens)[0].reshape(x.shape)


class Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))) scaled and shifted by the condition)); zero beside x at the start."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], cond: Float[Array, "b d"]) -> Float[Array, "b h w o"]:
        h = conv(self.width, 3, "conv_1", dtype=self.dtype)(nn.silu(_norm(x, "norm_1")))
        modulation = dense(2 * self.width, "modulation", ("embed", "mlp"), dtype=self.dtype)(cond)
        scale, shift = jnp.split(modulation.astype(jnp.float32)[:, None, None], 2, axis=-1)
        h = nn.silu(_norm(h, "norm_2") * (1 + scale) + shift)
        h = conv(self.width, 3, "conv_2", init=ZEROS, dtype=self.dtype)(h)
        if x.shape[-1] != self.width:
            x = conv(self.width, 1, "shortcut", dtype=self.dtype)(x)
        return constrain(x + h, "batch", None, None, None)


def _norm(x: Float[Array, "b h w c"], name: str) -> Float[Array, "b h w c"]:
    """Group norm in groups of at least four channels, 32 at most."""
    return group_norm(math.gcd(_MAX_GROUPS, x.shape[-1] // 4), name)(x)
