"""LlamaGen's transformer, conditional on classes or on text; what `llamagen_c2i` and `llamagen_t2i` share.

Reference: https://github.com/FoundationVision/LlamaGen, autoregressive/models/gpt.py and generate.py.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.interop.base import Models, Official, Part, Parts, arguments, method_of, require
from jaxar.interop.families import _replay, llamagen_vq
from jaxar.interop.tables import LINEAR, Entry, Table, fused, layers, merge_heads, one, split_heads
from jaxar.methods import _conditions as conditions
from jaxar.methods import ar
from jaxar.typing import Array, Float, Variables

MODEL, TOKENIZER = "gpt", llamagen_vq.MODEL
CAPTION_TOKENS = 120  # fixed in the official embedder of captions
SIZES = {
    "b": {"n_layer": 12, "n_head": 12, "dim": 768},
    "l": {"n_layer": 24, "n_head": 16, "dim": 1024},
    "xl": {"n_layer": 36, "n_head": 20, "dim": 1280},
    "xxl": {"n_layer": 48, "n_head": 24, "dim": 1536},
    "3b": {"n_layer": 24, "n_head": 32, "dim": 3200},
}
_TRAINING = (
    "initializer_range",
    "token_dropout_p",
    "attn_dropout_p",
    "resid_dropout_p",
    "ffn_dropout_p",
    "drop_path_rate",
    "class_dropout_prob",
    "max_batch_size",
    "max_seq_len",
)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Of the official class `ModelArgs`."""

    dim: int = 4096
    n_layer: int = 32
    n_head: int = 32
    n_kv_head: int | None = None
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    num_classes: int = 1000
    caption_dim: int = 2048
    model_type: Literal["c2i", "t2i"] = "c2i"
    vocab_size: int = 16384
    cls_token_num: int = 1
    block_size: int = 256

    def __post_init__(self):
        require(MODEL, "cls_token_num", self.cls_token_num, 1 if self.model_type == "c2i" else CAPTION_TOKENS)
        if math.isqrt(self.block_size) ** 2 != self.block_size:
            raise ConfigError(f"{MODEL}.block_size={self.block_size} must be a square: tokens are a square map")

    @property
    def side(self) -> int:
        return math.isqrt(self.block_size)


def describe(models: Models, model_type: str, sample: dict[str, Any]) -> Official:
    """Our counterpart.

    Args:
      model_type: what the family is conditioned on.
      sample: the sampling options of its workdirs.
    """
    given = arguments(Arguments, models, MODEL, _TRAINING)
    require(MODEL, "model_type", given.model_type, model_type)
    config = {
        "method": {"name": "ar", "label_drop": 0.0},
        "model": {
            "num_layers": given.n_layer,
            "width": given.dim,
            "num_heads": given.n_head,
            "num_kv_heads": given.n_kv_head,
            "hidden_factor": given.ffn_dim_multiplier or 1.0,
            "hidden_multiple": given.multiple_of,
            "rotary_base": given.rope_base,
            "norm_eps": given.norm_eps,
            "dropout": 0.0,
        },
        "sample": sample,
    }
    vq = llamagen_vq.read_arguments(models)
    tokenizer, stride = llamagen_vq.described(vq)
    stored = TOKENIZER in models
    text = {"length": given.cls_token_num, "width": given.caption_dim} if model_type == "t2i" else None
    tokens = {"kind": "discrete", "scales": [[given.side] * 2], "channels": vq.codebook_embed_dim}
    task = {
        "image": {"size": given.side * stride, "channels": 3},
        "num_classes": given.num_classes if text is None else 1,  # with text, labels only fill batches
        "tokenizer": tokenizer if stored else None,
        "tokens": None if stored else {**tokens, "vocab_size": given.vocab_size},
        "text": text,
    }
    method, built = method_of(config, task)
    parts = [Part(MODEL, "model", _table(given), lambda key: method.init(key)["model"])]
    if stored:
        if vq.codebook_size != given.vocab_size:
            raise ConfigError(f"gpt.vocab_size={given.vocab_size}, but vq.codebook_size={vq.codebook_size}")
        parts.append(llamagen_vq.part(vq, built.tokenizer))
    return Official(method, tuple(parts), config, task)


