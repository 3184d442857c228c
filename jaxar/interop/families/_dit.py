"""What `dit` and `sit` share: the transformer's names, its place between latents, and calls on it.

The latents are those of Stable Diffusion's autoencoder, in the names of its original repository.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.interop.base import Models, Official, Part, Parts, arguments, method_of, require
from jaxar.interop.families import _conv_stack
from jaxar.interop.families._conv_stack import nhwc
from jaxar.interop.tables import (
    FIRST_ROW,
    LINEAR,
    SAME,
    Entry,
    Layout,
    Table,
    chunks,
    fused,
    layers,
    merge_heads,
    one,
    split_heads,
)
from jaxar.methods import _canvas as canvases
from jaxar.nn.convnet import ConvStack
from jaxar.nn.positions import sincos_2d
from jaxar.typing import Array, Variables

TOKENIZER = "vae"
_STRIDE, _LATENT_CHANNELS, _LATENT_SCALE = 8, 4, 0.18215  # of Stable Diffusion's autoencoder
# Chunks of adaLN vectors: officially shift, scale, gate of attention, then of the feed-forward layer.
BLOCK_CHUNKS, HEAD_CHUNKS = chunks((2, 5, 1, 4, 0, 3)), chunks((1, 0))


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Of the official class; without dropped labels it has no null class."""

    input_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    class_dropout_prob: float = 0.1
    num_classes: int = 1000
    learn_sigma: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.input_size, self.input_size, self.in_channels


