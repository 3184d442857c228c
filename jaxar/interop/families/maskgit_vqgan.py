"""MaskGIT's tokenizer.

Reference: https://github.com/google-research/maskgit, maskgit/nets/vqgan_tokenizer.py.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxar.interop.base import Models, Official, Part, Parts, arguments, method_of, require
from jaxar.interop.tables import Entry, Table, one
from jaxar.tokenizers import _code_use, maskgit_vq
from jaxar.typing import Array, Variables

MODEL = "vqgan"
NETWORKS = (MODEL,)
PUBLISHED = {
    "maskgit_vqgan_imagenet256": {MODEL: {}},
    "maskgit_vqgan_imagenet512": {MODEL: {"image_size": 512}},
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Of the official section `vqvae`, and `image_size` of a workdir."""

    quantizer: str = "vq"
    codebook_size: int = 1024
    entropy_loss_ratio: float = 0.1
    entropy_temperature: float = 0.01
    entropy_loss_type: str = "softmax"
    commitment_cost: float = 0.25
    filters: int = 128
    num_res_blocks: int = 2
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    embedding_dim: int = 256
    conv_downsample: bool = False
    activation_fn: str = "swish"
    norm_type: str = "GN"
    group_norm_groups: int = 32
    image_size: int = 256

    def __post_init__(self):
        published = {"quantizer": "vq", "entropy_loss_type": "softmax", "activation_fn": "swish", "norm_type": "GN"}
        for field, value in published.items():
            require(MODEL, field, getattr(self, field), value)


def read_arguments(models: Models) -> Arguments:
    return arguments(Arguments, models, MODEL)


def described(given: Arguments) -> tuple[dict[str, Any], int]:
    """Name and options of our tokenizer, and its stride."""
    options = {
        "vocab_size": given.codebook_size,
        "code_channels": given.embedding_dim,
        "channels": given.filters,
        "multipliers": given.channel_multipliers,
        "num_res_blocks": given.num_res_blocks,
        "groups": given.group_norm_groups,
        "conv_downsample": given.conv_downsample,
        "beta": given.commitment_cost,
        "entropy_weight": given.entropy_loss_ratio,
        "entropy_temperature": given.entropy_temperature,
    }
    return {"name": "maskgit_vq", "options": options}, 2 ** (len(given.channel_multipliers) - 1)


def part(given: Arguments, tokenizer: maskgit_vq.MaskGITVQ) -> Part:
    table = Table((one("codebook", "quantizer/codebook"), *_encoder(given), *_decoder(given)))
    return Part(MODEL, "tokenizer", table, tokenizer.init, collections=_statistics)


def _statistics(params: Any) -> dict[str, Any]:
    return {_code_use.COLLECTION: _code_use.create(params["codebook"], 1)}


def _encoder(given: Arguments) -> Iterator[Entry]:
    """The official modules are numbered in the order of their calls."""
    last = len(given.channel_multipliers) - 1
    yield one("encoder/conv_in/kernel", "encoder/Conv_0/kernel")
    down = range(last) if given.conv_downsample else ()
    for i in down:
        yield from _module(f"encoder/downsample_{i}", f"encoder/Conv_{i + 1}", "kernel", "bias")
    yield from _module("encoder/conv_out", f"encoder/Conv_{len(down) + 1}", "kernel", "bias")
    yield from _module("encoder/norm_out", "encoder/GroupNorm_0", "scale", "bias")
    widths = [given.filters, *_widths(given), _widths(given)[-1]]
    yield from _levels(given, "encoder", [*(f"level_{i}" for i in range(last + 1)), "middle"], widths)


def _decoder(given: Arguments) -> Iterator[Entry]:
    last = len(given.channel_multipliers) - 1
    yield from _module("decoder/conv_in", "decoder/Conv_0", "kernel", "bias")
    for i in range(1, last + 1):
        yield from _module(f"decoder/upsample_{i}/conv", f"decoder/Conv_{last + 1 - i}", "kernel", "bias")
    yield from _module("decoder/conv_out", f"decoder/Conv_{last + 1}", "kernel", "bias")
    yield from _module("decoder/norm_out", "decoder/GroupNorm_0", "scale", "bias")
    widths = [_widths(given)[-1], _widths(given)[-1], *reversed(_widths(given))]
    yield from _levels(given, "decoder", ["middle", *(f"level_{i}" for i in reversed(range(last + 1)))], widths)


