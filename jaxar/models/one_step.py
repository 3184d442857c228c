"""Students of autoregressive teachers, which turn noise into all tokens in one call.

A student has the layers of its teacher, under the same names, so that it can start as a copy. What differs: it reads
values (noise, or the code of a token that is decided) in place of tokens or feature maps, its output at a position is
about that same position, and it has two heads, logits over the codes and a value.

Reference: Liu et al., Distilled Decoding 1: One-step Sampling of Image Auto-regressive Models with Flow Matching, 2025.
The published next-scale student adds the noise-or-token embedding again in every block; here it is added once. The
logits have a term of the token's own value (`Closeness`) that is not published.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxar.kernels.mask import MaskSpec
from jaxar.models import causal, next_scale
from jaxar.nn.layers import Embedding, LayerNorm, Modulation, modulate, normal
from jaxar.partition import logical
from jaxar.typing import Array, Bool, Float, Int

_STDDEV = 0.02
# Added to true log-probabilities of 256 codes of unit length, the sum is largest at the flow's code most often (78 %)
# with 2.3, and tripled as a whole it is calibrated best. Training starts between.
_CLOSENESS = 4.0
_EPS = 1e-6


class Predictions(NamedTuple):
    """About each token, float32: logits over the codes [b n v], and a value in the space of the codes [b n e]."""

    logits: Array
    values: Array


class RasterStudent(causal.CausalTransformer):
    """The student of a class-conditional `CausalTransformer`: a token sees its own value and all earlier ones.

    Attributes:
      channels: of a code.
    """

    channels: int = 0

    def setup(self):
        super().setup()
        self.input_projection = _projection(self.sizes, self.channels)
        self.kind_embedding = _kinds(self.sizes)
        self.value_head = ValueHead(self.channels, self.sizes.dtype, self.sizes.param_dtype)
        self.closeness = Closeness()

    def __call__(
        self,
        values: Float[Array, "b n e"],
        known: Bool[Array, "b n"],
        labels: Int[Array, "b"],
        codes: Float[Array, "v e"],
        deterministic: bool = True,
    ) -> Predictions:
        """What the noise among `values` becomes.

        Args:
          values: codes where `known`, noise elsewhere.
          labels: num_classes is the null class.
          codes: all that a token may become.
          deterministic: no dropout; otherwise the stream "dropout" is needed.
        """
        condition = self.class_embedding(labels)
        x = self.input_projection(values) + self.kind_embedding(known.astype(jnp.int32))
        x = self.dropout(jnp.concatenate([condition[:, None], x], axis=1), deterministic=deterministic)
        rotary = jax.tree.map(lambda table: table[: x.shape[1]], self.rotary())
        x, _ = self.stack(x, rotary=rotary, mask=MaskSpec.causal(x.shape[1]), deterministic=deterministic)
        x = self.norm(x[:, 1:])
        return Predictions(self.head(x) + self.closeness(x, values, codes), self.value_head(x, condition))


class NextScaleStudent(next_scale.NextScaleTransformer):
    """The student of a `NextScaleTransformer`: a token sees its own value and those of all coarser scales.

    The class is a scale of its own before the first. `channels` are those of a code, as in the teacher.
    """

    def setup(self):
        super().setup()
        self.kind_embedding = _kinds(self.sizes)
        self.value_head = ValueHead(self.channels, self.sizes.dtype, self.sizes.param_dtype)
        self.closeness = Closeness()

    def __call__(
        self,
        values: Float[Array, "b n e"],
        known: Bool[Array, "b n"],
        labels: Int[Array, "b"],
        codes: Float[Array, "v e"],
        deterministic: bool = True,
    ) -> Predictions:
        """As `RasterStudent.__call__`."""
        condition = self.condition(labels)
        levels = np.repeat(np.arange(len(self.scale_lengths)), self.scale_lengths)
        x = self.input_projection(values) + self.kind_embedding(known.astype(jnp.int32))
        x = x + self.positions + self.levels[levels]
        x = jnp.concatenate([condition.start[:, None] + self.start[:1], x], axis=1)
        mask = MaskSpec.earlier_blocks_and_self((1, *self.scale_lengths))
        x, _ = self.stack(x, mask=mask, modulation=condition.layers, deterministic=deterministic)
        x = x[:, 1:]
        logits = self._logits(x, condition) + self.closeness(x, values, codes)
        return Predictions(logits, self.value_head(x, condition.start))


class Closeness(nn.Module):
    """What the value of a token itself says for each code: its product with the code, weighted.

    Between two codes the flow decides by which of them the noise lies closer to, shifted by their log-probabilities, so
    that these logits leave to the layers what the other tokens say. Channels have learned weights; the more a token is
    certain of the others, the sharper it can be.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], values: Float[Array, "b n e"], codes: Float[Array, "v e"]
    ) -> Float[Array, "b n v"]:
        init = logical(nn.initializers.constant(_CLOSENESS), None)
        weights = self.param("weights", init, values.shape[-1:], jnp.float32)
        kernel_init, bias_init = logical(nn.initializers.zeros, "embed", None), logical(nn.initializers.zeros, None)
        x = LayerNorm(affine=False, name="norm")(x)
        sharpness = jnp.exp(nn.Dense(1, kernel_init=kernel_init, bias_init=bias_init, name="sharpness")(x))
        spread = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(codes - jnp.mean(codes, axis=0)), axis=-1)) + _EPS)
        return sharpness * jnp.einsum("bne,ve->bnv", values * weights, codes / spread)


class ValueHead(nn.Module):
    """A value per token: a norm, shift and scale from the class, a linear map."""

    channels: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], condition: Float[Array, "b d"]) -> Float[Array, "b n e"]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        vectors = Modulation(1, (_STDDEV, _STDDEV), **types, name="modulation")(condition[:, None])[0]
        x = LayerNorm(affine=False, name="norm")(x)
        x = modulate(x, vectors[..., 0, :], vectors[..., 1, :]).astype(self.dtype)
        init = logical(normal(_STDDEV), "embed", None)
        bias_init = logical(nn.initializers.zeros, None)
        dense = nn.Dense(self.channels, kernel_init=init, bias_init=bias_init, **types, name="output")
        return dense(x).astype(jnp.float32)


def _projection(sizes: causal.Sizes, channels: int) -> nn.Dense:
    """Noise of unit variance keeps it."""
    return nn.Dense(
        sizes.width,
        kernel_init=logical(normal(1 / math.sqrt(channels)), None, "embed"),
        bias_init=logical(nn.initializers.zeros, "embed"),
        dtype=sizes.dtype,
        param_dtype=sizes.param_dtype,
    )


def _kinds(sizes: causal.Sizes | next_scale.Sizes) -> Embedding:
    """What tells noise (0) from tokens (1)."""
    types = dict(dtype=sizes.dtype, param_dtype=sizes.param_dtype)
    return Embedding(2, sizes.width, ("classes", "embed"), normal(_STDDEV), **types)
