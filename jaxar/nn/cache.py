"""Keys and values that are kept from call to call, as explicit pytrees: of a prefix, or of all places of a sequence."""

import flax.struct
import jax
import jax.numpy as jnp

from jaxar.partition import constrain
from jaxar.typing import Array, Float, Int, typechecked


@flax.struct.dataclass
class KVCache:
    """Keys and values of all layers.

    Attributes:
      k, v: [layers, b, kv_len, kv_heads, head_dim].
      length: filled positions, a scalar, or [b] where samples advance at their own pace (speculative decoding). What
        lies beyond is garbage: readers mask it, nothing clears it.
    """

    k: Float[Array, "l b s k e"]
    v: Float[Array, "l b s k e"]
    length: Int[Array, ""] | Int[Array, "b"]

    def positions(self, count: int) -> Int[Array, "t"] | Int[Array, "b t"]:
        """Positions of the next `count` tokens."""
        return self.length[..., None] + jnp.arange(count)

    def write(self, layer: Int[Array, ""] | int, k: Float[Array, "b t k e"], v: Float[Array, "b t k e"]) -> "KVCache":
        """Stores keys and values of the next tokens of one layer; `length` stays until `advance`."""
        return self.replace(k=self._put(self.k, layer, k), v=self._put(self.v, layer, v))

    def _put(self, store: Array, layer: Int[Array, ""] | int, new: Array) -> Array:
        new = new.astype(store.dtype)
        if self.length.ndim == 0:
            return jax.lax.dynamic_update_slice(store, new[None], (layer, 0, self.length, 0, 0))
        rows = jnp.arange(new.shape[0])[:, None]
        return store.at[layer, rows, self.positions(new.shape[1])].set(new, mode="drop")

    def read(
        self, layer: Int[Array, ""] | int, kv_len: int | None = None
    ) -> tuple[Float[Array, "b s k e"], Float[Array, "b s k e"]]:
        """Keys and values of one layer: the first `kv_len` positions (static), None for all."""
        return _layer(self.k, layer, kv_len), _layer(self.v, layer, kv_len)

    def advance(self, count: int) -> "KVCache":
        """Counts `count` tokens, written by every layer, as filled."""
        return self.replace(length=self.length + count)

    def truncate(self, length: Int[Array, ""] | Int[Array, "b"]) -> "KVCache":
        """Forgets everything from `length` on (a rejected draft)."""
        return self.replace(length=jnp.minimum(self.length, length))


@flax.struct.dataclass
class PlacedCache:
    """Keys and values of all layers at every place of a sequence, of which a call computes some anew.

    Attributes:
      k, v: [layers, b, places, kv_heads, head_dim].
      places: [b t], of the tokens of the next call; what is meant for a place outside the sequence is dropped. None if
        the call computes the whole sequence in its order.
    """

    k: Float[Array, "l b s k e"]
    v: Float[Array, "l b s k e"]
    places: Int[Array, "b t"] | None = None

    def at(self, places: Int[Array, "b t"] | None) -> "PlacedCache":
        return self.replace(places=places)

    def write(
        self, layer: Int[Array, ""] | int, k: Float[Array, "b t k e"], v: Float[Array, "b t k e"]
    ) -> "PlacedCache":
        """Stores the keys and values of one layer."""
        return self.replace(k=self._put(self.k, layer, k), v=self._put(self.v, layer, v))

    def _put(self, store: Array, layer: Int[Array, ""] | int, new: Array) -> Array:
        new = new.astype(store.dtype)
        if self.places is None:
            return jax.lax.dynamic_update_slice(store, new[None], (layer, 0, 0, 0, 0))
        rows = jnp.arange(new.shape[0])[:, None]
        return store.at[layer, rows, self.places].set(new, mode="drop")

    def read(
        self, layer: Int[Array, ""] | int, kv_len: int | None = None
    ) -> tuple[Float[Array, "b s k e"], Float[Array, "b s k e"]]:
        """Keys and values of one layer: the first `kv_len` places (static), None for all."""
        return _layer(self.k, layer, kv_len), _layer(self.v, layer, kv_len)

    def advance(self, count: int) -> "PlacedCache":
        """Itself: its length is fixed."""
        return self


Cache = KVCache | PlacedCache


def _layer(store: Array, layer: Int[Array, ""] | int, kv_len: int | None) -> Float[Array, "b s k e"]:
    size = (1, store.shape[1], kv_len or store.shape[2], *store.shape[3:])
    values = jax.lax.dynamic_slice(store, (layer, 0, 0, 0, 0), size)[0]
    return constrain(values, "batch", "length", "kv_heads", "head_dim")


@typechecked
def create(num_layers: int, batch: int, kv_len: int, kv_heads: int, head_dim: int, dtype: str = "float32") -> KVCache:
    """An empty cache for `kv_len` positions."""
    zeros = _zeros(num_layers, batch, kv_len, kv_heads, head_dim, dtype)
    return KVCache(zeros, zeros, jnp.zeros((), jnp.int32))


@typechecked
def create_placed(
    num_layers: int, batch: int, places: int, kv_heads: int, head_dim: int, dtype: str = "float32"
) -> PlacedCache:
    """A cache whose first call must compute the whole sequence."""
    zeros = _zeros(num_layers, batch, places, kv_heads, head_dim, dtype)
    return PlacedCache(zeros, zeros)


def _zeros(num_layers: int, batch: int, length: int, kv_heads: int, head_dim: int, dtype: str) -> Array:
    zeros = jnp.zeros((num_layers, batch, length, kv_heads, head_dim), dtype)
    return constrain(zeros, "layers", "batch", "length", "kv_heads", "head_dim")
