"""The head of MAR that draws a token, by itself, and its diffusion process.

Reference: https://github.com/LTH14/mar, models/diffloss.py and diffusion/.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from jaxar.diffusion import ddpm
from jaxar.interop.base import Models, Official, Part, Parts, arguments
from jaxar.interop.families import _replay
from jaxar.interop.tables import LINEAR, Entry, Layout, Table, layers, one
from jaxar.models import diffusion_head
from jaxar.nn.timestep import sinusoids
from jaxar.typing import Array, Variables

MODEL = "net"
NETWORKS = (MODEL,)
PUBLISHED = {}
_TRAINING = ("grad_checkpointing",)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Of the official class."""

    in_channels: int
    model_channels: int
    out_channels: int
    z_channels: int
    num_res_blocks: int


def describe(models: Models) -> Official:
    given = arguments(Arguments, models, MODEL, _TRAINING)
    sizes = diffusion_head.Sizes(num_layers=given.num_res_blocks, width=given.model_channels)
    network = diffusion_head.DiffusionHead(sizes, given.out_channels)

    def init(key: Array) -> Variables:
        return network.init(key, jnp.zeros((1, given.in_channels)), jnp.zeros(1), jnp.zeros((1, given.z_channels)))

    table = Table(tuple(entries(given.num_res_blocks)))
    return Official(network, (Part(MODEL, "model", table, init),))


def entries(num_blocks: int, ours: str = "", official: str = "") -> Iterator[Entry]:
    """The head's arrays, under prefixes where it is part of something else."""
    for name, module in (
        ("time/up", "time_embed.mlp.0"),
        ("time/down", "time_embed.mlp.2"),
        ("condition", "cond_embed"),
        ("input", "input_proj"),
        ("modulation", "final_layer.adaLN_modulation.1"),
        ("output", "final_layer.linear"),
    ):
        yield from linear(f"{ours}{name}", f"{official}{module}")
    block = f"{official}res_blocks.{{}}."
    for name, module in (("up", "mlp.0"), ("down", "mlp.2"), ("modulation", "adaLN_modulation.1")):
        yield layers(f"{ours}layers/{name}/kernel", f"{block}{module}.weight", num_blocks, LINEAR)
        yield layers(f"{ours}layers/{name}/bias", f"{block}{module}.bias", num_blocks)
    yield layers(f"{ours}layers/norm/scale", f"{block}in_ln.weight", num_blocks)
    yield layers(f"{ours}layers/norm/bias", f"{block}in_ln.bias", num_blocks)


def linear(ours: str, official: str, layout: Layout = LINEAR) -> tuple[Entry, ...]:
    """A linear layer with bias."""
    return one(f"{ours}/kernel", f"{official}.weight", layout), one(f"{ours}/bias", f"{official}.bias")


def forward(official: Official, variables: dict[str, Variables], x: Array, t: Array, c: Array) -> Parts:
    return {"out": _head(official, variables)(x, t, c)}


def forward_with_cfg(
    official: Official, variables: dict[str, Variables], x: Array, t: Array, c: Array, cfg_scale: float
) -> Parts:
    """As the sampler guides, which keeps the conditional half alone; officially the halves share the guided noise."""
    half = x.shape[0] // 2
    output = _head(official, variables)(jnp.concatenate([x[:half], x[:half]]), t, c)
    guided = ddpm.guided(output, cfg_scale)
    eps, channels = jnp.split(guided, 2, axis=-1)[0], x.shape[-1]
    return {"out": jnp.concatenate([guided, jnp.concatenate([eps, output[half:, channels:]], axis=-1)])}


def time_embedding(official: Official, variables: dict[str, Variables], t: Array, dim: int, max_period: float) -> Parts:
    return {"embedding": sinusoids(t.astype(jnp.float32), dim, float(max_period))}


def q_sample(
    official: Official, variables: dict[str, Variables], x_start: Array, t: Array, noise: Array, **process
) -> Parts:
    return {"x_t": ddpm.add_noise(_replay.process(**process).tables, x_start, t, noise)}


def loss(
    official: Official, variables: dict[str, Variables], x_start: Array, t: Array, c: Array, noise: Array, **process
) -> Parts:
    tables = _replay.process(**process).tables
    noised = ddpm.add_noise(tables, x_start, t, noise)
    output = _head(official, variables)(noised, jnp.asarray(tables.timesteps)[t], c)
    terms = ddpm.training_terms(tables, x_start, t, noise, output)
    return terms._asdict() | {"loss": terms.mse + terms.vb}


def p_mean_variance(
    official: Official,
    variables: dict[str, Variables],
    x_t: Array,
    t: Array,
    c: Array,
    clip_denoised: bool,
    **process,
) -> Parts:
    tables = _replay.process(**process).tables
    output = _head(official, variables)(x_t, jnp.asarray(tables.timesteps)[t], c)
    moments = ddpm.reverse(tables, x_t, t, output, clip_denoised)
    return {
        "mean": moments.mean,
        "variance": jnp.exp(moments.log_variance),
        "log_variance": moments.log_variance,
        "pred_xstart": moments.denoised,
    }


def sample(
    official: Official,
    variables: dict[str, Variables],
    c: Array,
    noise_init: Array,
    noise_step: Array,
    temperature: float,
    clip_denoised: bool,
    **process,
) -> Parts:
    """A sample by the ordinary loop, and one after each step of it."""
    tables, head = _replay.process(**process).tables, _head(official, variables)
    told = jnp.asarray(tables.timesteps)

    def advance(x: Array, index: Array) -> tuple[Array, Array]:
        t = jnp.full(x.shape[:1], len(told) - 1 - index)
        x = ddpm.step(tables, x, t, head(x, told[t], c), noise_step[index], temperature, clip_denoised)
        return x, x

    @jax.jit
    def run(start: Array) -> Parts:
        drawn = ddpm.sample(
            tables, lambda x, t: head(x, t, c), start, lambda i: noise_step[i], temperature, clip_denoised
        )
        return {"sample": drawn, "trajectory": jax.lax.scan(advance, start, jnp.arange(len(told)))[1]}

    return run(noise_init)


def _head(official: Official, variables: dict[str, Variables]) -> Callable[[Array, Array, Array], Array]:
    """The head as a function of tokens, whole times and conditions."""
    return jax.jit(lambda x, t, c: official.ours.apply(variables["model"], x, t.astype(jnp.float32), c))


_CALLS = (forward, forward_with_cfg, time_embedding, q_sample, loss, p_mean_variance, sample)
CALLS = {call.__name__: call for call in _CALLS}
