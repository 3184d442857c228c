"""Names that VAR's transformer and its descendants share."""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from jaxar.interop.tables import (
    FIRST_ROW,
    LINEAR,
    NEW_AXIS,
    Entry,
    fused,
    merge_heads,
    one,
    reshaped,
    split_heads,
    stack,
)


class Sizes(Protocol):
    """What the names depend on, of the official arguments."""

    depth: int
    embed_dim: int
    num_heads: int
    attn_l2_norm: bool


def levels(patch_nums: tuple[int, ...]) -> np.ndarray:
    """The scale of every token, int64 [n]."""
    lengths = [side * side for side in patch_nums]
    return np.repeat(np.arange(len(lengths)), lengths)


def bias(seen: np.ndarray) -> np.ndarray:
    """0 where a query sees a key, else -inf: float32 [1 1 n n]."""
    return np.where(seen, np.float32(0), np.float32(-np.inf))[None, None]


def key_biases(given: Sizes) -> dict[str, Callable[[], np.ndarray]]:
    """The zero buffers in place of a bias of the keys."""
    zero = np.zeros(given.embed_dim, np.float32)
    return {f"blocks.{i}.attn.zero_k_bias": lambda: zero for i in range(given.depth)}


def outer(input_bias: str = "word_embed.bias") -> Iterator[Entry]:
    """What comes before the blocks."""
    yield one("class_embedding/embedding", "class_emb.weight")
    yield one("input_projection/kernel", "word_embed.weight", LINEAR)
    yield one("input_projection/bias", input_bias)
    yield one("start", "pos_start", FIRST_ROW)
    yield one("positions", "pos_1LC", FIRST_ROW)
    yield one("levels", "lvl_embed.weight")


def head() -> Iterator[Entry]:
    yield one("head_modulation/kernel", "head_nm.ada_lin.1.weight", LINEAR.then(NEW_AXIS))
    yield one("head_modulation/bias", "head_nm.ada_lin.1.bias", NEW_AXIS)
    yield one("head/kernel", "head.weight", LINEAR)
    yield one("head/bias", "head.bias")


def blocks(given: Sizes, which: range) -> Iterator[Entry]:
    """The blocks `which`, as our stack."""

    def named(name: str) -> list[str]:
        return [f"blocks.{i}.{name}" for i in which]

    heads = given.num_heads
    block, attention = "stack/layers", "stack/layers/attention"
    qkv = [f"{attention}/{name}/kernel" for name in ("query", "key", "value")]
    yield fused(qkv, named("attn.mat_qkv.weight"), (given.embed_dim,) * 3, [split_heads(heads)] * 3)
    for name in ("query", "value"):
        yield stack(f"{attention}/{name}/bias", named(f"attn.{name[0]}_bias"), split_heads(heads, bias=True))
    if given.attn_l2_norm:
        yield stack(f"{attention}/scale", named("attn.scale_mul_1H11"), reshaped((1, heads, 1, 1), (heads,)))
    yield stack(f"{attention}/out/kernel", named("attn.proj.weight"), merge_heads(heads))
    yield stack(f"{attention}/out/bias", named("attn.proj.bias"))
    for ours, official in (("up", "fc1"), ("down", "fc2")):
        yield stack(f"{block}/mlp/{ours}/kernel", named(f"ffn.{official}.weight"), LINEAR)
        yield stack(f"{block}/mlp/{ours}/bias", named(f"ffn.{official}.bias"))


def modulation(which: range) -> Iterator[Entry]:
    """The blocks' own adaLN maps."""
    yield stack("modulation/kernel", [f"blocks.{i}.ada_lin.1.weight" for i in which], LINEAR)
    yield stack("modulation/bias", [f"blocks.{i}.ada_lin.1.bias" for i in which])
