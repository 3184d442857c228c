"""DiT, and the latents of Stable Diffusion that it models.

Reference: https://github.com/facebookresearch/DiT, models.py and diffusion/.
"""

import jax.numpy as jnp

from jaxar.diffusion import ddpm
from jaxar.diffusion.process import Process
from jaxar.interop.base import Models, Official, Parts, arguments, require
from jaxar.interop.families import _dit
from jaxar.interop.families._conv_stack import nchw, nhwc
from jaxar.typing import Array, Variables

MODEL = "dit"
NETWORKS = (MODEL, _dit.TOKENIZER)
PUBLISHED = {
    "dit_xl2_256": {MODEL: {"input_size": 32}, _dit.TOKENIZER: {}},
    "dit_xl2_512": {MODEL: {"input_size": 64}, _dit.TOKENIZER: {}},
}


def describe(models: Models) -> Official:
    given = arguments(_dit.Arguments, models, MODEL)
    require(MODEL, "learn_sigma", given.learn_sigma, True)
    method = {"name": "diffusion", "label_drop": given.class_dropout_prob}
    sample = {"respacing": "250", "guidance_scale": 4.0, "guided_channels": 3}
    return _dit.described(models, MODEL, given, method, sample)


def forward(official: Official, variables: dict[str, Variables], x: Array, t: Array, labels: Array) -> Parts:
    return {"out": nchw(_dit.apply(official, variables, x, t, labels))}


def forward_with_cfg(
    official: Official,
    variables: dict[str, Variables],
    x: Array,
    t: Array,
    labels: Array,
    cfg_scale: float,
    guided_channels: int,
) -> Parts:
    output = _dit.apply(official, variables, x, t, labels)
    return {"out": nchw(_dit.both_halves(output, cfg_scale, guided_channels))}


def loss(
    official: Official,
    variables: dict[str, Variables],
    x_start: Array,
    t: Array,
    labels: Array,
    noise: Array,
    base_steps: int,
    noise_schedule: str,
    respacing: str,
) -> Parts:
    tables = Process(noise_schedule, base_steps, respacing).tables
    x, noise = nhwc(x_start), nhwc(noise)
    output = _told(official, variables, tables, nchw(ddpm.add_noise(tables, x, t, noise)), t, labels)
    return ddpm.training_terms(tables, x, t, noise, output)._asdict()


def p_mean_variance(
    official: Official,
    variables: dict[str, Variables],
    x_t: Array,
    t: Array,
    labels: Array,
    base_steps: int,
    noise_schedule: str,
    respacing: str,
    clip_denoised: bool,
) -> Parts:
    tables = Process(noise_schedule, base_steps, respacing).tables
    step = ddpm.reverse(tables, nhwc(x_t), t, _told(official, variables, tables, x_t, t, labels), clip_denoised)
    parts = {"mean": step.mean, "log_variance": step.log_variance, "pred_xstart": step.denoised}
    return {name: nchw(value) for name, value in parts.items()}


def ddim_step(
    official: Official,
    variables: dict[str, Variables],
    x_t: Array,
    t: Array,
    labels: Array,
    base_steps: int,
    noise_schedule: str,
    respacing: str,
    clip_denoised: bool,
    eta: float,
) -> Parts:
    require("ddim_step", "eta", eta, 0.0)
    tables = Process(noise_schedule, base_steps, respacing).tables
    output = _told(official, variables, tables, x_t, t, labels)
    return {"sample": nchw(ddpm.implicit_step(tables, nhwc(x_t), t, output, clip_denoised))}


def _told(official: Official, variables: dict[str, Variables], tables, x: Array, t: Array, labels: Array) -> Array:
    """The output at steps t of a shortened process; the network is told those of the whole one."""
    return _dit.apply(official, variables, x, jnp.asarray(tables.timesteps)[t], labels)


def diffusion_tables(
    official: Official, variables: dict[str, Variables], base_steps: int, noise_schedule: str, respacing: str
) -> Parts:
    tables = Process(noise_schedule, base_steps, respacing).tables
    return {"timesteps": tables.timesteps, "betas": tables.betas}


CALLS = {
    call.__name__: call
    for call in (
        forward,
        _dit.time_embedding,
        forward_with_cfg,
        _dit.position_table,
        loss,
        p_mean_variance,
        ddim_step,
        diffusion_tables,
    )
}
