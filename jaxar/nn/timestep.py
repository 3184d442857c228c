"""Time as a vector: sinusoids of many frequencies, and a small network over them."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxar.nn.layers import DEFAULT_INIT
from jaxar.partition import logical
from jaxar.typing import Array, Float, typechecked


@typechecked
def sinusoids(t: Float[Array, "*b"], width: int, max_period: float = 10_000.0) -> Float[Array, "*b d"]:
    """[cos(t f_0), cos(t f_1), ..., sin(t f_0), ...] with f_i = max_period^(-2 i / width), d = width even.

    Reference: Vaswani et al., Attention Is All You Need, 2017, Sec. 3.5; cosines first, as in the code of DiT and MAR.
    """
    half = width // 2
    angles = t[..., None] * jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedding(nn.Module):
    """Linear, SiLU, linear over the sinusoids of a time."""

    width: int
    frequencies: int = 256
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, t: Float[Array, "*b"]) -> Float[Array, "*b d"]:
        hidden = self._dense("up", (None, "mlp"))(sinusoids(t, self.frequencies))
        return self._dense("down", ("mlp", "embed"))(nn.silu(hidden))

    def _dense(self, name: str, axes: tuple[str | None, str]) -> nn.Dense:
        return nn.Dense(
            self.width,
            kernel_init=logical(DEFAULT_INIT, *axes),
            bias_init=logical(nn.initializers.zeros, axes[1]),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )
