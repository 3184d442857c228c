"""VAR: the next-scale transformer, with its tokenizer.

Reference: https://github.com/FoundationVision/VAR, models/var.py and models/basic_var.py.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.interop.base import Models, Official, Part, Parts, arguments, method_of, require
from jaxar.interop.families import _replay, var_vqvae
from jaxar.interop.tables import (
    FIRST_ROW,
    LINEAR,
    NEW_AXIS,
    Entry,
    Table,
    fused,
    layers,
    merge_heads,
    one,
    reshaped,
    split_heads,
)
from jaxar.methods import _conditions as conditions
from jaxar.methods import next_scale
from jaxar.models.next_scale import NORM_EPS
from jaxar.typing import Array, Variables

MODEL, TOKENIZER = "var", var_vqvae.MODEL
NETWORKS = (MODEL, TOKENIZER)
_TRAINING = ("drop_rate", "attn_drop_rate", "drop_path_rate", "cond_drop_rate")


def _published(depth: int, **changes) -> dict[str, dict]:
    transformer = {"depth": depth, "embed_dim": 64 * depth, "num_heads": depth, "attn_l2_norm": True, **changes}
    return {MODEL: transformer, TOKENIZER: {"ch": 160}}


PUBLISHED = {f"var_d{depth}": _published(depth) for depth in (16, 20, 24, 30)}
PUBLISHED["var_d36_s"] = _published(36, shared_aln=True, patch_nums=var_vqvae.SCALES_512)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Of the official class."""

    num_classes: int = 1000
    depth: int = 16
    embed_dim: int = 1024
    num_heads: int = 16
    mlp_ratio: float = 4.0
    norm_eps: float = NORM_EPS
    shared_aln: bool = False
    attn_l2_norm: bool = False
    patch_nums: tuple[int, ...] = var_vqvae.SCALES_256
    flash_if_available: bool = True  # how it is computed, not what
    fused_if_available: bool = True

    def __post_init__(self):
        require(MODEL, "norm_eps", self.norm_eps, NORM_EPS)


def describe(models: Models) -> Official:
    given = arguments(Arguments, models, MODEL, _TRAINING)
    vae = var_vqvae.read_arguments({TOKENIZER: {"v_patch_nums": given.patch_nums, **models.get(TOKENIZER, {})}})
    if vae.v_patch_nums != given.patch_nums:
        raise ConfigError(
            f"var.patch_nums={given.patch_nums}, but vae.v_patch_nums={vae.v_patch_nums}; make them equal"
        )
    tokenizer, image = var_vqvae.described(vae)
    config = {
        "method": {"name": "next_scale", "label_drop": 0.0},
        "model": {
            "num_layers": given.depth,
            "width": given.embed_dim,
            "num_heads": given.num_heads,
            "mlp_ratio": given.mlp_ratio,
            "qk_norm": "l2" if given.attn_l2_norm else "none",
            "shared_adaln": given.shared_aln,
        },
        "sample": {"guidance_scale": 2.5, "top_k": 900, "top_p": 0.96},
    }
    task = {"image": dataclasses.asdict(image), "num_classes": given.num_classes, "tokenizer": tokenizer}
    method, _ = method_of(config, task)
    part = Part(MODEL, "model", _table(given), lambda key: method.init(key)["model"])
    return Official(method, (part, var_vqvae.part(vae, method.tokenizer)), config, task)


def _table(given: Arguments) -> Table:
    lengths = [side * side for side in given.patch_nums]
    levels = np.repeat(np.arange(len(lengths)), lengths)
    zero = np.zeros(given.embed_dim, np.float32)
    return Table(
        (*_outer(), *_blocks(given), *_modulation(given)),
        derived={
            "lvl_1L": lambda: levels[None],
            "attn_bias_for_masking": lambda: _bias(levels),
            **{f"blocks.{i}.attn.zero_k_bias": lambda: zero for i in range(given.depth)},
        },
    )


def _bias(levels: np.ndarray) -> np.ndarray:
    """0 where the query's level sees the key's, else -inf: float32 [1 1 n n]."""
    return np.where(levels[:, None] >= levels, np.float32(0), np.float32(-np.inf))[None, None]


