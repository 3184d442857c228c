"""A transformer that gives any token's law given any subset of the others, many of them in one pass.

Two streams share all weights. The content stream reads tokens in an order of ranks; each sees those up to itself, and
the tokens of the prompt, which come first, see one another. The query stream holds places whose tokens are asked for: a
place knows where it is but not what is there, and sees the content of a prefix of the ranks. With the prefix that ends
before its own rank, queries give all conditionals of a joint law; with a common prefix, laws that are independent of
one another.

Reference: Yang et al., XLNet: Generalized Autoregressive Pretraining for Language Understanding, 2019, Sec. 2.3; Guo,
Ermon, Reviving Any-Subset Autoregressive Models with Principled Parallel Sampling and Speculative Decoding, 2025.
Differences: absolute positions, pre-norm blocks, a class token; a query also sees itself.
"""

import flax.linen as nn
import jax.numpy as jnp

from jaxar.kernels.mask import DynamicRanges
from jaxar.nn.layers import Embedding, Head, LayerNorm, normal
from jaxar.nn.transformer import Stack, TransformerSizes
from jaxar.partition import logical
from jaxar.typing import Array, Float, Int, typechecked


class AnySubsetTransformer(nn.Module):
    """Logits of the tokens of some ranks, each given the tokens of all ranks below a number.

    Attributes:
      vocab_size: number of codes.
      num_classes: labels are below it; `num_classes` itself is the null class.
    """

    sizes: TransformerSizes
    vocab_size: int
    grid: tuple[int, int]
    num_classes: int

    def setup(self):
        sizes, types = self.sizes, dict(dtype=self.sizes.dtype, param_dtype=self.sizes.param_dtype)
        self.class_embedding = Embedding(self.num_classes + 1, sizes.width, axes=("classes", "embed"), **types)
        self.token_embedding = Embedding(self.vocab_size, sizes.width, **types)
        self.position_embedding = Embedding(self.num_tokens, sizes.width, axes=("length", "embed"), **types)
        self.query = self.param("query", logical(normal(0.02), "embed"), (sizes.width,), sizes.param_dtype)
        self.dropout = nn.Dropout(sizes.dropout)
        self.stack = Stack(sizes.block(), sizes.num_layers, remat=sizes.remat)
        self.norm = LayerNorm(**types)
        self.head = Head(self.vocab_size, **types)  # zero at the start: the first loss is ln(vocab_size)

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def __call__(
        self,
        ids: Int[Array, "b n"],
        positions: Int[Array, "b n"],
        prompt: Int[Array, "b"],
        ranks: Int[Array, "b q"],
        seen: Int[Array, "b q"],
        label: Int[Array, "b"],
        deterministic: bool = True,
    ) -> Float[Array, "b q v"]:
        """Logits, float32, of the tokens of `ranks`.

        Args:
          ids: tokens in the order of their ranks; the token of rank r stands at the place positions[:, r].
          prompt: number of tokens that attend one another, those of ranks 0..prompt-1. Logits are a law of the other
            tokens; `seen` must not be smaller.
          ranks: of the tokens that are asked for.
          seen: how many tokens, in the order of ranks, each answer is given.
          label: 0..num_classes, the last being the null class.
          deterministic: without dropout, which needs the stream "dropout".
        """
        places = self.position_embedding(positions)
        asked = jnp.take_along_axis(places, ranks[..., None], axis=1) + self.query.astype(places.dtype)
        x = jnp.concatenate([self.class_embedding(label)[:, None], self.token_embedding(ids) + places, asked], axis=1)
        x = self.dropout(x, deterministic=deterministic)
        x, _ = self.stack(x, dynamic=two_streams(ids.shape[1], prompt, seen), deterministic=deterministic)
        return self.head(self.norm(x[:, 1 + ids.shape[1] :]))


@typechecked
def two_streams(num_tokens: int, prompt: Int[Array, "b"], seen: Int[Array, "b q"]) -> DynamicRanges:
    """Which positions of [class, content, queries] see which: two ranges each, the second for queries alone."""
    batch, queries = seen.shape
    rank = jnp.arange(num_tokens)
    content = 2 + jnp.maximum(rank, prompt[:, None] - 1)
    first = jnp.concatenate([jnp.ones((batch, 1), jnp.int32), content, 1 + seen], axis=1)
    own = jnp.arange(1 + num_tokens + queries)
    start = jnp.broadcast_to(jnp.stack([jnp.zeros_like(own), own]), (batch, 2, len(own)))
    stop = jnp.stack([first, jnp.broadcast_to(jnp.where(own > num_tokens, own + 1, own), first.shape)], axis=1)
    return DynamicRanges(start, stop)
