"""Multi-head self-attention: projections, normalisation and rotation of queries and keys, the cache, the kernel."""

import math
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxar.kernels.attention import Implementation, attention
from jaxar.kernels.mask import DynamicRanges, MaskSpec
from jaxar.nn import rope
from jaxar.nn.cache import Cache
from jaxar.nn.layers import DEFAULT_INIT, Init
from jaxar.nn.quantize import l2_normalize
from jaxar.partition import constrain, logical
from jaxar.typing import Array, Float, Int


class Attention(nn.Module):
    """Self-attention over [b, t, d], optionally over a cache of earlier keys and values.

    Attributes:
      num_kv_heads: heads of keys and values; must divide `num_heads`.
      bias: which projections have a bias; "qv" is VAR's (a bias of the keys shifts all logits of a query alike), "qkv"
        adds the keys', "all" also the output's.
      qk_norm: "l2" makes queries and keys unit vectors and learns one logarithmic scale per head, at most 100.
      scale: of the logits, None for head_dim^-0.5; without effect under `qk_norm="l2"`.
      mask: which of the keys given in the same call each query sees (no cache), None for all.
      kv_len: filled prefix of the cache to read, static.
      implementation: of the kernel, as `kernels.attention.attention` takes it.
    """

    num_heads: int
    head_dim: int
    num_kv_heads: int | None = None
    bias: Literal["none", "qv", "qkv"] = "none"
    out_bias: bool = False
    qk_norm: Literal["none", "l2"] = "none"
    scale: float | None = None
    mask: MaskSpec | None = None
    kv_len: int | None = None
    implementation: Implementation = "auto"
    kernel_init: Init = DEFAULT_INIT
    out_init: Init = DEFAULT_INIT
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        rotary: rope.Rotary | None = None,
        dynamic: DynamicRanges | None = None,
        cache: Cache | None = None,
        layer: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "b t d"], Cache | None]:
        """Attends and, with a cache, stores the new keys and values as those of `layer`.

        Args:
          rotary: rows of a rotary table for the t tokens.
          dynamic: key ranges that are data: padding, the filled length of the cache.
        """
        kv_heads = self.num_kv_heads or self.num_heads
        q = self._project("query", self.num_heads, "heads", self.bias != "none")(x)
        k = self._project("key", kv_heads, "kv_heads", self.bias == "qkv")(x)
        v = self._project("value", kv_heads, "kv_heads", self.bias != "none")(x)
        scale = self.scale
        if self.qk_norm == "l2":
            log_scale = self.param(
                "scale", logical(nn.initializers.constant(math.log(4)), "heads"), (self.num_heads,), self.param_dtype
            )
            gain = jnp.exp(jnp.minimum(log_scale.astype(jnp.float32), math.log(100)))
            q, k, scale = l2_normalize(q.astype(jnp.float32)) * gain[:, None], l2_normalize(k.astype(jnp.float32)), 1.0
        if rotary is not None:
            q, k = rope.rotate(q, rotary), rope.rotate(k, rotary)
        q, k = q.astype(self.dtype), k.astype(self.dtype)
        if cache is not None:
            cache = cache.write(layer, k, v)
            k, v = (y.astype(self.dtype) for y in cache.read(layer, self.kv_len))
        y = attention(q, k, v, self.mask, dynamic, scale=scale, implementation=self.implementation)
        y = constrain(y, "batch", "length", "heads", "head_dim")
        y = nn.DenseGeneral(
            x.shape[-1],
            axis=(-2, -1),
            use_bias=self.out_bias,
            kernel_init=logical(self.out_init, "heads", "head_dim", "embed"),
            bias_init=logical(nn.initializers.zeros, "embed"),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="out",
        )(y)
        return y, cache

    def _project(self, name: str, heads: int, axis: str, use_bias: bool) -> nn.DenseGeneral:
        return nn.DenseGeneral(
            (heads, self.head_dim),
            use_bias=use_bias,
            kernel_init=logical(self.kernel_init, "embed", axis, "head_dim"),
            bias_init=logical(nn.initializers.zeros, axis, "head_dim"),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )
