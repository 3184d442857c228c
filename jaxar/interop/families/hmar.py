"""HMAR: the Markovian next-scale network, the mask predictor that was trained from it, and VAR's tokenizer.

The official sampler takes the last blocks, head and mask vector of the mask predictor and everything else from the
next-scale network. So do we; what it ignores of the mask predictor is handed through.

Reference: https://github.com/NVlabs/HMAR, models/nsp.py, models/mp.py and models/hmar.py, by recorded numbers.
"""

import dataclasses
from collections.abc import Iterator

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.interop.base import KEPT, Models, Official, Part, Parts, arguments, method_of, require
from jaxar.interop.families import _next_scale, _replay, var_vqvae
from jaxar.interop.tables import FIRST_ROW, Entry, Table, one
from jaxar.methods import hmar
from jaxar.models.next_scale import NORM_EPS
from jaxar.typing import Array, Variables

NEXT_SCALE, MASKED, TOKENIZER = "nsp", "mp", var_vqvae.MODEL
NETWORKS = (NEXT_SCALE, MASKED, TOKENIZER)
_TRAINING = ("drop_rate", "attn_drop_rate", "drop_path_rate", "cond_drop_rate")
_SCHEDULE_256 = ((1,), (1, 3), (1, 1, 2, 5))


def _published(depth: int) -> dict[str, dict]:
    transformer = {"depth": depth, "embed_dim": 64 * depth, "num_heads": depth, "attn_l2_norm": True}
    return {NEXT_SCALE: transformer, MASKED: transformer, TOKENIZER: {"ch": 160}}


PUBLISHED = {f"hmar_d{depth}": _published(depth) for depth in (16, 20, 24, 30)}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Of both official classes."""

    num_classes: int = 1000
    depth: int = 16
    embed_dim: int = 1024
    num_heads: int = 16
    mlp_ratio: float = 4.0
    norm_eps: float = NORM_EPS
    shared_aln: bool = False
    attn_l2_norm: bool = False
    patch_nums: tuple[int, ...] = var_vqvae.SCALES_256
    flash_if_available: bool = True  # how it is computed, not what; the same holds for the next two
    fused_if_available: bool = True
    using_block_sparse_attn: bool = True

    def __post_init__(self):
        require(NEXT_SCALE, "norm_eps", self.norm_eps, NORM_EPS)
        require(NEXT_SCALE, "shared_aln", self.shared_aln, False)


@dataclasses.dataclass(frozen=True)
class MaskArguments(Arguments):
    """Of the mask predictor. `n_layers_train`: its last blocks, which are its own."""

    n_layers_train: int = 8


def describe(models: Models) -> Official:
    """With the mask predictor if there is one among `models`."""
    given = arguments(Arguments, models, NEXT_SCALE, _TRAINING)
    of_mask = _mask_arguments(given, models)
    vae = var_vqvae.read_arguments({TOKENIZER: {"v_patch_nums": given.patch_nums, **models.get(TOKENIZER, {})}})
    if vae.v_patch_nums != given.patch_nums:
        raise ConfigError(
            f"{NEXT_SCALE}.patch_nums={given.patch_nums}, but vae.v_patch_nums={vae.v_patch_nums}; make them equal"
        )
    tokenizer, image = var_vqvae.described(vae)
    refines = of_mask is not None and given.patch_nums == var_vqvae.SCALES_256
    config = {
        "method": {"name": "hmar", "label_drop": 0.0, "refiner_layers": of_mask.n_layers_train if of_mask else 0},
        "model": {
            "num_layers": given.depth,
            "width": given.embed_dim,
            "num_heads": given.num_heads,
            "mlp_ratio": given.mlp_ratio,
            "qk_norm": "l2" if given.attn_l2_norm else "none",
        },
        "sample": {
            "guidance_scale": 2.7,
            "top_k": 1000,
            "top_p": 0.99,
            "mask_schedule": _SCHEDULE_256 if refines else (),
        },
    }
    task = {"image": dataclasses.asdict(image), "num_classes": given.num_classes, "tokenizer": tokenizer}
    method, _ = method_of(config, task)
    nsp = Part(NEXT_SCALE, "model", Table(_whole(given), _buffers(given)), lambda key: method.init(key)["model"])
    parts = [nsp, *([_mask_part(of_mask, method)] if of_mask else []), var_vqvae.part(vae, method.tokenizer)]
    return Official(method, tuple(parts), config, task)


def _mask_arguments(given: Arguments, models: Models) -> MaskArguments | None:
    """Those of the mask predictor, which must be as large as the next-scale network; None if there is none."""
    if MASKED not in models:
        return None
    found = arguments(MaskArguments, models, MASKED, _TRAINING)
    for name in ("num_classes", "depth", "embed_dim", "num_heads", "mlp_ratio", "attn_l2_norm", "patch_nums"):
        if getattr(found, name) != getattr(given, name):
            raise ConfigError(
                f"{MASKED}.{name}={getattr(found, name)}, but {NEXT_SCALE}.{name}={getattr(given, name)}; they share "
                "blocks, make them equal"
            )
    return found


def _whole(given: Arguments, input_bias: str = "word_embed.bias") -> tuple[Entry, ...]:
    """A network with all of its blocks, as our next-scale network."""
    every = range(given.depth)
    return (*_next_scale.outer(input_bias), *_branch(given, every))


def _branch(given: Arguments, which: range) -> Iterator[Entry]:
    yield from _next_scale.head()
    yield from _next_scale.blocks(given, which)
    yield from _next_scale.modulation(which)


def _buffers(given: Arguments) -> dict:
    levels = _next_scale.levels(given.patch_nums)
    return {
        "lvl_1L": lambda: levels[None],
        "attn_bias_for_masking": lambda: _next_scale.bias(levels[:, None] == levels),
        **_next_scale.key_biases(given),
    }


def _mask_part(given: MaskArguments, method: hmar.HMAR) -> Part:
    """The mask predictor: its last blocks, head and mask vector; the rest of it is kept."""
    own = (
        one("mask_embedding", "mask_embed.weight", FIRST_ROW),
        *_branch(given, range(given.depth - given.n_layers_train, given.depth)),
    )
    shapes = {path: x.shape for path, x in _shapes(method).items()}
    names = {name for entry in own for name in entry.official}
    kept = {
        name: shape
        for entry in _whole(given, "word_embed_bias")
        for name, shape in entry.official_shapes(shapes).items()
        if name not in names
    }
    table = Table(own, _buffers(given), kept)
    return Part(MASKED, "refiner", table, lambda key: method.init(key)["refiner"], optional=True)


def _shapes(method: hmar.HMAR) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters of our next-scale network by path."""
    params = nn.meta.unbox(jax.eval_shape(method.init, jax.random.key(0)))["model"]["params"]
    return flax.traverse_util.flatten_dict(params, sep="/")


