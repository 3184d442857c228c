"""SiT, and the latents of Stable Diffusion that it models. Its clock runs from noise at 0 to data at 1.

Reference: https://github.com/willisma/SiT, models.py and transport/path.py.
"""

import jax

from jaxar.diffusion import paths
from jaxar.interop.base import Models, Official, Parts, arguments, require
from jaxar.interop.families import _dit
from jaxar.interop.families._conv_stack import nchw, nhwc
from jaxar.typing import Array, Variables

MODEL = "sit"
NETWORKS = (MODEL, _dit.TOKENIZER)
PUBLISHED = {"sit_xl2_256": {MODEL: {"input_size": 32}, _dit.TOKENIZER: {}}}


def describe(models: Models) -> Official:
    given = arguments(_dit.Arguments, models, MODEL)
    method = {"name": "flow_matching", "label_drop": given.class_dropout_prob, "learn_sigma": given.learn_sigma}
    sample = {"solver": "sde", "num_steps": 250, "guidance_scale": 4.0, "guided_channels": 3}
    return _dit.described(models, MODEL, given, method, sample)


def forward(official: Official, variables: dict[str, Variables], x: Array, t: Array, labels: Array) -> Parts:
    velocity = jax.jit(official.ours.velocity)(variables["model"], nhwc(x), 1 - t, labels)
    return {"out": nchw(-velocity)}


def forward_with_cfg(
    official: Official,
    variables: dict[str, Variables],
    x: Array,
    t: Array,
    labels: Array,
    cfg_scale: float,
    guided_channels: int,
) -> Parts:
    output = nhwc(forward(official, variables, x, t, labels)["out"])
    return {"out": nchw(_dit.both_halves(output, cfg_scale, guided_channels))}


def path_sample(
    official: Official, variables: dict[str, Variables], data: Array, noise: Array, t: Array, path: str
) -> Parts:
    require("path_sample", "path", path, "linear")
    point = paths.linear(1 - t)
    return {"x_t": paths.add_noise(point, data, noise), "velocity": -paths.velocity(point, data, noise)}


def loss(
    official: Official, variables: dict[str, Variables], data: Array, noise: Array, t: Array, labels: Array, path: str
) -> Parts:
    require("loss", "path", path, official.ours.config.path)
    terms = jax.jit(official.ours.terms)
    return {"loss": terms(variables["model"], nhwc(data), {"label": labels}, 1 - t, nhwc(noise))["mse"]}


CALLS = {
    call.__name__: call
    for call in (forward, _dit.time_embedding, forward_with_cfg, _dit.position_table, path_sample, loss)
}
