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
from jaxar.interop.families import _next_scale, _replay, var_vqvae
from jaxar.interop.tables import LINEAR, NEW_AXIS, Entry, Table, layers, one, reshaped
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
    levels = _next_scale.levels(given.patch_nums)
    return Table(
        (
            *_next_scale.outer(),
            *_next_scale.head(),
            *_next_scale.blocks(given, range(given.depth)),
            *_modulation(given),
        ),
        derived={
            "lvl_1L": lambda: levels[None],
            "attn_bias_for_masking": lambda: _next_scale.bias(levels[:, None] >= levels),
            **_next_scale.key_biases(given),
        },
    )


def _modulation(given: Arguments) -> Iterator[Entry]:
    """adaLN vectors: one map per block, or a shared one with an offset per block."""
    if not given.shared_aln:
        yield from _next_scale.modulation(range(given.depth))
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