def _outer() -> Iterator[Entry]:
    yield one("class_embedding/embedding", "class_emb.weight")
    yield one("input_projection/kernel", "word_embed.weight", LINEAR)
    yield one("input_projection/bias", "word_embed.bias")
    yield one("start", "pos_start", FIRST_ROW)
    yield one("positions", "pos_1LC", FIRST_ROW)
    yield one("levels", "lvl_embed.weight")
    yield one("head_modulation/kernel", "head_nm.ada_lin.1.weight", LINEAR.then(NEW_AXIS))
    yield one("head_modulation/bias", "head_nm.ada_lin.1.bias", NEW_AXIS)
    yield one("head/kernel", "head.weight", LINEAR)
    yield one("head/bias", "head.bias")


def _blocks(given: Arguments) -> Iterator[Entry]:
    depth, heads = given.depth, given.num_heads
    block, attention = "stack/layers", "stack/layers/attention"
    qkv = [f"{attention}/{name}/kernel" for name in ("query", "key", "value")]
    names = [f"blocks.{i}.attn.mat_qkv.weight" for i in range(depth)]
    yield fused(qkv, names, (given.embed_dim,) * 3, [split_heads(heads)] * 3)
    for name in ("query", "value"):
        yield layers(
            f"{attention}/{name}/bias", f"blocks.{{}}.attn.{name[0]}_bias", depth, split_heads(heads, bias=True)
        )
    if given.attn_l2_norm:
        scale = reshaped((1, heads, 1, 1), (heads,))
        yield layers(f"{attention}/scale", "blocks.{}.attn.scale_mul_1H11", depth, scale)
    yield layers(f"{attention}/out/kernel", "blocks.{}.attn.proj.weight", depth, merge_heads(heads))
    yield layers(f"{attention}/out/bias", "blocks.{}.attn.proj.bias", depth)
    for ours, official in (("up", "fc1"), ("down", "fc2")):
        yield layers(f"{block}/mlp/{ours}/kernel", f"blocks.{{}}.ffn.{official}.weight", depth, LINEAR)
        yield layers(f"{block}/mlp/{ours}/bias", f"blocks.{{}}.ffn.{official}.bias", depth)


def _modulation(given: Arguments) -> Iterator[Entry]:
    """adaLN vectors: one map per block, or a shared one with an offset per block."""
    if not given.shared_aln:
        yield layers("modulation/kernel", "blocks.{}.ada_lin.1.weight", given.depth, LINEAR)
        yield layers("modulation/bias", "blocks.{}.ada_lin.1.bias", given.depth)
        return
    width = given.embed_dim
    yield one("modulation/kernel", "shared_ada_lin.1.weight", LINEAR.then(NEW_AXIS))
    yield one("modulation/bias", "shared_ada_lin.1.bias", NEW_AXIS)
    yield layers("modulation/offset", "blocks.{}.ada_gss", given.depth, reshaped((1, 1, 6, width), (6 * width,)))


def forward(official: Official, variables: dict[str, Variables], labels: Array, x: Array) -> Parts:
    return {"logits": jax.jit(official.ours.network.apply)(variables["model"], x, labels)}


def generate(
    official: Official,
    variables: dict[str, Variables],
    labels: Array,
    cfg_scale: float,
    top_k: int,
    top_p: float,
    more_smooth: bool,
    draw: str,
) -> Parts:
    """Greedy samples by the ordinary sampler, and the logits that they were chosen by."""
    _replay.require_greedy(draw)
    require("generate", "more_smooth", more_smooth, False)
    kept = {"top_k": top_k or None, "top_p": top_p or None}
    options = next_scale.Sampling(guidance_scale=1 + cfg_scale, greedy=True, **kept)
    method = official.ours

    @jax.jit
    def run(variables: dict[str, Variables], labels: Array) -> Parts:
        cond, keys = {"label": labels}, _replay.keys(labels.shape[0])
        ids, f_hat = method.sample_with_features(variables, cond, keys, options)
        x = method.tokenizer.teacher_input(variables["tokenizer"], ids)
        both = conditions.doubled(cond, method.network.num_classes)["label"]
        logits = method.network.apply(variables["model"], jnp.concatenate([x, x]), both)
        scales = np.repeat(lg.guidance_scales(options, len(method.tokens.scales)), method.tokens.scale_lengths)
        guided = _replay.guided(*jnp.split(logits, 2), scales)
        return {"ids": ids, "f_hat": jnp.moveaxis(f_hat, -1, 1), "guided_logits": guided}

    return run(variables, labels)


CALLS = {"forward": forward, "generate": generate}
