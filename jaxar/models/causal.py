"""The raster autoregressive transformer of LlamaGen: a condition, then image tokens row by row.

Reference: Sun et al., Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation, 2024.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.kernels.mask import DynamicRanges, MaskSpec
from jaxar.nn import cache as kv
from jaxar.nn import rope
from jaxar.nn.layers import MLP, Embedding, Head, RMSNorm, normal
from jaxar.nn.transformer import BlockSpec, Remat, Stack
from jaxar.partition import logical
from jaxar.typing import Array, Bool, Float, Int, typechecked

Cond = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The network's size and how it is computed; the section `model` of a raster AR configuration.

    Attributes:
      num_kv_heads: heads of keys and values (grouped queries), None for `num_heads`.
      hidden_factor: the SwiGLU layer is so many times 8/3 of the width,
      hidden_multiple: rounded up to a multiple of this.
      prefix_rotary: rotary rows of the condition tokens: "zero" wipes their queries and keys out, as LlamaGen's weights
        expect; "identity" leaves them unrotated, which lets text tokens attend by content.
      dropout: on embedded tokens and on both branches of a block.
      drop_path: stochastic depth of the last layer, growing linearly from 0.
      remat: what the backward pass recomputes.
      dtype, param_dtype: of computation and of storage.
    """

    num_layers: int = 12
    width: int = 768
    num_heads: int = 12
    num_kv_heads: int | None = None
    hidden_factor: float = 1.0
    hidden_multiple: int = 256
    rotary_base: float = 10_000.0
    prefix_rotary: Literal["zero", "identity"] = "zero"
    norm_eps: float = 1e-5
    dropout: float = 0.1
    drop_path: float = 0.0
    remat: Remat = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if self.width % self.num_heads or self.width // self.num_heads % 4:
            raise ConfigError(
                f"model.width={self.width} must be num_heads={self.num_heads} times a multiple of 4, which 2-D rotary "
                f"positions need; use width={4 * self.num_heads * max(1, self.width // (4 * self.num_heads))}"
            )
        if self.num_heads % self.kv_heads:
            raise ConfigError(f"model.num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}")
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"model.{name}={getattr(self, name)} must lie in [0, 1)")

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def hidden(self) -> int:
        wanted = int(self.hidden_factor * (8 * self.width // 3))
        return -(-wanted // self.hidden_multiple) * self.hidden_multiple

    def block(self) -> BlockSpec:
        return BlockSpec(
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            hidden=self.hidden,
            num_kv_heads=self.num_kv_heads,
            norm="rms",
            norm_eps=self.norm_eps,
            feed_forward="swiglu",
            dropout=self.dropout,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )


class CausalTransformer(nn.Module):
    """Logits of each token given a condition and all earlier tokens.

    The condition is a class label ("label" [b], the null class is `num_classes`) or text features ("text" [b p e], with
    "text_mask" [b p] that marks the real ones, padded on the left, and "text_null" [b] that replaces a caption by the
    learned null caption).

    Attributes:
      grid: height and width of the token map.
      num_classes: of a class-conditional model, None with text.
      text: length and width of the text features, None without text.
      unroll: a straight line of layers in place of a loop, for decoding; see `Stack`.
    """

    sizes: Sizes
    vocab_size: int
    grid: tuple[int, int]
    num_classes: int | None = None
    text: tuple[int, int] | None = None
    unroll: bool = False

    def setup(self):
        sizes, types = self.sizes, dict(dtype=self.sizes.dtype, param_dtype=self.sizes.param_dtype)
        if self.text is None:
            self.class_embedding = Embedding(self.num_classes + 1, sizes.width, axes=("classes", "embed"), **types)
        else:
            self.text_projection = MLP(sizes.width, sizes.width, use_bias=False, **types)
            null_init = logical(normal(self.text[1] ** -0.5), "length", "embed")
            self.null_text = self.param("null_text", null_init, self.text, sizes.param_dtype)
        self.token_embedding = Embedding(self.vocab_size, sizes.width, **types)
        self.dropout = nn.Dropout(sizes.dropout)
        self.stack = Stack(sizes.block(), sizes.num_layers, sizes.drop_path, sizes.remat, self.unroll)
        self.norm = RMSNorm(eps=sizes.norm_eps, **types)
        self.head = Head(self.vocab_size, **types)  # zero at the start: the first loss is ln(vocab_size)

    @property
    def prefix_len(self) -> int:
        """Tokens of the condition."""
        return 1 if self.text is None else self.text[0]

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def rotary(self) -> rope.Rotary:
        """The rotary table of condition and image tokens, [prefix_len + num_tokens, head_dim / 2]."""
        sizes = self.sizes
        return rope.rotary_raster(self.grid, sizes.head_dim, sizes.rotary_base, self.prefix_len, sizes.prefix_rotary)

    def embed_condition(self, cond: Cond) -> Float[Array, "b p d"]:
        """The condition as the first tokens of the sequence."""
        if self.text is None:
            return self.class_embedding(cond["label"])[:, None]
        text = cond["text"]
        if "text_null" in cond:
            text = jnp.where(cond["text_null"][:, None, None], self.null_text, text)
        return self.text_projection(text)

    def embed_tokens(self, ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        return self.token_embedding(ids)

    def __call__(self, ids: Int[Array, "b n"], cond: Cond, deterministic: bool = True) -> Float[Array, "b n v"]:
        """Teacher-forced logits, float32: position j predicts ids[:, j] from the condition and ids[:, :j].

        Dropout needs the stream "dropout" unless `deterministic`.
        """
        x = jnp.concatenate([self.embed_condition(cond), self.embed_tokens(ids[:, :-1])], axis=1)
        x = self.dropout(x, deterministic=deterministic)
        length = x.shape[1]
        dynamic = None
        if "text_mask" in cond:
            dynamic = DynamicRanges.left_padded(padding(cond), length, length)
        rotary = jax.tree.map(lambda table: table[:length], self.rotary())
        x, _ = self.stack(x, rotary=rotary, mask=MaskSpec.causal(length), dynamic=dynamic, deterministic=deterministic)
        return self.head(self.norm(x[:, self.prefix_len - 1 :]))

    def extend(
        self,
        x: Float[Array, "b t d"],
        cache: kv.KVCache,
        pad: Int[Array, "b"] | None = None,
        kv_len: int | None = None,
    ) -> tuple[Float[Array, "b t v"], kv.KVCache]:
        """Logits after each of the next t tokens of a sequence, whose past is in the cache.

        One function serves prefill (t = prefix_len), next token (t = 1) and the verification of a draft.

        Args:
          x: embedded tokens, of the condition or of the image.
          cache: from `init_cache`; the new tokens start at `cache.length`.
          pad: number of padding positions at the left of the sequence, None for none.
          kv_len: static bound on the filled cache, None for all of it.
        """
        hidden, cache = self._advance(x, cache, pad, kv_len)
        return self.head(self.norm(hidden)), cache

    def prefill(
        self, cond: Cond, cache: kv.KVCache, kv_len: int | None = None, ids: Int[Array, "b t"] | None = None
    ) -> tuple[Float[Array, "b 1 v"], kv.KVCache]:
        """Puts the condition, and the first image tokens if given, into an empty cache; returns the next logits."""
        pad = padding(cond) if "text_mask" in cond else None
        x = self.embed_condition(cond)
        if ids is not None:
            x = jnp.concatenate([x, self.embed_tokens(ids)], axis=1)
        hidden, cache = self._advance(x, cache, pad, kv_len)
        return self.head(self.norm(hidden[:, -1:])), cache

    def _advance(
        self, x: Array, cache: kv.KVCache, pad: Array | None, kv_len: int | None
    ) -> tuple[Float[Array, "b t d"], kv.KVCache]:
        count = x.shape[1]
        kv_len = kv_len or cache.k.shape[2]
        dynamic = MaskSpec.causal(kv_len).rows_at(cache.length, count)
        if pad is not None:
            dynamic &= DynamicRanges.left_padded(pad, count, kv_len, cache.length)
        rotary = rope.take(self.rotary(), cache.positions(count))
        return self.stack(x, rotary=rotary, dynamic=dynamic, cache=cache, kv_len=kv_len)

    def init_cache(self, batch: int, dtype: str | None = None) -> kv.KVCache:
        """An empty cache for the condition and all image tokens but the last, which nothing reads."""
        sizes = self.sizes
        length = self.prefix_len + self.num_tokens - 1
        cache = kv.create(sizes.num_layers, batch, length, sizes.kv_heads, sizes.head_dim, dtype or sizes.dtype)
        return cache


@typechecked
def padding(cond: Cond) -> Int[Array, "b"]:
    """Positions of padding at the left of each caption."""
    mask: Bool[Array, "b p"] = cond["text_mask"]
    return mask.shape[1] - jnp.sum(mask.astype(jnp.int32), axis=1)
