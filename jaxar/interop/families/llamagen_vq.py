"""LlamaGen's tokenizer.

Reference: https://github.com/FoundationVision/LlamaGen, tokenizer/tokenizer_image/vq_model.py.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.interop.base import Models, Official, Part, Parts, arguments, method_of, require
from jaxar.interop.families import _conv_stack
from jaxar.interop.families._conv_stack import nchw, nhwc
from jaxar.interop.tables import Table, one
from jaxar.nn.convnet import ConvStack
from jaxar.tokenizers import _code_use, vq
from jaxar.typing import Array, Variables

MODEL = "vq"
NETWORKS = (MODEL,)
PUBLISHED = {
    "llamagen_vq16": {MODEL: {}},
    "llamagen_vq8": {MODEL: {"encoder_ch_mult": (1, 2, 2, 4), "decoder_ch_mult": (1, 2, 2, 4)}},
}
_TRAINING = ("codebook_show_usage", "entropy_loss_ratio", "dropout_p")
_USED = 65536  # length of the official counter of recently used codes, whatever the codebook's


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Of the official class `ModelArgs`, what its encoder and decoder fix, and `image_size` of a workdir."""

    codebook_size: int = 16384
    codebook_embed_dim: int = 8
    codebook_l2_norm: bool = True
    commit_loss_beta: float = 0.25
    encoder_ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    z_channels: int = 256
    encoder_decoder_ch: int = 128
    num_res_blocks: int = 2
    group_norm_groups: int = 32
    image_size: int = 256

    def __post_init__(self):
        require(MODEL, "codebook_l2_norm", self.codebook_l2_norm, True)
        if self.encoder_ch_mult != self.decoder_ch_mult:
            raise ConfigError(
                f"{MODEL}.encoder_ch_mult={self.encoder_ch_mult} and decoder_ch_mult={self.decoder_ch_mult} must agree"
            )


def read_arguments(models: Models) -> Arguments:
    return arguments(Arguments, models, MODEL, _TRAINING)


def described(given: Arguments) -> tuple[dict[str, Any], int]:
    """Name and options of our tokenizer, and its stride."""
    width, groups = given.encoder_decoder_ch, given.group_norm_groups
    stack = ConvStack(width, given.encoder_ch_mult, given.num_res_blocks, groups)
    quantizer = {
        "name": "l2_vq",
        "vocab_size": given.codebook_size,
        "channels": given.codebook_embed_dim,
        "beta": given.commit_loss_beta,
    }
    options = {"quantizer": quantizer, "stack": dataclasses.asdict(stack), "latent_channels": given.z_channels}
    return {"name": "vq", "options": options}, stack.stride


def part(given: Arguments, tokenizer: vq.VQ) -> Part:
    entries = _conv_stack.autoencoder(tokenizer.config.stack, _conv_stack.LLAMAGEN)
    codebook = one("codebook", "quantize.embedding.weight")
    table = Table((*entries, codebook), kept={"quantize.codebook_used": (_USED,)})
    return Part(MODEL, "tokenizer", table, tokenizer.init, collections=_statistics)


def _statistics(params: Any) -> dict[str, Any]:
    return {_code_use.COLLECTION: _code_use.create(params["codebook"], 1)}


def describe(models: Models) -> Official:
    given = read_arguments(models)
    tokenizer, _ = described(given)
    config = {"method": {"name": "autoencoder"}}
    task = {"image": {"size": given.image_size, "channels": 3}, "num_classes": 0, "tokenizer": tokenizer}
    method, _ = method_of(config, task)
    return Official(method.tokenizer, (part(given, method.tokenizer),), config, task)


def _on_grid(tokenizer: vq.VQ, grid: tuple[int, int]) -> vq.VQ:
    """The tokenizer for token maps of this size: its layers are convolutions."""
    spec = dataclasses.replace(tokenizer.spec, scales=(tuple(grid),))
    return dataclasses.replace(tokenizer, spec=spec)


def _grid(official: Official, image: Array) -> tuple[int, int]:
    stride = official.ours.config.stack.stride
    return image.shape[-2] // stride, image.shape[-1] // stride


def encode_features(official: Official, variables: dict[str, Variables], image: Array) -> Parts:
    features = jax.jit(official.ours.features)(variables["tokenizer"], nhwc(image))
    return {"features": nchw(features)}


def encode_ids(official: Official, variables: dict[str, Variables], image: Array) -> Parts:
    ids = jax.jit(official.ours.encode)(variables["tokenizer"], nhwc(image)).ids
    return {"ids": ids, **codebook_entry(official, variables, ids, _grid(official, image))}


def codebook_entry(official: Official, variables: dict[str, Variables], ids: Array, grid: tuple[int, int]) -> Parts:
    return {"quantized": nchw(_on_grid(official.ours, grid).quantized(variables["tokenizer"], ids))}


def decode_ids(
    official: Official, variables: dict[str, Variables], ids: Array, grid: tuple[int, int], clamp: bool
) -> Parts:
    tokenizer = _on_grid(official.ours, grid)
    codes = tokenizer.quantized(variables["tokenizer"], ids)
    return _image(jax.jit(tokenizer.decode_features)(variables["tokenizer"], codes), clamp)


def reconstruct(official: Official, variables: dict[str, Variables], image: Array, clamp: bool) -> Parts:
    tokenizer = _on_grid(official.ours, _grid(official, image))

    @jax.jit
    def run(variables: Variables, images: Array) -> Array:
        return tokenizer.reconstruct(variables, images, None, train=False).images

    return _image(run(variables["tokenizer"], nhwc(image)), clamp)


def loss(official: Official, variables: dict[str, Variables], features: Array) -> Parts:
    terms = official.ours.code(variables["tokenizer"], nhwc(features)).terms
    return {"vq_loss": terms["codebook_loss"][None], "commit_loss": terms["commitment_loss"][None]}


def _image(images: Array, clamp: bool) -> Parts:
    return {"image": nchw(jnp.clip(images, -1, 1) if clamp else images)}


_CALLS = (encode_features, encode_ids, codebook_entry, decode_ids, reconstruct, loss)
CALLS = {call.__name__: call for call in _CALLS}
