"""The masked autoencoder of MAR: a vector for each token position, given the known continuous tokens and the class.

The encoder reads the known tokens alone, behind buffer tokens that all start as the class embedding. The decoder puts
mask tokens where tokens are unknown. Its output conditions the head that draws a token (`diffusion_head`).

Tokens enter in any order, each with its position: the transformer tells them apart by learned positions only.

Reference: Li et al., Autoregressive Image Generation without Vector Quantization, 2024, Sec. 3.4 and 4; He et al.,
Masked Autoencoders Are Scalable Vision Learners, 2022.
"""

import dataclasses
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.kernels.mask import DynamicRanges
from jaxar.models.diffusion_head import XAVIER, DiffusionHead, dense
from jaxar.models.diffusion_head import Sizes as HeadSizes
from jaxar.nn import cache as kv
from jaxar.nn.layers import Embedding, LayerNorm, normal
from jaxar.nn.transformer import BlockSpec, Remat, Stack
from jaxar.partition import logical
from jaxar.typing import Array, Bool, Float, Int, typechecked

INIT = normal(0.02)
Cond = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Tower:
    """Layers, width and heads of the encoder or of the decoder."""

    num_layers: int = 12
    width: int = 768
    num_heads: int = 12

    def __post_init__(self):
        if self.width % self.num_heads:
            raise ConfigError(
                f"width={self.width} of a tower in model must be a multiple of num_heads={self.num_heads}; "
                f"use width={self.num_heads * max(1, self.width // self.num_heads)}"
            )


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The network's size and how it is computed; the section `model` of a MAR configuration.

    Attributes:
      head: of the network that draws a token.
      buffer_size: class tokens in front of the image tokens.
      patch_size: side of the square of latents that makes a token.
      mlp_ratio: width inside the feed-forward layers, relative to the tower's.
      dropout: on both branches of a block; the published code also drops attention weights and inside the MLP.
      remat: what the backward pass recomputes in the towers.
      dtype, param_dtype: of computation and of storage.
    """

    encoder: Tower = Tower()
    decoder: Tower = Tower()
    head: HeadSizes = HeadSizes(6)  # noqa: RUF009 - frozen
    buffer_size: int = 64
    patch_size: int = 1
    mlp_ratio: float = 4.0
    dropout: float = 0.1
    remat: Remat = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        for name in ("buffer_size", "patch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout={self.dropout} must lie in [0, 1)")

    def block(self, tower: Tower) -> BlockSpec:
        return BlockSpec(
            num_heads=tower.num_heads,
            head_dim=tower.width // tower.num_heads,
            hidden=int(tower.width * self.mlp_ratio),
            feed_forward="gelu",
            bias="qkv",
            out_bias=True,
            dropout=self.dropout,
            init=XAVIER,
            out_init=XAVIER,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )


class Caches(NamedTuple):
    """Keys and values that sampling keeps from step to step.

    Attributes:
      encoder: of the buffer, then of known tokens in the order in which they were given; `length` is [b].
      decoder: of the buffer and of all tokens by their positions.
    """

    encoder: kv.KVCache
    decoder: kv.PlacedCache


class MaskedAutoencoder(nn.Module):
    """Encoder, decoder and head over tokens of `channels` values.

    Attributes:
      num_tokens: of an image.
      num_classes: labels are below it; `num_classes` itself is the null class.
      head_channels: width of the head's output.
    """

    sizes: Sizes
    num_tokens: int
    channels: int
    num_classes: int
    head_channels: int

    def setup(self):
        sizes, types = self.sizes, dict(dtype=self.sizes.dtype, param_dtype=self.sizes.param_dtype)
        encoder, decoder, length = sizes.encoder, sizes.decoder, sizes.buffer_size + self.num_tokens
        table, row = logical(INIT, "length", "embed"), logical(INIT, "embed")
        self.class_embedding = Embedding(self.num_classes + 1, encoder.width, ("classes", "embed"), INIT, **types)
        self.token_projection = dense(encoder.width, "token_projection", (None, "embed"), **types)
        self.encoder_positions = self.param("encoder_positions", table, (length, encoder.width), sizes.param_dtype)
        self.token_norm = LayerNorm(**types)
        self.encoder = Stack(sizes.block(encoder), encoder.num_layers, remat=sizes.remat)
        self.encoder_norm = LayerNorm(**types)
        self.decoder_projection = dense(decoder.width, "decoder_projection", ("embed", "mlp"), **types)
        self.mask_token = self.param("mask_token", row, (decoder.width,), sizes.param_dtype)
        self.decoder_positions = self.param("decoder_positions", table, (length, decoder.width), sizes.param_dtype)
        self.decoder = Stack(sizes.block(decoder), decoder.num_layers, remat=sizes.remat)
        self.decoder_norm = LayerNorm(**types)
        self.head_positions = self.param("head_positions", table, (self.num_tokens, decoder.width), sizes.param_dtype)
        self.head = DiffusionHead(sizes.head, self.head_channels, **types)

    @typechecked
    def __call__(
        self,
        tokens: Float[Array, "b m {self.channels}"],
        positions: Int[Array, "b m"],
        cond: Cond,
        count: Int[Array, "b"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "b n d"]:
        """The vector z of every position, which conditions the head; float32.

        Args:
          tokens: the known ones, in any order.
          positions: of each in the raster.
          cond: "label".
          count: only the first `count` tokens of each sample are known, None for all m.
          deterministic: without dropout, which needs the stream "dropout".
        """
        z = self.decode(self.encode(tokens, positions, cond, count, deterministic), positions, count, deterministic)
        if self.is_initializing():  # the head has parameters too
            self.denoise(tokens[:, 0], jnp.zeros(len(tokens)), z[:, 0])
        return z

    def encode(
        self,
        tokens: Float[Array, "b m c"],
        positions: Int[Array, "b m"],
        cond: Cond,
        count: Int[Array, "b"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "b buffer+m e"]:
        """Encoded buffer and tokens; those past `count` have no meaning."""
        x = jnp.concatenate([self._buffer(cond), self._embed(tokens, positions)], axis=1)
        known = None if count is None else DynamicRanges.below(self.sizes.buffer_size + count, x.shape[1])
        return self._encode(x, known, deterministic)[0]

    def _buffer(self, cond: Cond) -> Float[Array, "b buffer e"]:
        size = self.sizes.buffer_size
        label = self.class_embedding(cond["label"])[:, None]
        return jnp.broadcast_to(label, (label.shape[0], size, label.shape[-1])) + self.encoder_positions[:size]

    def _embed(self, tokens: Float[Array, "b m c"], positions: Int[Array, "b m"]) -> Float[Array, "b m e"]:
        places = self.sizes.buffer_size + positions
        return self.token_projection(tokens) + jnp.take(self.encoder_positions, places, axis=0)

    def _encode(
        self,
        x: Float[Array, "b t e"],
        known: DynamicRanges | None,
        deterministic: bool = True,
        cache: kv.KVCache | None = None,
        kv_len: int | None = None,
    ) -> tuple[Float[Array, "b t e"], kv.KVCache | None]:
        options = dict(dynamic=known, deterministic=deterministic, cache=cache, kv_len=kv_len)
        x, cache = self.encoder(self.token_norm(x), **options)
        return self.encoder_norm(x), cache

    def decode(
        self,
        encoded: Float[Array, "b buffer+m e"],
        positions: Int[Array, "b m"],
        count: Int[Array, "b"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "b n d"]:
        """The vectors z, from what `encode` gave for tokens at these positions."""
        return self._decode(encoded, positions, count, deterministic)[0]

    def _decode(
        self,
        encoded: Float[Array, "b buffer+m e"],
        positions: Int[Array, "b m"],
        count: Int[Array, "b"] | None,
        deterministic: bool = True,
        cache: kv.PlacedCache | None = None,
    ) -> tuple[Float[Array, "b n d"], kv.PlacedCache | None]:
        size = self.sizes.buffer_size
        x = self.decoder_projection(encoded)
        x = jnp.concatenate([x[:, :size], self._among_masks(x[:, size:], positions, count)], axis=1)
        x, cache = self.decoder(x + self.decoder_positions.astype(x.dtype), deterministic=deterministic, cache=cache)
        return self.decoder_norm(x)[:, size:].astype(jnp.float32) + self.head_positions, cache

    def _among_masks(
        self, own: Float[Array, "b m d"], positions: Int[Array, "b m"], count: Int[Array, "b"] | None
    ) -> Float[Array, "b n d"]:
        """Vectors at these positions, the mask token elsewhere."""
        n = self.num_tokens
        if count is not None:  # a position outside the image is dropped by the scatter
            positions = jnp.where(jnp.arange(positions.shape[1]) < count[:, None], positions, n)
        tokens = jnp.broadcast_to(self.mask_token.astype(own.dtype), (own.shape[0], n, own.shape[-1]))
        return jax.vmap(lambda t, i, x: t.at[i].set(x, mode="drop"))(tokens, positions, own)

    def refresh(
        self,
        tokens: Float[Array, "b m c"],
        positions: Int[Array, "b m"],
        cond: Cond,
        count: Int[Array, "b"],
        caches: Caches,
    ) -> tuple[Float[Array, "b n d"], Caches]:
        """As `__call__`, and the caches that hold everything that it computed."""
        filled = self.sizes.buffer_size + count
        x = jnp.concatenate([self._buffer(cond), self._embed(tokens, positions)], axis=1)
        empty = caches.encoder.truncate(jnp.zeros_like(filled))
        encoded, encoder = self._encode(x, DynamicRanges.below(filled, x.shape[1]), cache=empty, kv_len=x.shape[1])
        z, decoder = self._decode(encoded, positions, count, cache=caches.decoder)
        return z, Caches(encoder.replace(length=filled), decoder)

    def extend(
        self,
        tokens: Float[Array, "b f c"],
        positions: Int[Array, "b f"],
        count: Int[Array, "b"],
        due: Int[Array, "b m"],
        is_due: Bool[Array, "b m"],
        caches: Caches,
        kv_len: int,
    ) -> tuple[Float[Array, "b n d"], Caches]:
        """The vectors z at some positions; the other known tokens are seen through their cached keys and values.

        Args:
          tokens, positions, count: as for `__call__`, of tokens that no call has encoded before.
          due: positions that the decoder computes, all masked ones and `positions` among them; the others are padding.
          is_due: which are not.
          kv_len: most places of the encoder's cache that are filled afterwards.
        Returns:
          z, without meaning where nothing is due, and the caches.
        """
        size, n = self.sizes.buffer_size, self.num_tokens
        x, filled = self._embed(tokens, positions), caches.encoder.length + count
        known = DynamicRanges.below(filled, x.shape[1])
        encoded, encoder = self._encode(x, known, cache=caches.encoder, kv_len=kv_len)
        x = self._among_masks(self.decoder_projection(encoded), positions, count)
        x = x + self.decoder_positions[size:].astype(x.dtype)
        x = jnp.take_along_axis(x, due[..., None], axis=1)
        cache = caches.decoder.at(jnp.where(is_due, size + due, size + n))
        x, decoder = self.decoder(x, cache=cache)
        z = self.decoder_norm(x).astype(jnp.float32)
        z = jax.vmap(lambda at, own: jnp.zeros((n, own.shape[-1])).at[at].set(own))(due, z) + self.head_positions
        return z, Caches(encoder.replace(length=filled), decoder.at(None))

    def init_caches(self, batch: int) -> Caches:
        """What `refresh` takes at first."""
        sizes, length = self.sizes, self.sizes.buffer_size + self.num_tokens

        def size(tower: Tower) -> tuple[int, int, int, int, int, str]:
            return tower.num_layers, batch, length, tower.num_heads, tower.width // tower.num_heads, sizes.dtype

        encoder = kv.create(*size(sizes.encoder)).replace(length=jnp.zeros(batch, jnp.int32))
        return Caches(encoder, kv.create_placed(*size(sizes.decoder)))

    def denoise(
        self, x: Float[Array, "r c"], t: Float[Array, "r"], z: Float[Array, "r d"]
    ) -> Float[Array, "r {self.head_channels}"]:
        """The head's output for noised tokens; see `DiffusionHead`."""
        return self.head(x, t, z)


@typechecked
def patchify(latents: Float[Array, "b n c"], grid: tuple[int, int], patch: int) -> Float[Array, "b m o"]:
    """Squares of `patch` x `patch` latents as tokens; channels are ordered (channel, row, column)."""
    b, _, c = latents.shape
    squares = latents.reshape(b, grid[0] // patch, patch, grid[1] // patch, patch, c)
    return squares.transpose(0, 1, 3, 5, 2, 4).reshape(b, -1, c * patch**2)


@typechecked
def unpatchify(tokens: Float[Array, "b m o"], grid: tuple[int, int], patch: int) -> Float[Array, "b n c"]:
    """The latents in raster order, from what `patchify` made of them."""
    squares = tokens.reshape(len(tokens), grid[0] // patch, grid[1] // patch, -1, patch, patch)
    return squares.transpose(0, 1, 4, 2, 5, 3).reshape(len(tokens), grid[0] * grid[1], -1)
