"""MAR's transformer with its head.

Reference: https://github.com/LTH14/mar, models/mar.py.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.decoding import masked
from jaxar.diffusion import ddpm
from jaxar.interop.base import Models, Official, Part, Parts, arguments, method_of, require
from jaxar.interop.families import _replay, mar_diffloss, mar_kl
from jaxar.interop.families._conv_stack import nchw, nhwc
from jaxar.interop.families.mar_diffloss import linear
from jaxar.interop.tables import (
    FIRST_ROW,
    LINEAR,
    Entry,
    Joined,
    Table,
    fused,
    joined,
    layers,
    merge_heads,
    one,
    reshaped,
    split_heads,
)
from jaxar.methods import _token_heads as heads
from jaxar.methods import mar
from jaxar.methods._continuous_law import TokenNoise, guidance_scales
from jaxar.models.mar import unpatchify
from jaxar.typing import Array, Keys, Variables

MODEL, TOKENIZER = "mar", mar_kl.MODEL
NETWORKS = (MODEL, TOKENIZER)
_TRAINING = ("attn_dropout", "grad_checkpointing")
_MOST_STEPS = 256  # of the sampler that published numbers come from: one token after another


def _published(depth: int, width: int, num_heads: int, head_depth: int, head_width: int) -> dict[str, dict]:
    towers = {
        f"{tower}_{name}": value
        for tower in ("encoder", "decoder")
        for name, value in (("depth", depth), ("embed_dim", width), ("num_heads", num_heads))
    }
    return {MODEL: {**towers, "diffloss_d": head_depth, "diffloss_w": head_width}, TOKENIZER: {}}


PUBLISHED = {
    "mar_base": _published(12, 768, 12, 6, 1024),
    "mar_large": _published(16, 1024, 16, 8, 1280),
    "mar_huge": _published(20, 1280, 16, 12, 1536),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Of the official class; the norms have the epsilon of all published sizes."""

    img_size: int = 256
    vae_stride: int = 16
    patch_size: int = 1
    encoder_embed_dim: int = 1024
    encoder_depth: int = 16
    encoder_num_heads: int = 16
    decoder_embed_dim: int = 1024
    decoder_depth: int = 16
    decoder_num_heads: int = 16
    mlp_ratio: float = 4.0
    vae_embed_dim: int = 16
    mask_ratio_min: float = 0.7
    label_drop_prob: float = 0.1
    class_num: int = 1000
    proj_dropout: float = 0.1
    buffer_size: int = 64
    diffloss_d: int = 3
    diffloss_w: int = 1024
    num_sampling_steps: int | str = "100"
    diffusion_batch_mul: int = 4

    @property
    def side(self) -> int:
        """Of the map of latents."""
        return self.img_size // self.vae_stride


def describe(models: Models) -> Official:
    given = arguments(Arguments, models, MODEL, _TRAINING)
    stored = TOKENIZER in models
    tokens = {"kind": "continuous", "scales": [[given.side] * 2], "channels": given.vae_embed_dim}
    config, task = (
        _config(given),
        {
            "image": {"size": given.img_size, "channels": 3},
            "num_classes": given.class_num,
            "tokenizer": None,
            "tokens": tokens,
        },
    )
    if stored:
        vae = mar_kl.read_arguments(models)
        task |= {"tokenizer": _tokenizer(given, vae), "tokens": None}
    method, built = method_of(config, task)
    parts = [Part(MODEL, "model", Table(tuple(_entries(given))), lambda key: method.init(key)["model"])]
    if stored:
        parts.append(mar_kl.part(vae, built.tokenizer))
    return Official(method, tuple(parts), config, task)


