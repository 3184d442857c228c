"""The next-scale transformer of VAR: every call predicts a whole token map from all coarser ones.

Reference: Tian et al., Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction, 2024.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.kernels.mask import MaskSpec
from jaxar.nn import cache as kv
from jaxar.nn.layers import Embedding, Head, LayerNorm, Modulation, modulate, normal
from jaxar.nn.transformer import BlockSpec, Remat, Stack
from jaxar.partition import logical
from jaxar.typing import Array, Float, Int

NORM_EPS = 1e-6
ADALN_INIT = 0.5  # initial kernels of scales and shifts, relative to the other kernels
HEAD_INIT = 0.02  # initial kernel of the head, relative to the other kernels


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The network's size and how it is computed; the section `model` of a next-scale configuration.

    VAR-dN is `num_layers=N, num_heads=N, width=64 N`.

    Attributes:
      mlp_ratio: width inside the feed-forward layers, relative to `width`.
      qk_norm: "l2" compares unit vectors at a learned temperature per head; "none" scales logits by
        0.25 / sqrt(head_dim), a quarter of the usual factor, as the published code does.
      shared_adaln: one map from the condition to adaLN vectors for all layers, plus a learned offset per layer.
      gate_init: initial size of the adaLN gates, relative to the other kernels; the published runs lower it
        from 1e-3 to 1e-5 as they grow.
      dropout: on both branches of a block.
      drop_path: stochastic depth of the last layer, growing linearly from 0.
      remat: what the backward pass recomputes.
      dtype, param_dtype: of computation and of storage.
    """

    num_layers: int = 16
    width: int = 1024
    num_heads: int = 16
    mlp_ratio: float = 4.0
    qk_norm: Literal["none", "l2"] = "l2"
    shared_adaln: bool = False
    gate_init: float = 1e-3
    dropout: float = 0.0
    drop_path: float = 0.0
    remat: Remat = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if self.width % self.num_heads:
            raise ConfigError(
                f"model.width={self.width} must be a multiple of num_heads={self.num_heads}; "
                f"use width={self.num_heads * max(1, self.width // self.num_heads)}"
            )
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"model.{name}={getattr(self, name)} must lie in [0, 1)")

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def stddev(self) -> float:
        """Of initial kernels and tables. The published truncation at +-2 lies tens of deviations out."""
        return math.sqrt(1 / (3 * self.width))

    def block(self) -> BlockSpec:
        return BlockSpec(
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            hidden=round(self.width * self.mlp_ratio),
            norm="layer",
            norm_eps=NORM_EPS,
            affine=False,
            feed_forward="gelu_tanh",
            bias="qv",
            out_bias=True,
            qk_norm=self.qk_norm,
            scale=0.25 / math.sqrt(self.head_dim),
            dropout=self.dropout,
            init=normal(self.stddev),
            out_init=normal(self.stddev / math.sqrt(2 * max(self.num_layers, 1))),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    def types(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def modulation(self) -> Modulation:
        """From the class embedding to the adaLN vectors of all layers."""
        relative = (self.gate_init,) * 2 + (ADALN_INIT,) * 4
        if self.shared_adaln:
            offsets = tuple(r / math.sqrt(self.width) for r in relative)
            return Modulation(self.num_layers, (self.stddev,) * 6, offsets, **self.types())
        return Modulation(self.num_layers, tuple(r * self.stddev for r in relative), **self.types())

    def head_modulation(self) -> Modulation:
        """From the class embedding to the adaLN vectors before the head."""
        return Modulation(1, (self.stddev * ADALN_INIT,) * 2, **self.types())

    def head(self, vocab_size: int) -> Head:
        return Head(vocab_size, True, normal(self.stddev * HEAD_INIT), **self.types())


class Condition(NamedTuple):
    """What a label contributes to every call of the network, computed once per image.

    Attributes:
      start: Float[b d], the class embedding, input of the first scale.
      layers: Float[l b 1 6 d], adaLN vectors of the blocks.
      head: Float[b 1 2 d], adaLN vectors (scale, shift) before the head.
    """

    start: Array
    layers: Array
    head: Array


class NextScaleTransformer(nn.Module):
    """Logits of all token maps of an image given its label; the null class is `num_classes`.

    Inputs of scales after the first are not codes but cumulative features of the tokenizer, resized to the scale.

    Attributes:
      scale_lengths: tokens of each scale, coarse to fine.
      channels: width of the tokenizer's features.
      markov: a scale attends itself alone; it knows the coarser ones by its input, and nothing is cached.
      unroll: a straight line of layers in place of a loop, for decoding; see `Stack`.
    """

    sizes: Sizes
    vocab_size: int
    scale_lengths: tuple[int, ...]
    channels: int
    num_classes: int
    markov: bool = False
    unroll: bool = False

    def setup(self):
        sizes, types = self.sizes, self.sizes.types()
        init = normal(sizes.stddev)
        self.class_embedding = Embedding(self.num_classes + 1, sizes.width, ("classes", "embed"), init, **types)
        self.input_projection = nn.Dense(
            sizes.width,
            kernel_init=logical(init, None, "embed"),
            bias_init=logical(nn.initializers.zeros, "embed"),
            **types,
        )
        self.start = self._table("start", self.scale_lengths[0])
        self.positions = self._table("positions", sum(self.scale_lengths))
        self.levels = self._table("levels", len(self.scale_lengths))
        self.modulation = sizes.modulation()
        self.head_modulation = sizes.head_modulation()
        self.stack = Stack(sizes.block(), sizes.num_layers, sizes.drop_path, sizes.remat, self.unroll)
        self.norm = LayerNorm(eps=NORM_EPS, affine=False)
        self.head = sizes.head(self.vocab_size)

    def _table(self, name: str, count: int) -> Array:
        init = logical(normal(self.sizes.stddev), "length", "embed")
        return self.param(name, init, (count, self.sizes.width), self.sizes.param_dtype)

    def condition(self, labels: Int[Array, "b"]) -> Condition:
        """Everything that depends on the label alone."""
        start = self.class_embedding(labels)
        return Condition(start, self.modulation(start[:, None]), self.head_modulation(start[:, None])[0])

    def __call__(
        self, features: Float[Array, "b m c"], labels: Int[Array, "b"], deterministic: bool = True
    ) -> Float[Array, "b n v"]:
        """Teacher-forced logits of all n tokens, float32.

        Args:
          features: inputs of scales 2..K, from the tokenizer's `teacher_input`; m = n - scale_lengths[0].
          labels: num_classes is the null class.
          deterministic: no dropout; otherwise the stream "dropout" is needed.
        """
        condition = self.condition(labels)
        x, _ = self.activations(features, condition, deterministic=deterministic)
        return self._logits(x, condition)

    def extend(
        self, features: Float[Array, "b t c"] | None, scale: int, condition: Condition, cache: kv.KVCache | None
    ) -> tuple[Float[Array, "b t v"], kv.KVCache | None]:
        """Logits of one whole scale, whose coarser ones are in the cache.

        No mask is needed: the tokens of a scale see one another and all that is cached.

        Args:
          features: input of the scale, None for the first.
          scale: 0-based, static.
          condition: from `condition`.
          cache: from `init_cache`, filled with exactly the coarser scales.
        """
        x, cache = self.activations(features, condition, scale, cache)
        return self._logits(x, condition), cache

    def activations(
        self,
        features: Float[Array, "b m c"] | None,
        condition: Condition,
        scale: int | None = None,
        cache: kv.KVCache | None = None,
        added: Float[Array, "b m d"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "b t d"], kv.KVCache | None]:
        """What leaves the last layer: of all tokens at once, or of one scale as in `extend`.

        Args:
          added: joins the projected features.
        """
        begin, end, mask = 0, sum(self.scale_lengths), self._mask()
        if scale is not None:
            begin, end, mask = sum(self.scale_lengths[:scale]), sum(self.scale_lengths[: scale + 1]), None
        parts = [condition.start[:, None] + self.start] if begin == 0 else []
        if features is not None:
            projected = self.input_projection(features)
            parts.append(projected if added is None else projected + added.astype(projected.dtype))
        levels = np.repeat(np.arange(len(self.scale_lengths)), self.scale_lengths)
        x = jnp.concatenate(parts, axis=1) + self.positions[begin:end] + self.levels[levels[begin:end]]
        return self.stack(
            x, mask=mask, modulation=condition.layers, cache=cache, kv_len=end, deterministic=deterministic
        )

    def _mask(self) -> MaskSpec:
        """Which scales a scale attends when all are computed at once."""
        return (MaskSpec.block_diagonal if self.markov else MaskSpec.block_causal)(self.scale_lengths)

    def _logits(self, x: Float[Array, "b t d"], condition: Condition) -> Float[Array, "b t v"]:
        return self.head(modulated(self.norm(x), condition))

    def init_cache(self, batch: int, dtype: str | None = None) -> kv.KVCache | None:
        """An empty cache for all scales, None for a network without."""
        if self.markov:
            return None
        sizes = self.sizes
        length = sum(self.scale_lengths)
        return kv.create(sizes.num_layers, batch, length, sizes.num_heads, sizes.head_dim, dtype or sizes.dtype)


def modulated(x: Float[Array, "b t d"], condition: Condition) -> Float[Array, "b t d"]:
    """Normalised activations, scaled and shifted for the head."""
    return modulate(x, condition.head[..., 0, :], condition.head[..., 1, :])
