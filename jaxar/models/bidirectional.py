"""The bidirectional transformer of MaskGIT: logits of every token given the known ones and the class.

The sequence is a class token and the image tokens; all of them attend one another. One table embeds everything: the
codes, the classes behind them, and in its last row the mask. The null class is that row too, a class token that is
masked, so guided models need no other weights than published ones have.

Reference: Chang et al., MaskGIT: Masked Generative Image Transformer, 2022, Sec. 3; Devlin et al., BERT, 2019.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from jaxar.nn import cache as kv
from jaxar.nn.attention import Attention
from jaxar.nn.layers import ACTIVATIONS, MLP, Embedding, Init, LayerNorm
from jaxar.nn.transformer import BlockSpec, LayerInputs, Remat, Shared, TransformerSizes, scan_layers
from jaxar.partition import constrain, logical
from jaxar.typing import Array, Bool, Float, Int

NORM_EPS = 1e-12
INIT: Init = nn.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class Sizes(TransformerSizes):
    """The section `model` of a MaskGIT configuration. The published code also drops attention weights."""

    num_layers: int = 24
    num_heads: int = 16

    def block(self) -> BlockSpec:
        return dataclasses.replace(super().block(), norm_eps=NORM_EPS, init=INIT, out_init=INIT)


class PostNormBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + feed_forward(x)), in the form that `scan_layers` wants."""

    spec: BlockSpec
    deterministic: bool = True

    @nn.compact
    def __call__(
        self, carry: tuple[Float[Array, "b t d"], kv.Cache | None], inputs: LayerInputs, shared: Shared
    ) -> tuple[tuple[Float[Array, "b t d"], kv.Cache | None], None]:
        spec, (x, cache) = self.spec, carry
        types = dict(dtype=spec.dtype, param_dtype=spec.param_dtype)
        attention = Attention(
            num_heads=spec.num_heads,
            head_dim=spec.head_dim,
            bias=spec.bias,
            out_bias=spec.out_bias,
            kernel_init=spec.init,
            out_init=spec.out_init,
            name="attention",
            **types,
        )
        y, cache = attention(x, shared.rotary, shared.dynamic, cache, inputs.index)
        x = self._add("attention", x, y)
        mlp = MLP(
            spec.hidden, activation=spec.feed_forward, up_init=spec.init, down_init=spec.out_init, name="mlp", **types
        )
        return (self._add("mlp", x, mlp(x)), cache), None

    def _add(self, name: str, x: Array, branch: Array) -> Array:
        spec = self.spec
        branch = nn.Dropout(spec.dropout, deterministic=self.deterministic, name=f"{name}_dropout")(branch)
        x = LayerNorm(spec.norm_eps, dtype=spec.dtype, param_dtype=spec.param_dtype, name=f"{name}_norm")(x + branch)
        return constrain(x, "batch", "length", "act_embed")


class PostNormStack(nn.Module):
    """`num_layers` such blocks, which attend what a cache holds if there is one."""

    spec: BlockSpec
    num_layers: int
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], deterministic: bool = True, cache: kv.Cache | None = None
    ) -> tuple[Float[Array, "b t d"], kv.Cache | None]:
        layers = scan_layers(PostNormBlock, self.num_layers, self.remat)(self.spec, deterministic, name="layers")
        return layers((x, cache), LayerInputs(jnp.arange(self.num_layers)), Shared())[0]