def _config(given: Arguments) -> dict[str, Any]:
    def tower(name: str) -> dict[str, int]:
        ours = {"num_layers": "depth", "width": "embed_dim", "num_heads": "num_heads"}
        return {field: getattr(given, f"{name}_{official}") for field, official in ours.items()}

    steps = str(given.num_sampling_steps)
    return {
        "method": {
            "name": "mar",
            "min_masked": given.mask_ratio_min,
            "repeats": given.diffusion_batch_mul,
            "label_drop": given.label_drop_prob,
        },
        "model": {
            "encoder": tower("encoder"),
            "decoder": tower("decoder"),
            "head": {"num_layers": given.diffloss_d, "width": given.diffloss_w},
            "buffer_size": given.buffer_size,
            "patch_size": given.patch_size,
            "mlp_ratio": given.mlp_ratio,
            "dropout": given.proj_dropout,
        },
        "sample": {
            "num_steps": min(_MOST_STEPS, (given.side // given.patch_size) ** 2),
            "head": {"first": int(steps) if steps.isdecimal() else steps},
            "guidance_scale": 3.0,
        },
    }


def _tokenizer(given: Arguments, vae: mar_kl.Arguments) -> dict[str, Any]:
    tokenizer, stride = mar_kl.described(vae)
    if (stride, vae.embed_dim) != (given.vae_stride, given.vae_embed_dim):
        raise ConfigError(
            f"{MODEL}.vae_stride={given.vae_stride}, vae_embed_dim={given.vae_embed_dim}, but the stride of "
            f"{TOKENIZER}.ch_mult={vae.ch_mult} is {stride} and its embed_dim={vae.embed_dim}; make them equal"
        )
    return tokenizer


def _entries(given: Arguments) -> Iterator[Entry | Joined]:
    yield joined("class_embedding/embedding", {"class_emb.weight": given.class_num, "fake_latent": 1})
    yield from linear("token_projection", "z_proj")
    yield from _norm("token_norm", "z_proj_ln")
    yield from _tower("encoder", given.encoder_depth, given.encoder_embed_dim, given.encoder_num_heads)
    yield from linear("decoder_projection", "decoder_embed")
    yield one("mask_token", "mask_token", reshaped((1, 1, given.decoder_embed_dim), (given.decoder_embed_dim,)))
    yield from _tower("decoder", given.decoder_depth, given.decoder_embed_dim, given.decoder_num_heads)
    yield one("head_positions", "diffusion_pos_embed_learned", FIRST_ROW)
    yield from mar_diffloss.entries(given.diffloss_d, "head/", "diffloss.net.")


def _tower(part: str, depth: int, width: int, num_heads: int) -> Iterator[Entry]:
    block, attention = f"{part}/layers", f"{part}/layers/attention"
    official = f"{part}_blocks.{{}}"
    qkv = [f"{attention}/{name}" for name in ("query", "key", "value")]
    for leaf, array, bias in (("kernel", "weight", False), ("bias", "bias", True)):
        names = [f"{official.format(i)}.attn.qkv.{array}" for i in range(depth)]
        yield fused([f"{path}/{leaf}" for path in qkv], names, (width,) * 3, [split_heads(num_heads, bias)] * 3)
    yield layers(f"{attention}/out/kernel", f"{official}.attn.proj.weight", depth, merge_heads(num_heads))
    yield layers(f"{attention}/out/bias", f"{official}.attn.proj.bias", depth)
    for ours, module in (("up", "fc1"), ("down", "fc2")):
        yield layers(f"{block}/mlp/{ours}/kernel", f"{official}.mlp.{module}.weight", depth, LINEAR)
        yield layers(f"{block}/mlp/{ours}/bias", f"{official}.mlp.{module}.bias", depth)
    for ours, module in (("attention_norm", "norm1"), ("mlp_norm", "norm2")):
        yield layers(f"{block}/{ours}/scale", f"{official}.{module}.weight", depth)
        yield layers(f"{block}/{ours}/bias", f"{official}.{module}.bias", depth)
    yield one(f"{part}_positions", f"{part}_pos_embed_learned", FIRST_ROW)
    yield from _norm(f"{part}_norm", f"{part}_norm")


def _norm(ours: str, official: str) -> tuple[Entry, ...]:
    return one(f"{ours}/scale", f"{official}.weight"), one(f"{ours}/bias", f"{official}.bias")


def patchify(official: Official, variables: dict[str, Variables], latent: Array) -> Parts:
    return {"tokens": official.ours.tokens(nhwc(latent).reshape(len(latent), -1, latent.shape[1]))}


def encode(
    official: Official, variables: dict[str, Variables], tokens: Array, mask: Array, labels: Array | None
) -> Parts:
    positions = _known_positions(mask)
    known, cond = jnp.take_along_axis(tokens, positions[..., None], axis=1), _condition(official, labels, len(mask))
    return {"encoded": _apply(official, variables, "encode")(known, positions, cond)}


def decode(official: Official, variables: dict[str, Variables], encoded: Array, mask: Array) -> Parts:
    return {"z": _apply(official, variables, "decode")(encoded, _known_positions(mask))}


def _apply(official: Official, variables: dict[str, Variables], method: str) -> Callable[..., Array]:
    return jax.jit(lambda *args: official.ours.network.apply(variables["model"], *args, method=method))


def _known_positions(mask: Array) -> Array:
    """Of the tokens that are not masked, of which every sample has as many; rising."""
    return jnp.argsort(mask > 0, axis=1, stable=True)[:, : int(jnp.sum(mask[0] == 0))]


def _condition(official: Official, labels: Array | None, batch: int) -> dict[str, Array]:
    """Labels; none stands for the null class, the official `fake_latent`, in every row."""
    return {"label": jnp.full(batch, official.ours.network.num_classes) if labels is None else labels}


def loss(
    official: Official,
    variables: dict[str, Variables],
    z: Array,
    target: Array,
    mask: Array,
    t: Array,
    noise: Array,
    base_steps: int,
    noise_schedule: str,
    respacing: str,
) -> Parts:
    _require_process(official, base_steps, noise_schedule)
    require("loss", "respacing", respacing, "")
    rows = (-1, *target.shape[:2])  # the official code repeats the whole batch, ours each sample
    t, noise = (jnp.moveaxis(x.reshape(*rows, *x.shape[1:]), 0, 1) for x in (t, noise))
    terms = jax.jit(official.ours.token_losses)(variables["model"], target, z, t, noise)
    return {"loss": sum(mar.hidden_mean(values, mask > 0) for values in terms.values())[None]}


def sample(
    official: Official,
    variables: dict[str, Variables],
    labels: Array | None,
    orders: Array,
    noise_init: Array,
    noise_step: Array,
    num_iter: int,
    cfg_scale: float,
    cfg_schedule: str,
    temperature: float,
    base_steps: int,
    noise_schedule: str,
    respacing: str,
    clip_denoised: bool,
) -> Parts:
    """The ordinary sampler with the given order and noise, step by step."""
    _require_process(official, base_steps, noise_schedule)
    require("sample", "clip_denoised", clip_denoised, False)
    options = mar.Sampling(
        num_steps=num_iter,
        head=heads.Steps(first=respacing, temperature=temperature),
        guidance_scale=cfg_scale,
        guidance_schedule=cfg_schedule,
        segments=2,
    )
    method, (batch, n) = official.ours, orders.shape
    state = masked.State(jnp.zeros((batch, n, method.network.channels)), jnp.zeros((batch, n), bool))
    priority = jnp.argsort(orders, axis=1).astype(jnp.float32)  # the last of an order comes first
    noise, cond = _recorded(noise_init, noise_step), _condition(official, labels, batch)
    law, choose, segments = method.rules(variables["model"], cond, options, state.known, priority, noise, n)
    steps = _replay.masked_steps(law, state, _replay.keys(batch), segments, choose)
    before, after = (jnp.stack([step[i].known for step in steps]) for i in (0, 2))
    latents = unpatchify(steps[-1][2].tokens, method.grid, method.network.sizes.patch_size)
    return {
        "latent": nchw(latents.reshape(batch, *method.grid, -1)),
        "mask": ~before,
        "predicted": after & ~before,
        "cfg_per_iter": guidance_scales(options, jnp.sum(~after[:, 0], axis=1), n),
    }


def _recorded(noise_init: Array, noise_step: Array) -> TokenNoise:
    """Noise by step and position in place of draws."""

    def noise(keys: Keys, step: Array, positions: Array) -> tuple[Array, ddpm.Noise]:
        take = jax.vmap(lambda values, at: values[at])
        return take(noise_init[step], positions), lambda index: take(noise_step[step, index], positions)

    return noise


def _require_process(official: Official, base_steps: int, noise_schedule: str) -> None:
    """The official class fixes the process that its head is trained on."""
    require("diffusion", "base_steps", base_steps, official.ours.head.base_steps)
    require("diffusion", "noise_schedule", noise_schedule, official.ours.head.schedule)


_CALLS = (patchify, encode, decode, loss, sample)
CALLS = {call.__name__: call for call in _CALLS}