def _widths(given: Arguments) -> list[int]:
    return [given.filters * m for m in given.channel_multipliers]


def _levels(given: Arguments, part: str, levels: list[str], widths: list[int]) -> Iterator[Entry]:
    """Residual blocks in the order of their calls; `widths` holds the one before them, then that of each level."""
    for i, level in enumerate(levels):
        for j in range(given.num_res_blocks):
            ours, official = f"{part}/{level}/block_{j}", f"{part}/ResBlock_{i * given.num_res_blocks + j}"
            for k in (0, 1):
                yield from _module(f"{ours}/norm_{k + 1}", f"{official}/GroupNorm_{k}", "scale", "bias")
                yield one(f"{ours}/conv_{k + 1}/kernel", f"{official}/Conv_{k}/kernel")
            if j == 0 and widths[i] != widths[i + 1]:
                yield one(f"{ours}/shortcut/kernel", f"{official}/Conv_2/kernel")


def _module(ours: str, official: str, *leaves: str) -> Iterator[Entry]:
    for leaf in leaves:
        yield one(f"{ours}/{leaf}", f"{official}/{leaf}")


def describe(models: Models) -> Official:
    given = read_arguments(models)
    tokenizer, _ = described(given)
    config = {"method": {"name": "autoencoder"}}
    task = {"image": {"size": given.image_size, "channels": 3}, "num_classes": 0, "tokenizer": tokenizer}
    method, _ = method_of(config, task)
    return Official(method.tokenizer, (part(given, method.tokenizer),), config, task)


def encode_features(official: Official, variables: dict[str, Variables], image: Array) -> Parts:
    return {"features": jax.jit(official.ours.features)(variables["tokenizer"], _ours(image))}


def encode_ids(official: Official, variables: dict[str, Variables], image: Array) -> Parts:
    tokenizer = _of_images(official, image)
    ids = jax.jit(tokenizer.encode)(variables["tokenizer"], _ours(image)).ids
    return {"ids": ids.reshape(len(ids), *tokenizer.spec.grid)}


def decode_ids(official: Official, variables: dict[str, Variables], ids: Array, clamp: bool) -> Parts:
    tokenizer = _on_grid(official.ours, ids.shape[1:])
    codes = tokenizer.quantized(variables["tokenizer"], ids.reshape(len(ids), -1))
    image = (jax.jit(tokenizer.decode_features)(variables["tokenizer"], codes) + 1) / 2
    return {"image": jnp.clip(image, -1, 1) if clamp else image}


def loss(official: Official, variables: dict[str, Variables], image: Array) -> Parts:
    """Of a training pass."""
    tokenizer = _of_images(official, image)

    @jax.jit
    def run(variables: Variables, images: Array) -> Parts:
        result = tokenizer.reconstruct(variables, images, None, train=False)
        parts = {
            "quantizer_loss": result.loss,
            "entropy_loss": result.metrics.get("entropy_loss", jnp.zeros(())),  # absent where its weight is 0
            "e_latent_loss": result.metrics["commitment_loss"],
        }
        return {name: value[None] for name, value in parts.items()}

    return run(variables["tokenizer"], _ours(image))


def _of_images(official: Official, image: Array) -> maskgit_vq.MaskGITVQ:
    stride = official.ours.config.stack.stride
    return _on_grid(official.ours, (image.shape[1] // stride, image.shape[2] // stride))


def _on_grid(tokenizer: maskgit_vq.MaskGITVQ, grid: tuple[int, int]) -> maskgit_vq.MaskGITVQ:
    """The tokenizer for token maps of this size: its layers are convolutions."""
    return dataclasses.replace(tokenizer, spec=dataclasses.replace(tokenizer.spec, scales=(grid,)))


def _ours(image: Array) -> Array:
    """Pixels in [-1, 1], from [0, 1]."""
    return 2 * image - 1


_CALLS = (encode_features, encode_ids, decode_ids, loss)
CALLS = {call.__name__: call for call in _CALLS}