class BidirectionalTransformer(nn.Module):
    """Logits of all tokens, for which the known ones and the class are read.

    Attributes:
      vocab_size: number of codes.
      grid: height and width of the token map.
      num_classes: labels are below it; `num_classes` itself is the null class.
    """

    sizes: Sizes
    vocab_size: int
    grid: tuple[int, int]
    num_classes: int

    def setup(self):
        sizes, types = self.sizes, dict(dtype=self.sizes.dtype, param_dtype=self.sizes.param_dtype)
        # No mesh axis divides codes + classes + 1 rows, so tables are split along their width.
        tables = dict(axes=("classes", "embed"), init=INIT, **types)
        self.token_embedding = Embedding(self.mask_id + 1, sizes.width, **tables)
        self.position_embedding = Embedding(self.num_tokens + 1, sizes.width, **tables)
        self.embedding_norm = LayerNorm(NORM_EPS, **types)
        self.dropout = nn.Dropout(sizes.dropout)
        self.stack = PostNormStack(sizes.block(), sizes.num_layers, sizes.remat)
        self.head_dense = nn.Dense(
            sizes.width,
            kernel_init=logical(INIT, "embed", "mlp"),
            bias_init=logical(nn.initializers.zeros, "mlp"),
            **types,
        )
        self.head_norm = LayerNorm(NORM_EPS, **types)
        self.head_bias = self.param(
            "head_bias", logical(nn.initializers.zeros, "classes"), (self.mask_id + 1,), sizes.param_dtype
        )

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def mask_id(self) -> int:
        """Row of the mask, and of the null class."""
        return self.vocab_size + self.num_classes

    def __call__(
        self,
        ids: Int[Array, "b n"],
        known: Bool[Array, "b n"],
        label: Int[Array, "b"],
        deterministic: bool = True,
    ) -> Float[Array, "b n v"]:
        """Logits over the codes, float32, at every position.

        Args:
          ids: read where `known`.
          label: 0..num_classes, the last being the null class.
          deterministic: without dropout, which needs the stream "dropout".
        """
        return self.logits(self.hidden(ids, known, label, deterministic))

    def hidden(
        self,
        ids: Int[Array, "b n"],
        known: Bool[Array, "b n"],
        label: Int[Array, "b"],
        deterministic: bool = True,
    ) -> Float[Array, "b n d"]:
        """What the last layer gives for every token; arguments as for `__call__`."""
        return self._hidden(self._sequence(ids, known, label), deterministic)[:, 1:]

    def logits(self, hidden: Float[Array, "b n d"]) -> Float[Array, "b n v"]:
        """Logits over the codes, float32, from `hidden`."""
        return self._logits(hidden, self.vocab_size)

    def embed(self, ids: Int[Array, "b n"], known: Bool[Array, "b n"]) -> Float[Array, "b n d"]:
        """The table's vectors of known tokens, and of the mask elsewhere."""
        return self.token_embedding(self._rows(ids, known))

    def _rows(self, ids: Array, known: Array) -> Int[Array, "b n"]:
        return jnp.where(known, ids, self.mask_id)

    def sequence_logits(self, sequence: Int[Array, "b n_plus_1"]) -> Float[Array, "b n_plus_1 rows"]:
        """Logits over all rows of the table, at the class token too, for a sequence that is given as it is read."""
        return self._logits(self._hidden(sequence, True), self.mask_id + 1)

    def extend(
        self,
        ids: Int[Array, "b n"],
        known: Bool[Array, "b n"],
        label: Int[Array, "b"],
        positions: Int[Array, "b m"],
        cache: kv.PlacedCache,
        whole: bool,
    ) -> tuple[Float[Array, "b m v"], kv.PlacedCache]:
        """Logits at some positions, and a cache in which their keys and values are new.

        Args:
          ids, known, label: as for `__call__`.
          positions: of tokens.
          cache: what these positions attend beside one another, from `init_cache` and earlier calls.
          whole: compute keys and values of all tokens and of the class, as the first call must.
        """
        sequence, places = self._sequence(ids, known, label), 1 + positions
        if whole:
            hidden, cache = self._run(sequence, jnp.arange(sequence.shape[1]), True, cache.at(None))
            hidden = jnp.take_along_axis(hidden, places[..., None], axis=1)
        else:
            sequence = jnp.take_along_axis(sequence, places, axis=1)
            hidden, cache = self._run(sequence, places, True, cache.at(places))
        return self._logits(hidden, self.vocab_size), cache.at(None)

    def init_cache(self, batch: int) -> kv.PlacedCache:
        """A cache for `extend`."""
        sizes = self.sizes
        spec = sizes.block()
        return kv.create_placed(
            sizes.num_layers, batch, self.num_tokens + 1, spec.num_heads, spec.head_dim, sizes.dtype
        )

    def _sequence(self, ids: Array, known: Array, label: Array) -> Int[Array, "b n_plus_1"]:
        return jnp.concatenate([self.vocab_size + label[:, None], self._rows(ids, known)], axis=1)

    def _hidden(self, sequence: Int[Array, "b t"], deterministic: bool) -> Float[Array, "b t d"]:
        return self._run(sequence, jnp.arange(sequence.shape[1]), deterministic, None)[0]

    def _run(
        self,
        sequence: Int[Array, "b t"],
        places: Int[Array, "*b t"],
        deterministic: bool,
        cache: kv.PlacedCache | None,
    ) -> tuple[Float[Array, "b t d"], kv.PlacedCache | None]:
        x = self.token_embedding(sequence) + self.position_embedding(places)
        x = self.dropout(self.embedding_norm(x), deterministic=deterministic)
        return self.stack(x, deterministic, cache)

    def _logits(self, hidden: Float[Array, "b t d"], rows: int) -> Float[Array, "b t rows"]:
        """Products with the first `rows` embeddings."""
        x = self.head_norm(ACTIVATIONS["gelu_tanh"](self.head_dense(hidden)))
        logits = self.token_embedding.attend(x, rows) + self.head_bias[:rows].astype(jnp.float32)
        return constrain(logits, "batch", "length", "vocab")
