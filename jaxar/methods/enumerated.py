"""A teacher in closed form: raster tokens whose joint law is a table, without weights.

It stands in a configuration where a trained raster teacher would be named, for distillation that is to be held to a law
that is known: `teacher = {"method": {"name": "enumerated", "probs": [...]}, "model": {...}}`. The law is the same for
all classes.

Reference: the chain rule; Liu et al., Distilled Decoding 1, 2025, Sec. 3, for why such a law is lost if all tokens are
drawn at once.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.decoding import ar as loops
from jaxar.methods import ar
from jaxar.methods.base import Cond, LossSpec, Task
from jaxar.models import causal
from jaxar.typing import Array, Float, Int, Key, Variables

Model = causal.Sizes  # of its students
Sampling = ar.Sampling
_LEAST = 1e-30  # probability of what cannot be: guidance has no use for infinite logits


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section. `probs`: of all sequences, relative to one another, the last token changing fastest."""

    probs: tuple[float, ...]

    def __post_init__(self):
        if min(self.probs, default=-1) < 0 or sum(self.probs) <= 0:
            raise ConfigError(f"method.probs={self.probs} must be at least 0, and one of them positive")


@dataclasses.dataclass(frozen=True)
class TableNetwork:
    """In place of the transformer; its students have the transformer's `sizes`."""

    sizes: causal.Sizes
    vocab_size: int
    grid: tuple[int, int]
    num_classes: int
    probs: tuple[float, ...]
    text: ClassVar[None] = None

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def table(self) -> Float[np.ndarray, "nodes v"]:
        """Logits after each beginning of a sequence.

        Beginnings are the nodes of a tree, numbered from its root (nothing yet) level by level; `step` goes down.
        """
        levels, joint = [], np.array(self.probs, np.float64)
        for length in range(self.num_tokens):
            levels.append(joint.reshape(self.vocab_size ** (length + 1), -1).sum(axis=1).reshape(-1, self.vocab_size))
        return np.log(np.maximum(np.concatenate(levels), _LEAST)).astype(np.float32)

    def step(self, node: Int[Array, "b"], ids: Int[Array, "b"]) -> Int[Array, "b"]:
        """The node one token further."""
        return node * self.vocab_size + 1 + ids

    def apply(self, variables: Variables, ids: Int[Array, "b n"], cond: Cond, **_: Any) -> Float[Array, "b n v"]:
        """Logits of each token given those before it."""
        nodes = [jnp.zeros(len(ids), jnp.int32)]
        for i in range(self.num_tokens - 1):
            nodes.append(self.step(nodes[-1], ids[:, i]))
        return jnp.asarray(self.table)[jnp.stack(nodes, axis=1)]


@dataclasses.dataclass(frozen=True)
class Enumerated(ar.AR):
    """Raster autoregression by a table, with nothing to train."""

    network: TableNetwork
    config: Config

    def init(self, key: Key) -> dict[str, Variables]:
        return {"model": {"params": {}}}

    def losses(self) -> tuple[LossSpec, ...]:
        return ()

    def decoder(
        self, variables: Variables, cond: Cond, unroll: bool, given: Int[Array, "b t"] | None = None
    ) -> tuple[loops.Extend, Int[Array, "b"]]:
        """As that of `ar.AR`; the state is the node of the tree."""
        start = jnp.zeros(jax.tree.leaves(cond)[0].shape[0], jnp.int32)
        if given is not None:
            for ids in given.T:
                start = self.network.step(start, ids)

        def extend(
            ids: Int[Array, "b 1"] | None, step: Int[Array, ""] | int, node: Int[Array, "b"], stop: int
        ) -> tuple[Float[Array, "b 1 v"], Int[Array, "b"]]:
            node = node if ids is None else self.network.step(node, ids[:, 0])
            return jnp.asarray(self.network.table)[node][:, None], node

        return extend, start


def build(config: Config, model: Model, task: Task) -> Enumerated:
    """The law over discrete raster tokens.

    Raises:
      ConfigError: other tokens, or a table of another size.
    """
    tokens = task.discrete_tokens("enumerated", multiscale=False)
    count = tokens.vocab_size**tokens.num_tokens
    if len(config.probs) != count:
        raise ConfigError(
            f"method.probs has {len(config.probs)} entries; {tokens.num_tokens} tokens of {tokens.vocab_size} ids make "
            f"{count} sequences"
        )
    return Enumerated(TableNetwork(model, tokens.vocab_size, tokens.grid, task.num_classes, config.probs), config)
