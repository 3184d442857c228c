"""Norms, feed-forward layers, adaLN modulation, embedding tables and stochastic depth."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxar.partition import constrain, logical
from jaxar.typing import Array, Float, Int, Key, Variables, typechecked

Init = Callable[..., Any]


@functools.cache
def normal(stddev: float) -> Init:
    """The Gaussian initializer; one object per deviation, so that modules with equal fields are equal."""
    return nn.initializers.normal(stddev)


DEFAULT_INIT = normal(0.02)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "silu": nn.silu,
}


class RMSNorm(nn.Module):
    """Division by the root mean square over the last axis, in float32, then a learned scale if `affine`."""

    eps: float = 1e-5
    affine: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        if self.affine:
            x = x * self.param("scale", logical(nn.initializers.ones, "norm"), x.shape[-1:], self.param_dtype)
        return x.astype(self.dtype)


class LayerNorm(nn.Module):
    """Standardization over the last axis, in float32, then a learned scale and bias if `affine`."""

    eps: float = 1e-6
    affine: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        if self.affine:
            x = x * self.param("scale", logical(nn.initializers.ones, "norm"), x.shape[-1:], self.param_dtype)
            x = x + self.param("bias", logical(nn.initializers.zeros, "norm"), x.shape[-1:], self.param_dtype)
        return x.astype(self.dtype)


class MLP(nn.Module):
    """Linear, activation, linear; `out` is the output width (None: the input's)."""

    hidden: int
    out: int | None = None
    activation: Literal["gelu_tanh", "gelu", "silu"] = "gelu_tanh"
    use_bias: bool = True
    up_init: Init = DEFAULT_INIT
    down_init: Init = DEFAULT_INIT
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t o"]:
        dense = _dense(self.dtype, self.param_dtype, self.use_bias)
        h = dense(self.hidden, "up", self.up_init, ("embed", "mlp"))(x)
        h = constrain(ACTIVATIONS[self.activation](h), "batch", "length", "mlp")
        return dense(self.out or x.shape[-1], "down", self.down_init, ("mlp", "embed"))(h)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases.

    Reference: Shazeer, GLU Variants Improve Transformer, 2020, Eq. 6.
    """

    hidden: int
    up_init: Init = DEFAULT_INIT
    down_init: Init = DEFAULT_INIT
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        dense = _dense(self.dtype, self.param_dtype, use_bias=False)
        gate = dense(self.hidden, "gate", self.up_init, ("embed", "mlp"))(x)
        up = dense(self.hidden, "up", self.up_init, ("embed", "mlp"))(x)
        h = constrain(nn.silu(gate) * up, "batch", "length", "mlp")
        return dense(x.shape[-1], "down", self.down_init, ("mlp", "embed"))(h)


def _dense(dtype: Any, param_dtype: Any, use_bias: bool) -> Callable[..., nn.Dense]:
    def make(features: int, name: str, init: Init, axes: tuple[str, str]) -> nn.Dense:
        return nn.Dense(
            features,
            use_bias=use_bias,
            kernel_init=logical(init, *axes),
            bias_init=logical(nn.initializers.zeros, axes[1]),
            dtype=dtype,
            param_dtype=param_dtype,
            name=name,
        )

    return make


class Head(nn.Module):
    """The output projection to logits: operands in `dtype`, sums and logits in float32."""

    features: int
    use_bias: bool = False
    kernel_init: Init = nn.initializers.zeros
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", logical(self.kernel_init, "embed", "vocab"), shape, self.param_dtype)
        logits = jnp.einsum(
            "btd,dv->btv", x.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=jnp.float32
        )
        if self.use_bias:
            bias_init = logical(nn.initializers.zeros, "vocab")
            logits = logits + self.param("bias", bias_init, (self.features,), self.param_dtype)
        return constrain(logits, "batch", "length", "vocab")


class Embedding(nn.Module):
    """A table of `count` vectors; rows are gathered before they are cast. An id out of range gives NaN.

    A class-conditional model uses `count = num_classes + 1`: the last row is the null class.
    """

    count: int
    width: int
    axes: tuple[str, str] = ("vocab", "embed_table")
    init: Init = DEFAULT_INIT
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self):
        self.embedding = self.param(
            "embedding", logical(self.init, *self.axes), (self.count, self.width), self.param_dtype
        )

    def __call__(self, ids: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        return jnp.take(self.embedding, ids, axis=0, mode="fill").astype(self.dtype)

    def attend(self, x: Float[Array, "b t d"], rows: int) -> Float[Array, "b t r"]:
        """Products with the first `rows` vectors, float32: logits of a head that is tied to the table."""
        table = self.embedding[:rows].astype(self.dtype)
        return jnp.einsum("btd,rd->btr", x.astype(self.dtype), table, preferred_element_type=jnp.float32)


class Modulation(nn.Module):
    """adaLN vectors of a stack of layers, from one conditioning vector: SiLU, then a linear map per layer.

    They depend on the condition alone, so a sampler computes them once and feeds them to every call. The result is
    float32 with shape [layers, b, m, chunks, d]; m is 1, or the number of separately conditioned positions.

    Attributes:
      stddevs: of the initial kernel, for each of the chunks.
      offset_stddevs: None for a map per layer; otherwise all layers share one map and each adds a learned offset, which
        starts with these deviations.
    """

    num_layers: int
    stddevs: tuple[float, ...]
    offset_stddevs: tuple[float, ...] | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, c: Float[Array, "b m d"]) -> Float[Array, "l b m chunks d"]:
        width, out = c.shape[-1], len(self.stddevs) * c.shape[-1]
        maps = self.num_layers if self.offset_stddevs is None else 1
        kernel_init = logical(_chunked_normal(self.stddevs), "layers", "embed", "mlp")
        kernel = self.param("kernel", kernel_init, (maps, width, out), self.param_dtype)
        bias = self.param("bias", logical(nn.initializers.zeros, "layers", "mlp"), (maps, out), self.param_dtype)
        c, kernel = nn.silu(c).astype(self.dtype), kernel.astype(self.dtype)
        y = jnp.einsum("bmd,ldo->lbmo", c, kernel, preferred_element_type=jnp.float32)
        y = y + bias.astype(jnp.float32)[:, None, None]
        if self.offset_stddevs is not None:
            offset_init = logical(_chunked_normal(self.offset_stddevs), "layers", "mlp")
            offset = self.param("offset", offset_init, (self.num_layers, out), self.param_dtype)
            y = y + offset.astype(jnp.float32)[:, None, None]
        return y.reshape(*y.shape[:-1], len(self.stddevs), width)


def _chunked_normal(stddevs: tuple[float, ...]) -> Init:
    def init(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
        stddev = jnp.repeat(jnp.asarray(stddevs), shape[-1] // len(stddevs))
        return (stddev * jax.random.normal(key, shape)).astype(dtype)

    return init


@typechecked
def modulate(
    x: Float[Array, "b t d"], scale: Float[Array, "b #t d"], shift: Float[Array, "b #t d"]
) -> Float[Array, "b t d"]:
    """x * (1 + scale) + shift, in the precision of the vectors."""
    return x * (1 + scale) + shift


@typechecked
def drop_path(branch: Float[Array, "b t d"], rate: Float[Array, ""], key: Key) -> Float[Array, "b t d"]:
    """Stochastic depth: the whole branch of a sample is zero with probability `rate`, else divided by 1 - rate.

    Reference: Huang et al., Deep Networks with Stochastic Depth, 2016.
    """
    kept = jax.random.bernoulli(key, 1 - rate, (branch.shape[0], 1, 1))
    return jnp.where(kept, branch / (1 - rate).astype(branch.dtype), jnp.zeros_like(branch))


def cast_weights(variables: Variables, dtype: Any) -> Variables:
    """Kernels and tables in the type that they are computed in: what follows is unchanged, and reads fewer bytes.

    For decoding, where every step would otherwise read and cast the stored weights again.
    """

    def cast(path: Any, leaf: Array) -> Array:
        return leaf.astype(dtype) if path[-1].key in ("kernel", "embedding") else leaf

    return jax.tree_util.tree_map_with_path(cast, variables)
