"""SimVQ's tokenizer.

Reference: https://github.com/youngsheen/SimVQ, taming/modules/vqvae/quantize.py and
taming/modules/diffusionmodules/improved_model.py.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.interop.base import Models, Official, Part, Parts, arguments, method_of, require
from jaxar.interop.families import _conv_stack
from jaxar.interop.families._conv_stack import nchw, nhwc
from jaxar.interop.tables import LINEAR, Entry, Table, one
from jaxar.nn import quantize as quantization
from jaxar.nn.convnet import ConvStack
from jaxar.tokenizers import _code_use
from jaxar.typing import FIXED, Array, Variables

MODEL = "vq"
NETWORKS = (MODEL,)
PUBLISHED: dict[str, Models] = {}
_NO_ATTENTION = {"level_attention": False, "mid_attention": False}


@dataclasses.dataclass(frozen=True)
class Network:
    """The official section `ddconfig`."""

    double_z: bool = False
    z_channels: int = 128
    resolution: int = 128
    in_channels: int = 3
    out_ch: int = 3
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 4


@dataclasses.dataclass(frozen=True)
class Codes:
    """The official section `quantconfig`; `legacy` says that beta weighs the codebook's loss."""

    n_e: int = 65536
    e_dim: int = 128
    beta: float = 0.25
    legacy: bool = True


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Of the official class."""

    ddconfig: Network = Network()
    quantconfig: Codes = Codes()
    group_norm_groups: int = 32

    def __post_init__(self):
        require(MODEL, "ddconfig.double_z", self.ddconfig.double_z, False)
        require(MODEL, "ddconfig.out_ch", self.ddconfig.out_ch, self.ddconfig.in_channels)
        if self.ddconfig.z_channels != self.quantconfig.e_dim:
            raise ConfigError(
                f"{MODEL}.ddconfig.z_channels={self.ddconfig.z_channels} and quantconfig.e_dim="
                f"{self.quantconfig.e_dim} must agree: there is no convolution between them"
            )


def describe(models: Models) -> Official:
    given = arguments(Arguments, models, MODEL)
    net, codes = given.ddconfig, given.quantconfig
    stack = ConvStack(net.ch, net.ch_mult, net.num_res_blocks, given.group_norm_groups, **_NO_ATTENTION)
    codebook_weight, beta = (codes.beta, 1.0) if codes.legacy else (1.0, codes.beta)
    quantizer = {
        "name": "simvq",
        "vocab_size": codes.n_e,
        "channels": codes.e_dim,
        "codebook_weight": codebook_weight,
        "beta": beta,
    }
    options = {"quantizer": quantizer, "network": "magvit2", "stack": dataclasses.asdict(stack)}
    config = {"method": {"name": "autoencoder"}}
    task = {
        "image": {"size": net.resolution, "channels": net.in_channels},
        "num_classes": 0,
        "tokenizer": {"name": "vq", "options": options},
    }
    method, _ = method_of(config, task)

    def statistics(params: Any) -> dict[str, Any]:
        return {_code_use.COLLECTION: _code_use.create_frequencies(codes.n_e, 1)}

    part = Part(MODEL, "tokenizer", Table(tuple(_entries(stack))), method.tokenizer.init, collections=statistics)
    return Official(method.tokenizer, (part,), config, task)


def _entries(stack: ConvStack) -> Iterator[Entry]:
    yield one(f"{FIXED}/codebook", "quantize.embedding.weight")
    yield one("projection/kernel", "quantize.embedding_proj.weight", LINEAR)
    yield one("projection/bias", "quantize.embedding_proj.bias")
    yield from _half(stack, "encoder")
    yield from _half(stack, "decoder")


def _half(stack: ConvStack, part: str) -> Iterator[Entry]:
    last, encoder = len(stack.widths) - 1, part == "encoder"
    yield from _conv(f"{part}/conv_in", f"{part}.conv_in", bias=not encoder)
    yield from _norm(f"{part}/norm_out", f"{part}.norm_out")
    yield from _conv(f"{part}/conv_out", f"{part}.conv_out")
    for j in range(stack.num_res_blocks):
        yield from _residual(f"{part}/middle/block_{j}", f"{part}.mid_block.{j}", shortcut=False)
    for i, width in enumerate(stack.widths):
        level = f"{part}.{'down' if encoder else 'up'}.{i}"
        before = (stack.channels, *stack.widths)[i] if encoder else stack.widths[min(i + 1, last)]
        for j in range(stack.num_res_blocks):
            shortcut = j == 0 and width != before
            yield from _residual(f"{part}/level_{i}/block_{j}", f"{level}.block.{j}", shortcut)
        if encoder and i < last:
            yield from _conv(f"{part}/downsample_{i}", f"{level}.downsample")
        elif not encoder and i > 0:
            yield from _conv(f"{part}/upsample_{i}/conv", f"{level}.upsample.conv1")


def _residual(ours: str, official: str, shortcut: bool) -> Iterator[Entry]:
    for i in (1, 2):
        yield from _norm(f"{ours}/norm_{i}", f"{official}.norm{i}")
        yield from _conv(f"{ours}/conv_{i}", f"{official}.conv{i}", bias=False)
    if shortcut:
        yield from _conv(f"{ours}/shortcut", f"{official}.nin_shortcut", bias=False)


def _norm(ours: str, official: str) -> tuple[Entry, ...]:
    return one(f"{ours}/scale", f"{official}.weight"), one(f"{ours}/bias", f"{official}.bias")


def _conv(ours: str, official: str, bias: bool = True) -> tuple[Entry, ...]:
    entries = _conv_stack.conv(ours, official)
    return entries if bias else entries[:1]


def encode_features(official: Official, variables: dict[str, Variables], image: Array) -> Parts:
    return {"features": nchw(jax.jit(official.ours.features)(variables["tokenizer"], nhwc(image)))}


def quantize(official: Official, variables: dict[str, Variables], features: Array) -> Parts:
    coded = jax.jit(official.ours.code)(variables["tokenizer"], nhwc(features))
    return {
        "ids": coded.ids.reshape(len(features), -1),
        "quantized": nchw(coded.codes),
        "commit_loss": sum(coded.terms.values())[None],
    }


def codebook(official: Official, variables: dict[str, Variables]) -> Parts:
    return {"codebook": official.ours.config.quantizer.codebook(variables["tokenizer"])}


def decode_features(official: Official, variables: dict[str, Variables], features: Array, clamp: bool) -> Parts:
    images = jax.jit(official.ours.decode_features)(variables["tokenizer"], nhwc(features))
    return {"image": nchw(jnp.clip(images, -1, 1) if clamp else images)}


def raw_entry(official: Official, variables: dict[str, Variables], ids: Array, grid: tuple[int, int]) -> Parts:
    """What the official `get_codebook_entry` returns: vectors before the projection, which nothing decodes."""
    vectors = quantization.lookup(variables["tokenizer"][FIXED]["codebook"], ids)
    return {"entry": nchw(vectors.reshape(len(ids), *grid, -1))}


CALLS = {call.__name__: call for call in (encode_features, quantize, codebook, decode_features, raw_entry)}
