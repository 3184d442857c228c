"""MAR's autoencoder, KL-16.

Reference: https://github.com/LTH14/mar, models/vae.py.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.interop.base import Models, Official, Part, Parts, arguments, method_of
from jaxar.interop.families import _conv_stack
from jaxar.interop.families._conv_stack import nchw, nhwc
from jaxar.interop.tables import CONV, Entry, Layout, Table, one
from jaxar.nn.convnet import ConvStack
from jaxar.tokenizers import kl
from jaxar.typing import Array, Variables

MODEL = "vae"
NETWORKS = (MODEL,)
PUBLISHED = {"mar_kl16": {MODEL: {}}}
LATENT_SCALE = 0.2325  # of the published transformers, not of the autoencoder
_TRAINING = ("ckpt_path",)
_ATTENTION_LEVEL = 4  # that of 16x16 in images of 256, whatever the number of levels


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Of the official class, what its encoder and decoder fix, and `image_size` of a workdir."""

    embed_dim: int = 16
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    use_variational: bool = True
    encoder_decoder_ch: int = 128
    num_res_blocks: int = 2
    group_norm_groups: int = 32
    image_size: int = 256

    def __post_init__(self):
        if len(self.ch_mult) > _ATTENTION_LEVEL + 1:
            raise ConfigError(
                f"{MODEL}.ch_mult={self.ch_mult} has attention at a level that is not the last; use at most "
                f"{_ATTENTION_LEVEL + 1} levels"
            )


def read_arguments(models: Models) -> Arguments:
    return arguments(Arguments, models, MODEL, _TRAINING)


def described(given: Arguments) -> tuple[dict[str, Any], int]:
    """Name and options of our tokenizer, and its stride."""
    stack = ConvStack(
        channels=given.encoder_decoder_ch,
        multipliers=given.ch_mult,
        num_res_blocks=given.num_res_blocks,
        groups=given.group_norm_groups,
        level_attention=len(given.ch_mult) == _ATTENTION_LEVEL + 1,
    )
    options = {
        "latent_channels": given.embed_dim,
        "stack": dataclasses.asdict(stack),
        "latent_scale": LATENT_SCALE,
    }
    return {"name": "kl", "options": options}, stack.stride


def part(given: Arguments, tokenizer: kl.KL) -> Part:
    stack = tokenizer.config.stack
    decoder = dataclasses.replace(stack, level_attention=False)
    table = Table(
        (
            *_conv_stack.half(stack, _conv_stack.TAMING, "encoder"),
            *_conv_stack.half(decoder, _conv_stack.TAMING, "decoder"),
            *_moments(given),
            *_conv_stack.conv("post_quant_conv", "post_quant_conv"),
        )
    )
    return Part(MODEL, "tokenizer", table, tokenizer.init)


def _moments(given: Arguments) -> tuple[Entry, ...]:
    """The convolution to means and log-variances; without the latter, which are then 1 everywhere, officially."""
    if given.use_variational:
        return _conv_stack.conv("quant_conv", "quant_conv")
    kernel, bias = CONV.then(_extended(given.embed_dim, 0)), _extended(given.embed_dim, 1)
    return one("quant_conv/kernel", "quant_conv.weight", kernel), one("quant_conv/bias", "quant_conv.bias", bias)


def _extended(width: int, value: float) -> Layout:
    """[.. width] <-> [.. 2*width], where the second half is constant."""

    def to_ours(x: Any) -> Any:
        return jnp.concatenate([x, jnp.full_like(x, value)], axis=-1)

    return Layout(to_ours, lambda x: x[..., :width])


def describe(models: Models) -> Official:
    given = read_arguments(models)
    tokenizer, _ = described(given)
    config = {"method": {"name": "autoencoder"}}
    task = {"image": {"size": given.image_size, "channels": 3}, "num_classes": 0, "tokenizer": tokenizer}
    method, _ = method_of(config, task)
    return Official(method.tokenizer, (part(given, method.tokenizer),), config, task)


def encode(official: Official, variables: dict[str, Variables], image: Array) -> Parts:
    posterior = jax.jit(official.ours.posterior)(variables["tokenizer"], nhwc(image))
    maps = {"mean": posterior.mean, "logvar": posterior.log_variance, "std": posterior.std}
    return {name: nchw(x) for name, x in maps.items()} | {"kl": posterior.divergence()}


def draw_latent(official: Official, variables: dict[str, Variables], mean: Array, std: Array, noise: Array) -> Parts:
    posterior = kl.Posterior(nhwc(mean), 2 * jnp.log(nhwc(std)))
    return {"latent": nchw(posterior.draw(nhwc(noise)))}


def decode(official: Official, variables: dict[str, Variables], latent: Array, clamp: bool) -> Parts:
    image = jax.jit(official.ours.decode_latents)(variables["tokenizer"], nhwc(latent))
    return {"image": nchw(jnp.clip(image, -1, 1) if clamp else image)}


CALLS = {"encode": encode, "draw_latent": draw_latent, "decode": decode}