@dataclasses.dataclass(frozen=True)
class _Autoencoder:
    """Sizes of the autoencoder."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    group_norm_groups: int = 32


def described(models: Models, model: str, given: Arguments, method: dict[str, Any], sample: dict[str, Any]) -> Official:
    """Our counterpart.

    Args:
      model: the official name of the transformer.
      method, sample: sections of its workdirs.
    """
    config = {
        "method": method,
        "model": {
            "num_layers": given.depth,
            "width": given.hidden_size,
            "num_heads": given.num_heads,
            "patch_size": given.patch_size,
            "mlp_ratio": given.mlp_ratio,
        },
        "sample": sample,
    }
    tokenizer = _tokenizer(models) if TOKENIZER in models else None
    if tokenizer and given.in_channels != _LATENT_CHANNELS:
        raise ConfigError(f"{model}.in_channels={given.in_channels}, but the latents of {TOKENIZER!r} have 4 channels")
    tokens = {"kind": "continuous", "scales": [[given.input_size] * 2], "channels": given.in_channels}
    task = {
        "image": {"size": given.input_size * _STRIDE, "channels": 3},
        "num_classes": given.num_classes,
        "tokenizer": tokenizer,
        "tokens": None if tokenizer else tokens,
    }
    ours, built = method_of(config, task)
    parts = [Part(model, "model", _table(given), lambda key: ours.init(key)["model"])]
    if tokenizer:
        table = Table(_conv_stack.autoencoder(built.tokenizer.config.stack, _conv_stack.TAMING))
        parts.append(Part(TOKENIZER, "tokenizer", table, built.tokenizer.init))
    return Official(ours, tuple(parts), config, task)


def _tokenizer(models: Models) -> dict[str, Any]:
    given = arguments(_Autoencoder, models, TOKENIZER)
    stack = ConvStack(given.ch, given.ch_mult, given.num_res_blocks, given.group_norm_groups, level_attention=False)
    require(TOKENIZER, "stride", stack.stride, _STRIDE)
    options = {
        "latent_channels": _LATENT_CHANNELS,
        "stack": dataclasses.asdict(stack),
        "latent_scale": _LATENT_SCALE,
    }
    return {"name": "kl", "options": options}


def _table(given: Arguments) -> Table:
    return Table((*_outer(given), *_blocks(given)))


def _outer(given: Arguments) -> Iterator[Entry]:
    width, size = given.hidden_size, given.patch_size
    patches = Layout(
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, width),
        lambda x: x.reshape(size, size, given.in_channels, width).transpose(3, 2, 0, 1),
    )
    yield one("fixed/positions", "pos_embed", FIRST_ROW)
    yield one("patch_projection/kernel", "x_embedder.proj.weight", patches)
    yield one("patch_projection/bias", "x_embedder.proj.bias")
    for ours, official in (("up", "0"), ("down", "2")):
        yield from _linear(f"time/{ours}", f"t_embedder.mlp.{official}")
    classes = SAME if given.class_dropout_prob > 0 else _WITHOUT_NULL
    yield one("class_embedding/embedding", "y_embedder.embedding_table.weight", classes)
    of_layer = Layout(lambda x: x[None], lambda x: x[0])
    yield one(
        "head_modulation/kernel", "final_layer.adaLN_modulation.1.weight", HEAD_CHUNKS.then(LINEAR).then(of_layer)
    )
    yield one("head_modulation/bias", "final_layer.adaLN_modulation.1.bias", HEAD_CHUNKS.then(of_layer))
    yield from _linear("head", "final_layer.linear")


_WITHOUT_NULL = Layout(lambda x: np.concatenate([x, np.zeros_like(x[:1])]), lambda x: x[:-1])


def _linear(ours: str, official: str) -> tuple[Entry, Entry]:
    return one(f"{ours}/kernel", f"{official}.weight", LINEAR), one(f"{ours}/bias", f"{official}.bias")


def _blocks(given: Arguments) -> Iterator[Entry]:
    depth, heads, rows = given.depth, given.num_heads, (given.hidden_size,) * 3
    block, attention = "stack/layers", "stack/layers/attention"
    for ours, official, bias in (("kernel", "weight", False), ("bias", "bias", True)):
        paths = [f"{attention}/{name}/{ours}" for name in ("query", "key", "value")]
        names = [f"blocks.{i}.attn.qkv.{official}" for i in range(depth)]
        yield fused(paths, names, rows, [split_heads(heads, bias)] * 3)
    yield layers(f"{attention}/out/kernel", "blocks.{}.attn.proj.weight", depth, merge_heads(heads))
    yield layers(f"{attention}/out/bias", "blocks.{}.attn.proj.bias", depth)
    for ours, official in (("up", "fc1"), ("down", "fc2")):
        yield layers(f"{block}/mlp/{ours}/kernel", f"blocks.{{}}.mlp.{official}.weight", depth, LINEAR)
        yield layers(f"{block}/mlp/{ours}/bias", f"blocks.{{}}.mlp.{official}.bias", depth)
    modulation = "blocks.{}.adaLN_modulation.1"
    yield layers("modulation/kernel", f"{modulation}.weight", depth, BLOCK_CHUNKS.then(LINEAR))
    yield layers("modulation/bias", f"{modulation}.bias", depth, BLOCK_CHUNKS)


def apply(official: Official, variables: dict[str, Variables], x: Array, t: Array, labels: Array) -> Array:
    """The transformer's output, all channels [b h w o]; x as in PyTorch."""
    return jax.jit(official.ours.network.apply)(variables["model"], nhwc(x), t.astype(jnp.float32), labels)


def both_halves(output: Array, cfg_scale: float, channels: int) -> Array:
    """Guided outputs as the official code returns them: also in the null half, whose other channels stay its own."""
    cond, null = jnp.split(output, 2)
    guided = canvases.guide(cond, null, cfg_scale, channels)
    return jnp.concatenate([guided, jnp.concatenate([guided[..., :channels], null[..., channels:]], axis=-1)])


def time_embedding(official: Official, variables: dict[str, Variables], t: Array) -> Parts:
    t = t.astype(jnp.float32)
    return {"embedding": official.ours.network.apply(variables["model"], t, method="embed_time")}


def position_table(official: Official, variables: dict[str, Variables]) -> Parts:
    network = official.ours.network
    return {"table": jnp.asarray(sincos_2d(network.grid, network.sizes.width))[None]}