def _table(given: Arguments) -> Table:
    return Table((*_outer(given), *_blocks(given)))


def _outer(given: Arguments) -> Iterator[Entry]:
    yield one("token_embedding/embedding", "tok_embeddings.weight")
    yield one("norm/scale", "norm.weight")
    yield one("head/kernel", "output.weight", LINEAR)
    if given.model_type == "c2i":
        yield one("class_embedding/embedding", "cls_embedding.embedding_table.weight")
        return
    yield one("text_projection/up/kernel", "cls_embedding.cap_proj.fc1.weight", LINEAR)
    yield one("text_projection/down/kernel", "cls_embedding.cap_proj.fc2.weight", LINEAR)
    yield one("null_text", "cls_embedding.uncond_embedding")


def _blocks(given: Arguments) -> Iterator[Entry]:
    count, heads, kv_heads = given.n_layer, given.n_head, given.n_kv_head or given.n_head
    block, attention = "stack/layers", "stack/layers/attention"
    rows = [n * (given.dim // heads) for n in (heads, kv_heads, kv_heads)]
    qkv = [f"{attention}/{name}/kernel" for name in ("query", "key", "value")]
    names = [f"layers.{i}.attention.wqkv.weight" for i in range(count)]
    yield fused(qkv, names, rows, [split_heads(n) for n in (heads, kv_heads, kv_heads)])
    yield layers(f"{attention}/out/kernel", "layers.{}.attention.wo.weight", count, merge_heads(heads))
    yield layers(f"{block}/attention_norm/scale", "layers.{}.attention_norm.weight", count)
    for ours, official in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        yield layers(f"{block}/mlp/{ours}/kernel", f"layers.{{}}.feed_forward.{official}.weight", count, LINEAR)
    yield layers(f"{block}/mlp_norm/scale", "layers.{}.ffn_norm.weight", count)


def loss(official: Official, variables: dict[str, Variables], batch: dict[str, Array]) -> Parts:
    """The training loss of the method, whose description has no dropout and drops no conditions."""
    value, _ = jax.jit(official.ours.loss)(variables, batch, jax.random.key(0), jnp.int32(0))
    return {"loss": value[None]}


def generate(
    official: Official,
    variables: dict[str, Variables],
    cond: dict[str, Array],
    num_tokens: int,
    cfg_scale: float,
    cfg_interval: int,
    temperature: float,
    top_k: int,
    top_p: float,
    draw: str,
) -> Parts:
    """Greedy samples by the ordinary sampler, and the logits that they were chosen by."""
    _replay.require_greedy(draw)
    method = official.ours
    options = ar.Sampling(
        guidance_scale=max(cfg_scale, 1.0),  # the official code guides above 1 only
        guidance_interval=lg.llamagen_interval(cfg_interval, method.network.num_tokens),
        temperature=temperature,
        top_k=top_k or None,
        top_p=top_p,
        greedy=True,
        segments=2,
        unroll=False,
    )

    @jax.jit
    def run(variables: dict[str, Variables], cond: dict[str, Array]) -> Parts:
        keys = _replay.keys(jax.tree.leaves(cond)[0].shape[0])
        ids = method.sample(variables, cond, keys, options).ids[:, :num_tokens]
        return {"ids": ids, "guided_logits": _guided_logits(method, variables, ids, cond, options)}

    return run(variables, cond)


def _guided_logits(
    method: ar.AR, variables: dict[str, Variables], ids: Array, cond: dict[str, Array], options: ar.Sampling
) -> Float[Array, "b n v"]:
    both = conditions.doubled(cond, method.network.num_classes)
    logits = method.network.apply(variables["model"], jnp.concatenate([ids, ids]), both)
    scales = lg.guidance_scales(options, method.network.num_tokens)[: ids.shape[1]]
    return _replay.guided(*jnp.split(logits, 2), scales)
