"""VAR's multi-scale tokenizer.

Reference: https://github.com/FoundationVision/VAR, models/vqvae.py and models/quant.py.
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
from jaxar.interop.tables import CONV, Entry, Table, one, stack
from jaxar.nn.convnet import ConvStack
from jaxar.tokenizers import _code_use, multiscale_vq
from jaxar.tokenizers.base import ImageSpec
from jaxar.typing import Array, Variables

MODEL = "vae"
SCALES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
NETWORKS = (MODEL,)
PUBLISHED = {"vae_ch160v4096z32": {MODEL: {"ch": 160}}}
_TRAINING = ("dropout", "default_qresi_counts", "test_mode")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Of the official class; `ch` is None where only the quantizer is stored."""

    vocab_size: int = 4096
    z_channels: int = 32
    ch: int | None = None
    beta: float = 0.25
    using_znorm: bool = False
    quant_conv_ks: int = 3
    quant_resi: float = 0.5
    share_quant_resi: int = 4
    v_patch_nums: tuple[int, ...] = SCALES_256
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    using_sa: bool = True
    using_mid_sa: bool = True
    group_norm_groups: int = 32

    def __post_init__(self):
        require(MODEL, "using_znorm", self.using_znorm, False)
        require(MODEL, "quant_conv_ks", self.quant_conv_ks, multiscale_vq.KERNEL)


def read_arguments(models: Models) -> Arguments:
    return arguments(Arguments, models, MODEL, _TRAINING)


def described(given: Arguments) -> tuple[dict[str, Any], ImageSpec]:
    """Name and options of our tokenizer, and its images."""
    conv_stack = ConvStack(
        channels=given.ch if given.ch is not None else multiscale_vq.OFFICIAL_STACK.channels,
        multipliers=given.ch_mult,
        num_res_blocks=given.num_res_blocks,
        groups=given.group_norm_groups,
        level_attention=given.using_sa,
        mid_attention=given.using_mid_sa,
    )
    options = {
        "quantizer": {
            "name": "vq",
            "vocab_size": given.vocab_size,
            "channels": given.z_channels,
            "beta": given.beta,
        },
        "stack": dataclasses.asdict(conv_stack),
        "scales": given.v_patch_nums,
        "num_phi": given.share_quant_resi or len(given.v_patch_nums),
        "phi_ratio": given.quant_resi,
    }
    image = ImageSpec(given.v_patch_nums[-1] * conv_stack.stride, 3)
    return {"name": "multiscale_vq", "options": options}, image


def part(given: Arguments, tokenizer: multiscale_vq.MultiscaleVQ) -> Part:
    """The whole tokenizer, or its quantizer where only that is stored."""
    whole = given.ch is not None
    network = _conv_stack.autoencoder(tokenizer.config.stack, _conv_stack.VAR) if whole else ()
    table = Table(
        (*network, *_quantizer(given)),
        kept={"quantize.ema_vocab_hit_SV": (len(given.v_patch_nums), given.vocab_size)},
    )
    num_scales = len(given.v_patch_nums)
    return Part(MODEL, "tokenizer", table, tokenizer.init, whole, lambda params: _statistics(params, num_scales))


def _quantizer(given: Arguments) -> Iterator[Entry]:
    yield one("codebook", "quantize.embedding.weight")
    names = _phi_names(given.share_quant_resi, len(given.v_patch_nums))
    yield stack("phi/kernel", [f"quantize.quant_resi.{name}.weight" for name in names], CONV)
    yield stack("phi/bias", [f"quantize.quant_resi.{name}.bias" for name in names])


def _phi_names(shared: int, num_scales: int) -> list[str]:
    """Official names of the convolutions phi: one per scale (0), one for all (1), or several shared ones."""
    if shared == 0:
        return [str(i) for i in range(num_scales)]
    return ["qresi"] if shared == 1 else [f"qresi_ls.{i}" for i in range(shared)]


def _statistics(params: Any, num_scales: int) -> dict[str, Any]:
    return {_code_use.COLLECTION: _code_use.create(params["codebook"], num_scales)}


def describe(models: Models) -> Official:
    given = read_arguments(models)
    if given.ch is None:
        raise ConfigError(f"{MODEL}.ch is missing; it must be the width of the convolutions, 160 in published weights")
    tokenizer, image = described(given)
    config = {"method": {"name": "autoencoder"}}
    task = {"image": dataclasses.asdict(image), "num_classes": 0, "tokenizer": tokenizer}
    method, _ = method_of(config, task)
    return Official(method.tokenizer, (part(given, method.tokenizer),), config, task)


def encode_features(official: Official, variables: dict[str, Variables], image: Array) -> Parts:
    features = jax.jit(official.ours.features)(variables["tokenizer"], nhwc(image))
    return {"features": nchw(features)}


def encode_ids(official: Official, variables: dict[str, Variables], image: Array) -> Parts:
    return {"ids": jax.jit(official.ours.encode)(variables["tokenizer"], nhwc(image)).ids}


def cumulative_features(official: Official, variables: dict[str, Variables], features: Array) -> Parts:
    residual = jax.jit(official.ours.residual)(variables["tokenizer"], nhwc(features))
    return {"f_hat_per_scale": nchw(residual.sums)}


def teacher_input(official: Official, variables: dict[str, Variables], ids: Array) -> Parts:
    return {"x": jax.jit(official.ours.teacher_input)(variables["tokenizer"], ids)}


def decode_ids(official: Official, variables: dict[str, Variables], ids: Array, num_scales: int, clamp: bool) -> Parts:
    sums = jax.jit(official.ours.cumulative_features)(variables["tokenizer"], ids)
    return decode_features(official, variables, nchw(sums[num_scales - 1]), clamp)


def decode_features(official: Official, variables: dict[str, Variables], features: Array, clamp: bool) -> Parts:
    image = jax.jit(official.ours.decode_features)(variables["tokenizer"], nhwc(features))
    return {"image": nchw(jnp.clip(image, -1, 1) if clamp else image)}


def next_input(official: Official, variables: dict[str, Variables], scale: int, f_hat: Array, ids: Array) -> Parts:
    spec = official.ours.spec
    start = sum(spec.scale_lengths[:scale])
    of_scale = ids[:, start : start + spec.scale_lengths[scale]]
    summed, x = jax.jit(official.ours.next_input, static_argnums=1)(
        variables["tokenizer"], scale, nhwc(f_hat), of_scale
    )
    if x is None:  # after the last scale the official code hands the sum itself on
        return {"f_hat": nchw(summed), "next_input": nchw(summed)}
    size = spec.scales[scale + 1]
    return {"f_hat": nchw(summed), "next_input": nchw(x.reshape(x.shape[0], *size, -1))}


def loss(official: Official, variables: dict[str, Variables], features: Array) -> Parts:
    features = nhwc(features)
    sums = jax.jit(official.ours.residual)(variables["tokenizer"], features).sums
    return {"vq_loss": sum(official.ours.terms(features, sums).values())[None]}


CALLS = {
    call.__name__: call
    for call in (
        encode_features,
        encode_ids,
        cumulative_features,
        teacher_input,
        decode_ids,
        decode_features,
        next_input,
        loss,
    )
}
