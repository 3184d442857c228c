"""The transformer block, and stacks of any block under one scan."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.kernels.attention import Implementation
from jaxar.kernels.mask import DynamicRanges, MaskSpec
from jaxar.nn.attention import Attention
from jaxar.nn.cache import Cache
from jaxar.nn.layers import DEFAULT_INIT, MLP, Init, LayerNorm, RMSNorm, SwiGLU, drop_path, modulate
from jaxar.nn.rope import Rotary
from jaxar.partition import constrain
from jaxar.typing import Array, Float, Int, Variables

Remat = Literal["none", "full", "dots"]

# What the backward pass finds stored: everything, nothing, or the outputs of weight matrices.
_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """A pre-norm block: x + attention(norm(x)), then x + feed_forward(norm(x)).

    Attributes:
      affine: learned scale (and bias) in the norms; off where adaLN supplies them.
      feed_forward: "swiglu", or the activation of a two-layer MLP with biases.
      hidden: width inside the feed-forward layer.
      bias, qk_norm, scale, implementation: as in `Attention`.
      out_bias: bias of the attention's output projection.
      dropout: on the output of both branches.
      init: of every kernel but the last of a branch, which takes `out_init`.
    """

    num_heads: int
    head_dim: int
    hidden: int
    num_kv_heads: int | None = None
    norm: Literal["rms", "layer"] = "layer"
    norm_eps: float = 1e-6
    affine: bool = True
    feed_forward: Literal["swiglu", "gelu_tanh", "gelu"] = "gelu_tanh"
    bias: Literal["none", "qv", "qkv"] = "none"
    out_bias: bool = False
    qk_norm: Literal["none", "l2"] = "none"
    scale: float | None = None
    implementation: Implementation = "auto"
    dropout: float = 0.0
    init: Init = DEFAULT_INIT
    out_init: Init = DEFAULT_INIT
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32


@dataclasses.dataclass(frozen=True)
class TransformerSizes:
    """The network's size and how it is computed; the section `model` of a configuration.

    Attributes:
      mlp_ratio: width inside the feed-forward layers, relative to `width`.
      dropout: on embedded tokens and on both branches of a block.
      remat: what the backward pass recomputes.
      dtype, param_dtype: of computation and of storage.
    """

    num_layers: int = 12
    width: int = 768
    num_heads: int = 12
    mlp_ratio: float = 4.0
    dropout: float = 0.1
    remat: Remat = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if self.width % self.num_heads:
            raise ConfigError(
                f"model.width={self.width} is not divisible by num_heads={self.num_heads}; "
                f"use width={self.num_heads * max(1, self.width // self.num_heads)}"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout={self.dropout} must lie in [0, 1)")

    def block(self) -> BlockSpec:
        return BlockSpec(
            num_heads=self.num_heads,
            head_dim=self.width // self.num_heads,
            hidden=round(self.width * self.mlp_ratio),
            bias="qkv",
            out_bias=True,
            dropout=self.dropout,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )


class LayerInputs(NamedTuple):
    """What differs between layers; every leaf has a leading "layers" axis, which the scan takes off.

    Attributes:
      index: of the layer, for the cache.
      drop_path: probability of stochastic depth, None for none.
      modulation: adaLN vectors [b, m, 6, d] in the order gate 1, gate 2, scale 1, scale 2, shift 1, shift 2
        (1 attention, 2 feed-forward), None without adaLN; m is 1 or t.
    """

    index: Int[Array, ""] | int
    drop_path: Float[Array, ""] | None = None
    modulation: Float[Array, "b m 6 d"] | None = None


class Shared(NamedTuple):
    """What all layers see: rotary rows of the tokens, and key ranges that are data."""

    rotary: Rotary | None = None
    dynamic: DynamicRanges | None = None


class Block(nn.Module):
    """One layer in the form that `scan_layers` wants: (activations, cache) -> (activations, cache)."""

    spec: BlockSpec
    mask: MaskSpec | None = None
    kv_len: int | None = None
    deterministic: bool = True

    @nn.compact
    def __call__(
        self, carry: tuple[Float[Array, "b t d"], Cache | None], inputs: LayerInputs, shared: Shared
    ) -> tuple[tuple[Float[Array, "b t d"], Cache | None], None]:
        spec, (x, cache) = self.spec, carry
        gates, scales, shifts = (None, None), (None, None), (None, None)
        if inputs.modulation is not None:
            vectors = [inputs.modulation[..., i, :] for i in range(6)]
            gates, scales, shifts = vectors[:2], vectors[2:4], vectors[4:]

        y = self._norm("attention_norm", x, scales[0], shifts[0])
        y, cache = Attention(
            num_heads=spec.num_heads,
            head_dim=spec.head_dim,
            num_kv_heads=spec.num_kv_heads,
            bias=spec.bias,
            out_bias=spec.out_bias,
            qk_norm=spec.qk_norm,
            scale=spec.scale,
            mask=self.mask,
            kv_len=self.kv_len,
            implementation=spec.implementation,
            kernel_init=spec.init,
            out_init=spec.out_init,
            dtype=spec.dtype,
            param_dtype=spec.param_dtype,
            name="attention",
        )(y, shared.rotary, shared.dynamic, cache, inputs.index)
        x = self._add("attention_dropout", x, y, gates[0], inputs.drop_path)

        y = self._norm("mlp_norm", x, scales[1], shifts[1])
        y = self._feed_forward()(y)
        x = self._add("mlp_dropout", x, y, gates[1], inputs.drop_path)
        return (x, cache), None

    def _norm(self, name: str, x: Array, scale: Array | None, shift: Array | None) -> Array:
        spec = self.spec
        norm = {"rms": RMSNorm, "layer": LayerNorm}[spec.norm]
        dtype = spec.dtype if scale is None else jnp.float32
        y = norm(eps=spec.norm_eps, affine=spec.affine, dtype=dtype, param_dtype=spec.param_dtype, name=name)(x)
        return y if scale is None else modulate(y, scale, shift).astype(spec.dtype)

    def _feed_forward(self) -> nn.Module:
        spec = self.spec
        common = dict(
            hidden=spec.hidden,
            up_init=spec.init,
            down_init=spec.out_init,
            dtype=spec.dtype,
            param_dtype=spec.param_dtype,
            name="mlp",
        )
        return SwiGLU(**common) if spec.feed_forward == "swiglu" else MLP(activation=spec.feed_forward, **common)

    def _add(self, name: str, x: Array, branch: Array, gate: Array | None, rate: Array | None) -> Array:
        branch = nn.Dropout(self.spec.dropout, deterministic=self.deterministic, name=name)(branch)
        if gate is not None:
            branch = (branch * gate).astype(x.dtype)
        if rate is not None and not self.deterministic:
            branch = drop_path(branch, rate, self.make_rng("dropout"))
        return constrain(x + branch, "batch", "length", "act_embed")


def scan_layers(block: type[nn.Module], num_layers: int, remat: Remat = "none") -> type[nn.Module]:
    """The class of a stack of `num_layers` copies of `block`, to be constructed with the block's fields.

    It is called as the block is, with (carry, per-layer inputs, shared inputs), all positional. Parameters have a
    leading "layers" axis.

    Args:
      remat: what the backward pass recomputes: "none", everything but the layers' inputs ("full"), or all but the
        outputs of weight matrices ("dots").
    """
    if remat != "none":
        # The loop keeps forward and backward pass apart by itself; the barriers of prevent_cse would only cost time.
        block = nn.remat(block, prevent_cse=False, policy=_POLICIES[remat])
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast),
        length=num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def split_layers(variables: Variables) -> Variables:
    """Variables of a network with looped stacks, in the layout of the same network with `unroll`.

    Done once before a decode loop: a straight line that read slices of stacked weights would copy them at every step.
    """
    result: dict[str, Any] = {}
    for name, value in variables.items():
        if name == "layers":
            count = jax.tree.leaves(value)[0].shape[0]
            result |= {f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], value) for i in range(count)}
        else:
            result[name] = split_layers(value) if isinstance(value, Mapping) else value
    return result


class Stack(nn.Module):
    """`num_layers` blocks, perhaps none; the cache travels in the scan's carry, where it is updated in place.

    Attributes:
      drop_path: stochastic depth of the last layer; it grows linearly from 0 at the first.
      unroll: a straight line of layers in place of the loop, for decoding: longer to compile, faster for short calls.
        Its parameters are those of the loop after `split_layers`; nothing is recomputed.
    """

    spec: BlockSpec
    num_layers: int
    drop_path: float = 0.0
    remat: Remat = "none"
    unroll: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        *,
        rotary: Rotary | None = None,
        mask: MaskSpec | None = None,
        dynamic: DynamicRanges | None = None,
        modulation: Float[Array, "l b m 6 d"] | None = None,
        cache: Cache | None = None,
        kv_len: int | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "b t d"], Cache | None]:
        """Runs all layers.

        Args:
          rotary: rows for the t tokens.
          mask: static attention structure, None where every query sees every key that is read.
          dynamic: key ranges that are data.
          modulation: adaLN vectors of each layer.
          cache: filled up to `cache.length`, where the t tokens go.
          kv_len: static bound on the positions of the cache that are read; at least length + t.
        Returns:
          The activations before any final norm, and the cache with the t tokens counted in.
        """
        rates = jnp.linspace(0.0, self.drop_path, self.num_layers) if self.drop_path else None
        inputs = LayerInputs(jnp.arange(self.num_layers), rates, modulation)
        shared, fields = Shared(rotary, dynamic), (self.spec, mask, kv_len, deterministic)
        carry = constrain(x.astype(self.spec.dtype), "batch", "length", "act_embed"), cache
        if self.unroll:
            for i in range(self.num_layers):
                own = jax.tree.map(lambda leaf: leaf[i], inputs)  # noqa: B023 - called at once
                carry, _ = Block(*fields, name=f"layer_{i}")(carry, own._replace(index=i), shared)
        elif self.num_layers:
            stack = scan_layers(Block, self.num_layers, self.remat)(*fields, name="layers")
            carry, _ = stack(carry, inputs, shared)
        x, cache = carry
        return x, None if cache is None else cache.advance(x.shape[1])
