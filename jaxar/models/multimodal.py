"""Meissonic's transformer: logits of every token given the known ones and a caption or a class.

The first blocks are multi-modal: text and image tokens have their own weights and attend one another. The others are
single-modal: they see image tokens alone. One vector modulates all of them; it is made of the pooled condition, of the
share of tokens that are masked and of micro-conditions, numbers that describe how an image was obtained. Positions are
rotary. With `compress`, 2x2 neighbours become one row before the blocks and four again behind them.

Reference: Bai et al., Meissonic: Revitalizing Masked Generative Transformers for Efficient High-Resolution
Text-to-Image Synthesis, 2024, Sec. 3. Differences from its code: single-modal blocks there keep the text in their
sequence, and add attention and feed-forward layer at once; the text is pooled by its mean, not by CLIP; the masked
share is that of the given tokens.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.kernels.mask import DynamicRanges
from jaxar.models.bidirectional import INIT, Sizes
from jaxar.models.causal import padding
from jaxar.nn import rope
from jaxar.nn.joint_block import JointStack, Pair
from jaxar.nn.layers import MLP, Embedding, Head, Modulation, RMSNorm, normal
from jaxar.nn.timestep import TimestepEmbedding, sinusoids
from jaxar.nn.transformer import BlockSpec, Shared, Stack
from jaxar.partition import constrain, logical
from jaxar.typing import Array, Bool, Float, Int, typechecked

Cond = dict[str, Array]
NORM_EPS = 1e-6
_FREQUENCIES = 256  # channels of the sinusoids of each micro-condition
_TIME = 1000.0  # the masked share is embedded like a time in 0..1000


@dataclasses.dataclass(frozen=True)
class Options:
    """The section `model.multimodal`.

    Attributes:
      joint_layers: how many of `model.num_layers` are multi-modal, the first ones; published is a third.
      positions: "rotary", or a learned vector for each position.
      compress: the blocks see a quarter as many rows as there are tokens.
      micro: micro-conditions, as they are when a batch has no entry "micro" and when sampling; () for none. Published
        are original height and width, top and left of the crop, and a preference score: (1024, 1024, 0, 0, 6).
    """

    joint_layers: int
    positions: Literal["rotary", "learned"] = "rotary"
    compress: bool = False
    micro: tuple[float, ...] = ()


def check(sizes: Sizes, options: Options) -> None:
    """Refuses options that do not fit the sizes.

    Raises:
      ConfigError
    """
    if not 1 <= options.joint_layers <= sizes.num_layers:
        raise ConfigError(
            f"model.multimodal.joint_layers={options.joint_layers} must lie in 1..{sizes.num_layers}, the number of "
            "layers (model.num_layers)"
        )
    if options.positions == "rotary" and sizes.width // sizes.num_heads % 8:
        raise ConfigError(
            f"model.width={sizes.width} must be num_heads={sizes.num_heads} times a multiple of 8, which rotary "
            f"positions need; use width={8 * sizes.num_heads * max(1, sizes.width // (8 * sizes.num_heads))} or "
            "model.multimodal.positions='learned'"
        )


@typechecked
def rotary(grid: tuple[int, int], head_dim: int, text: int) -> rope.Rotary:
    """Rows of `text` unrotated tokens followed by a raster grid, [text + h w, head_dim / 2].

    An eighth of the pairs, rounded up, never turns; the others turn half by row, half by column. With 128 channels that
    is the published division into 16, 56 and 56.
    """
    axis = 2 * (7 * head_dim // 32)
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    still = rope.rotary_1d(np.zeros(len(rows)), head_dim - 2 * axis)
    parts = still, rope.rotary_1d(rows, axis), rope.rotary_1d(columns, axis)
    image = [jnp.concatenate(tables, axis=1) for tables in zip(*parts)]
    before = jnp.ones((text, head_dim // 2)), jnp.zeros((text, head_dim // 2))
    return rope.Rotary(*(jnp.concatenate(tables) for tables in zip(before, image)))


@typechecked
def gather_squares(x: Float[Array, "b n d"], grid: tuple[int, int]) -> Float[Array, "b m c"]:
    """Rows of 2x2 neighbours side by side: m = n / 4, c = 4 d. A linear map of them is a strided convolution."""
    height, width = grid
    x = x.reshape(len(x), height // 2, 2, width // 2, 2, -1).swapaxes(2, 3)
    return x.reshape(len(x), height * width // 4, -1)


@typechecked
def scatter_squares(x: Float[Array, "b m c"], grid: tuple[int, int]) -> Float[Array, "b n d"]:
    """The inverse of `gather_squares`; `grid` is that of the result."""
    height, width = grid
    x = x.reshape(len(x), height // 2, width // 2, 2, 2, -1).swapaxes(2, 3)
    return x.reshape(len(x), height * width, -1)


class MultimodalTransformer(nn.Module):
    """Logits of all tokens, for which the known ones and the condition are read.

    The condition has the entries "label" [b] (the null class is `num_classes`), or "text" [b p e], "text_mask" [b p]
    and "text_null" [b] as for `CausalTransformer`; and "micro" [b m], by default what the options say.

    Attributes:
      vocab_size: number of codes.
      grid: height and width of the token map.
      num_classes: of a class-conditional model, whose text is one token; None with text.
      text: length and width of the text features, None without text.
    """

    sizes: Sizes
    options: Options
    vocab_size: int
    grid: tuple[int, int]
    num_classes: int | None = None
    text: tuple[int, int] | None = None

    def setup(self):
        sizes, types = self.sizes, dict(dtype=self.sizes.dtype, param_dtype=self.sizes.param_dtype)
        joint, single = self.options.joint_layers, sizes.num_layers - self.options.joint_layers
        tables = dict(axes=("classes", "embed"), init=INIT, **types)
        self.token_embedding = Embedding(self.vocab_size + 1, sizes.width, **tables)  # the last row is the mask
        self.embedding_norm = RMSNorm(NORM_EPS, **types)
        if self.options.positions == "learned":
            self.position_embedding = Embedding(self.rows[0] * self.rows[1], sizes.width, **tables)
        if self.options.compress:
            self.compress = self._linear(sizes.width)
            self.restore = self._linear(4 * sizes.width)
            self.restored_norm = RMSNorm(NORM_EPS, **types)
        if self.text is None:
            self.class_embedding = Embedding(self.num_classes + 1, sizes.width, **tables)
        else:
            null_init = logical(normal(self.text[1] ** -0.5), "length", "embed")
            self.null_text = self.param("null_text", null_init, self.text, sizes.param_dtype)
            self.text_projection = self._linear(sizes.width)
        self.text_norm = RMSNorm(NORM_EPS, **types)
        self.condition = MLP(sizes.width, sizes.width, activation="silu", **types)
        self.masked_share = TimestepEmbedding(sizes.width, _FREQUENCIES, **types)
        self.dropout = nn.Dropout(sizes.dropout)
        self.text_modulation = Modulation(joint, (0.0,) * 6, **types)
        self.image_modulation = Modulation(joint, (0.0,) * 6, **types)
        if single:
            self.single_modulation = Modulation(single, (0.0,) * 6, **types)
        self.joint = JointStack(self._block(), joint, sizes.remat)
        self.single = Stack(self._block(), single, remat=sizes.remat)
        self.norm = RMSNorm(NORM_EPS, **types)
        self.head = Head(self.vocab_size, use_bias=True, kernel_init=INIT, **types)

    def _block(self) -> BlockSpec:
        return dataclasses.replace(self.sizes.block(), norm_eps=NORM_EPS, affine=False, qk_norm="l2")

    def _linear(self, features: int) -> nn.Dense:
        types = dict(dtype=self.sizes.dtype, param_dtype=self.sizes.param_dtype)
        return nn.Dense(features, use_bias=False, kernel_init=logical(INIT, "embed", "mlp"), **types)

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def rows(self) -> tuple[int, int]:
        """The grid that the blocks see."""
        return (self.grid[0] // 2, self.grid[1] // 2) if self.options.compress else self.grid

    @property
    def reads(self) -> tuple[str, ...]:
        """Entries of a batch that are conditions."""
        given = ("label",) if self.text is None else ("text", "text_mask")
        return (*given, "micro") if self.options.micro else given

    def __call__(
        self, ids: Int[Array, "b n"], known: Bool[Array, "b n"], cond: Cond, deterministic: bool = True
    ) -> Float[Array, "b n v"]:
        """Logits over the codes, float32, at every position.

        Args:
          ids: read where `known`.
          deterministic: without dropout, which needs the stream "dropout".
        """
        text, pooled = self._read(cond)
        vector = self._vector(pooled, cond, known)[:, None]
        pair = Pair(text, self._embed(ids, known))
        pair = Pair(*(self.dropout(x, deterministic=deterministic) for x in pair))
        shared = self._shared(text.shape[1], cond)
        modulation = Pair(self.text_modulation(vector), self.image_modulation(vector))
        x = self.joint(pair, modulation, shared, deterministic).image
        if self.options.joint_layers < self.sizes.num_layers:
            own = None if shared.rotary is None else jax.tree.map(lambda y: y[text.shape[1] :], shared.rotary)
            x, _ = self.single(x, rotary=own, modulation=self.single_modulation(vector), deterministic=deterministic)
        return self._logits(x)

    def _read(self, cond: Cond) -> tuple[Float[Array, "b p d"], Float[Array, "b e"]]:
        """Text tokens for the blocks, and the whole condition in one vector."""
        if self.text is None:
            pooled = self.class_embedding(cond["label"])
            return self.text_norm(pooled)[:, None], pooled
        text = cond["text"]
        if "text_null" in cond:
            text = jnp.where(cond["text_null"][:, None, None], self.null_text, text)
        real = cond.get("text_mask", jnp.ones(text.shape[:2], bool))[..., None]
        pooled = jnp.sum(jnp.where(real, text, 0), axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)
        return self.text_norm(self.text_projection(text)), pooled

    def _vector(self, pooled: Float[Array, "b e"], cond: Cond, known: Bool[Array, "b n"]) -> Float[Array, "b d"]:
        """What modulates all blocks."""
        micro = sinusoids(self._micro(cond, len(known)), _FREQUENCIES).reshape(len(known), -1)
        described = self.condition(jnp.concatenate([pooled, micro], axis=1)[:, None])[:, 0]
        return described + self.masked_share(_TIME * jnp.mean(~known, axis=1))

    def _micro(self, cond: Cond, batch: int) -> Float[Array, "b m"]:
        default = jnp.asarray(self.options.micro, jnp.float32)
        if "micro" in cond and cond["micro"].shape[1:] != default.shape:
            raise ConfigError(
                f"model.multimodal.micro={self.options.micro} must hold a default for each of the "
                f"{cond['micro'].shape[1]} micro-conditions that batches have"
            )
        return cond.get("micro", jnp.broadcast_to(default, (batch, *default.shape))).astype(jnp.float32)

    def _embed(self, ids: Int[Array, "b n"], known: Bool[Array, "b n"]) -> Float[Array, "b m d"]:
        """The rows that the blocks see."""
        x = self.embedding_norm(self.token_embedding(jnp.where(known, ids, self.vocab_size)))
        if self.options.compress:
            x = self.compress(gather_squares(x, self.grid))
        if self.options.positions == "learned":
            x = x + self.position_embedding(jnp.arange(x.shape[1]))
        return x

    def _shared(self, text: int, cond: Cond) -> Shared:
        """Rotary rows of text and image, and what padding hides."""
        sizes, length = self.sizes, text + self.rows[0] * self.rows[1]
        table = None
        if self.options.positions == "rotary":
            table = rotary(self.rows, sizes.width // sizes.num_heads, text)
        masked = "text_mask" in cond
        return Shared(table, DynamicRanges.left_padded(padding(cond), length, length) if masked else None)

    def _logits(self, x: Float[Array, "b m d"]) -> Float[Array, "b n v"]:
        x = self.norm(x)
        if self.options.compress:
            x = self.restored_norm(scatter_squares(self.restore(x), self.grid))
        return constrain(self.head(x), "batch", "length", "vocab")