def forward_next_scale(official: Official, variables: dict[str, Variables], labels: Array, x: Array) -> Parts:
    return {"logits": jax.jit(official.ours.network.apply)(variables["model"], x, labels)}


def forward_masked(
    official: Official, variables: dict[str, Variables], labels: Array, x: Array, x_mask: Array, mask_positions: Array
) -> Parts:
    """The mask predictor by itself: its own lower blocks in place of those of the next-scale network."""
    method, part = official.ours, next(part for part in official.parts if part.model == MASKED)
    arrays = part.to_official(variables[part.player]) | variables[part.player][KEPT]
    entries = _whole(_given(method), "word_embed_bias")
    names = {name for entry in entries for name in entry.official}
    flat = Table(entries).to_ours({name: arrays[name] for name in names}, _shapes(method), MASKED)
    whole = jax.tree.map(jnp.asarray, flax.traverse_util.unflatten_dict(flat, sep="/"))
    hidden = jnp.zeros(x.shape[1], bool).at[mask_positions].set(True)
    logits = jax.jit(method.masked_logits)({**variables, "model": {"params": whole}}, x, x_mask, hidden, labels)
    return {"logits": logits}


def _given(method: hmar.HMAR) -> Arguments:
    """What names depend on."""
    sizes = method.network.sizes
    return Arguments(
        depth=sizes.num_layers,
        embed_dim=sizes.width,
        num_heads=sizes.num_heads,
        attn_l2_norm=sizes.qk_norm == "l2",
    )


def generate_next_scale(official: Official, variables: dict[str, Variables], **options) -> Parts:
    return generate_refined(official, variables, **options, mask_schedule=(), mask_cfg_factor=0.0)


def generate_refined(
    official: Official,
    variables: dict[str, Variables],
    labels: Array,
    cfg_scale: float,
    top_k: int,
    top_p: float,
    draw: str,
    mask_schedule: list[list[int]],
    mask_cfg_factor: float,
) -> Parts:
    """Greedy samples by the ordinary sampler."""
    _replay.require_greedy(draw)
    options = hmar.Sampling(
        guidance_scale=1 + cfg_scale,
        greedy=True,
        top_k=top_k or None,
        top_p=top_p or None,
        mask_schedule=tuple(map(tuple, mask_schedule)),
        mask_guidance_scale=1 + cfg_scale * mask_cfg_factor,
    )

    @jax.jit
    def run(variables: dict[str, Variables], labels: Array) -> Parts:
        keys = _replay.keys(labels.shape[0])
        ids, f_hat = official.ours.sample_with_features(variables, {"label": labels}, keys, options)
        return {"ids": ids, "f_hat": jnp.moveaxis(f_hat, -1, 1)}

    return run(variables, labels)


CALLS = {call.__name__: call for call in (forward_next_scale, forward_masked, generate_next_scale, generate_refined)}
