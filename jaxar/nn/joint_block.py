"""The multi-modal block: two sequences with weights of their own attend each other as one.

Reference: Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024, Sec. 4. Queries
and keys are unit vectors under a learned scale per head, as everywhere here, in place of an RMS norm.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxar.kernels.attention import attention
from jaxar.nn import rope
from jaxar.nn.layers import MLP, LayerNorm, modulate
from jaxar.nn.quantize import l2_normalize
from jaxar.nn.transformer import BlockSpec, Remat, Shared, scan_layers
from jaxar.partition import constrain, logical
from jaxar.typing import Array, Float


class Pair(NamedTuple):
    """Something of the text and of the image: activations [b p d] and [b n d], or adaLN vectors [b 1 6 d] of each."""

    text: Array
    image: Array


class Stream(nn.Module):
    """What a block does with one of the two sequences; `modulation` is as in `LayerInputs`.

    Attributes:
      spec: of a block with adaLN (`affine` off) and `qk_norm="l2"`.
    """

    spec: BlockSpec
    deterministic: bool = True

    def setup(self):
        spec, types = self.spec, dict(dtype=self.spec.dtype, param_dtype=self.spec.param_dtype)
        heads, zeros = (spec.num_heads, spec.head_dim), nn.initializers.zeros
        self.norms = [LayerNorm(spec.norm_eps, affine=False) for _ in range(2)]
        self.query, self.key, self.value = (
            nn.DenseGeneral(
                heads,
                kernel_init=logical(spec.init, "embed", "heads", "head_dim"),
                bias_init=logical(zeros, "heads", "head_dim"),
                **types,
            )
            for _ in range(3)
        )
        scale_init = logical(nn.initializers.constant(math.log(4)), "heads")
        self.scale = self.param("scale", scale_init, heads[:1], spec.param_dtype)
        self.out = nn.DenseGeneral(
            heads[0] * heads[1],
            axis=(-2, -1),
            kernel_init=logical(spec.out_init, "heads", "head_dim", "embed"),
            bias_init=logical(zeros, "embed"),
            **types,
        )
        self.mlp = MLP(spec.hidden, activation=spec.feed_forward, up_init=spec.init, down_init=spec.out_init, **types)
        self.dropouts = [nn.Dropout(spec.dropout) for _ in range(2)]

    def heads(self, x: Float[Array, "b t d"], modulation: Float[Array, "b 1 6 d"]) -> tuple[Array, Array, Array]:
        """Queries, keys and values [b t h e], before the rotation."""
        x = self._normed(0, x, modulation)
        q, k, v = self.query(x), self.key(x), self.value(x)
        gain = jnp.exp(jnp.minimum(self.scale.astype(jnp.float32), math.log(100)))
        q, k = (l2_normalize(y.astype(jnp.float32)) for y in (q, k))
        return q * gain[:, None], k, v

    def add(
        self, x: Float[Array, "b t d"], attended: Float[Array, "b t h e"], modulation: Float[Array, "b 1 6 d"]
    ) -> Float[Array, "b t d"]:
        """The sequence after both branches."""
        x = self._gated(0, x, self.out(attended), modulation)
        return self._gated(1, x, self.mlp(self._normed(1, x, modulation)), modulation)

    def _normed(self, branch: int, x: Array, modulation: Array) -> Array:
        scale, shift = modulation[..., 2 + branch, :], modulation[..., 4 + branch, :]
        return modulate(self.norms[branch](x), scale, shift).astype(self.spec.dtype)

    def _gated(self, branch: int, x: Array, y: Array, modulation: Array) -> Array:
        y = self.dropouts[branch](y, deterministic=self.deterministic) * modulation[..., branch, :]
        return constrain(x + y.astype(x.dtype), "batch", "length", "act_embed")


class JointBlock(nn.Module):
    """One layer in the form that `scan_layers` wants; `Shared` describes the sequence of the text, then the image."""

    spec: BlockSpec
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: Pair, modulation: Pair, shared: Shared) -> tuple[Pair, None]:
        streams = [Stream(self.spec, self.deterministic, name=name) for name in Pair._fields]
        heads = [stream.heads(*of_stream) for stream, *of_stream in zip(streams, x, modulation)]
        q, k, v = (jnp.concatenate(parts, axis=1) for parts in zip(*heads))
        if shared.rotary is not None:
            q, k = rope.rotate(q, shared.rotary), rope.rotate(k, shared.rotary)
        q, k = q.astype(self.spec.dtype), k.astype(self.spec.dtype)
        y = constrain(attention(q, k, v, None, shared.dynamic, scale=1.0), "batch", "length", "heads", "head_dim")
        attended = jnp.split(y, [x.text.shape[1]], axis=1)
        return Pair(*(s.add(*parts) for s, *parts in zip(streams, x, attended, modulation))), None


class JointStack(nn.Module):
    """`num_layers` such blocks, all alike: the last one also makes something of the text, which nobody may read."""

    spec: BlockSpec
    num_layers: int
    remat: Remat = "none"

    @nn.compact
    def __call__(self, x: Pair, modulation: Pair, shared: Shared, deterministic: bool = True) -> Pair:
        """Activations of both sequences; `modulation` has a leading axis of layers."""
        return scan_layers(JointBlock, self.num_layers, self.remat)(self.spec, deterministic, name="layers")(
            Pair(*(y.astype(self.spec.dtype) for y in x)), modulation, shared
        )[0]
