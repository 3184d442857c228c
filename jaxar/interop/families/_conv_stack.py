"""Name tables of the convolutional encoders and decoders that descend from VQGAN, in the official spellings."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax.numpy as jnp

from jaxar.interop.tables import CONV, SAME, Entry, fused, one
from jaxar.nn.convnet import ConvStack
from jaxar.typing import Array


@dataclasses.dataclass(frozen=True)
class Style:
    """What a repository calls things.

    Attributes:
      encoder_level, decoder_level: level i (0: highest resolution) of n as a format string; {up} counts it from below.
      block: the residual blocks of a level.
      middle: the two blocks of the middle, and the attention between them.
      fused: whether query, key and value are one convolution.
    """

    encoder_level: str
    decoder_level: str
    block: str
    middle: tuple[str, str, str]
    fused: bool

    def level(self, part: str, i: int, last: int) -> str:
        return getattr(self, f"{part}_level").format(i=i, up=last - i)


VAR = Style("down.{i}", "up.{i}", "block", ("mid.block_1", "mid.attn_1", "mid.block_2"), fused=True)
TAMING = dataclasses.replace(VAR, fused=False)
LLAMAGEN = Style("conv_blocks.{i}", "conv_blocks.{up}", "res", ("mid.0", "mid.1", "mid.2"), fused=False)


def conv(ours: str, official: str) -> tuple[Entry, ...]:
    return one(f"{ours}/kernel", f"{official}.weight", CONV), one(f"{ours}/bias", f"{official}.bias")


def autoencoder(stack: ConvStack, style: Style) -> tuple[Entry, ...]:
    """Encoder, decoder, and the convolutions between them and the quantizer."""
    outer = [entry for name in ("quant_conv", "post_quant_conv") for entry in conv(name, name)]
    return (*half(stack, style, "encoder"), *half(stack, style, "decoder"), *outer)


def half(stack: ConvStack, style: Style, part: Literal["encoder", "decoder"]) -> Iterator[Entry]:
    """Encoder or decoder alone."""
    last, blocks = len(stack.widths) - 1, stack.num_res_blocks + (part == "decoder")
    yield from conv(f"{part}/conv_in", f"{part}.conv_in")
    yield from _norm(f"{part}/norm_out", f"{part}.norm_out")
    yield from conv(f"{part}/conv_out", f"{part}.conv_out")
    first, attention, second = (f"{part}.{name}" for name in style.middle)
    yield from _residual(f"{part}/middle/block_0", first, shortcut=False)
    if stack.mid_attention:
        yield from _attention(f"{part}/middle/attention", attention, style, stack.widths[-1])
    yield from _residual(f"{part}/middle/block_1", second, shortcut=False)
    for i, width in enumerate(stack.widths):
        level = f"{part}.{style.level(part, i, last)}"
        before = stack.widths[min(i + 1, last)] if part == "decoder" else (stack.channels, *stack.widths)[i]
        for j in range(blocks):
            shortcut = j == 0 and width != before
            yield from _residual(f"{part}/level_{i}/block_{j}", f"{level}.{style.block}.{j}", shortcut)
            if i == last and stack.level_attention:
                yield from _attention(f"{part}/level_{i}/attention_{j}", f"{level}.attn.{j}", style, width)
        if i != (last if part == "encoder" else 0):
            step = "downsample" if part == "encoder" else "upsample"
            yield from conv(f"{part}/{step}_{i}/conv", f"{level}.{step}.conv")


def _norm(ours: str, official: str) -> tuple[Entry, ...]:
    return one(f"{ours}/scale", f"{official}.weight"), one(f"{ours}/bias", f"{official}.bias")


def _residual(ours: str, official: str, shortcut: bool) -> Iterator[Entry]:
    for i in (1, 2):
        yield from _norm(f"{ours}/norm_{i}", f"{official}.norm{i}")
        yield from conv(f"{ours}/conv_{i}", f"{official}.conv{i}")
    if shortcut:
        yield from conv(f"{ours}/shortcut", f"{official}.nin_shortcut")


def _attention(ours: str, official: str, style: Style, width: int) -> Iterator[Entry]:
    yield from _norm(f"{ours}/norm", f"{official}.norm")
    yield from conv(f"{ours}/out", f"{official}.proj_out")
    names = ("query", "key", "value")
    if not style.fused:
        for name in names:
            yield from conv(f"{ours}/{name}", f"{official}.{name[0]}")
        return
    rows = (width,) * 3
    yield fused([f"{ours}/{name}/kernel" for name in names], f"{official}.qkv.weight", rows, [CONV] * 3)
    yield fused([f"{ours}/{name}/bias" for name in names], f"{official}.qkv.bias", rows, [SAME] * 3)


def nhwc(x: Array) -> Array:
    """Channels of [.. c h w] to the end, as in ours."""
    return jnp.moveaxis(x, -3, -1)


def nchw(x: Array) -> Array:
    """Channels of [.. h w c] before the rows, as in PyTorch."""
    return jnp.moveaxis(x, -1, -3)
