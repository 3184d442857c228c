"""MeanFlow, and the latents of Stable Diffusion that it models.

Reference: https://github.com/Gsunshine/meanflow, meanflow.py and models/models_dit.py.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxar.interop.base import Models, Official, Part, Parts, arguments, require
from jaxar.interop.families import _dit
from jaxar.interop.tables import (
    LINEAR,
    NEW_AXIS,
    Entry,
    Table,
    fused,
    layers,
    merge_heads,
    one,
    reshaped,
    split_heads,
)
from jaxar.methods import _students as students
from jaxar.nn.positions import sincos_2d
from jaxar.typing import FIXED, Array, Params, Variables

MODEL = "meanflow"
NETWORKS = (MODEL, _dit.TOKENIZER)
PUBLISHED: dict[str, Models] = {}
_OF_KERNEL, _OF_BIAS = "_flax_linear/kernel", "_flax_linear/bias"


@dataclasses.dataclass(frozen=True)
class Loss:
    """Arguments of the official class MeanFlow."""

    num_classes: int = 1000
    omega: float = 1.0
    kappa: float = 0.5
    class_dropout_prob: float = 0.1
    t_start: float = 0.0
    t_end: float = 1.0
    norm_p: float = 1.0
    norm_eps: float = 0.01


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Of the official transformer and of the class around it. The transformer always has a null class."""

    dit: _dit.Arguments = dataclasses.field(default_factory=lambda: _dit.Arguments(learn_sigma=False))
    meanflow: Loss = Loss()

    def __post_init__(self):
        require(MODEL, "dit.learn_sigma", self.dit.learn_sigma, False)
        require(MODEL, "meanflow.num_classes", self.meanflow.num_classes, self.dit.num_classes)


def describe(models: Models) -> Official:
    given = arguments(Arguments, models, MODEL)
    loss = given.meanflow
    method = {
        "name": "meanflow",
        "omega": loss.omega,
        "kappa": loss.kappa,
        "guidance_interval": (loss.t_start, loss.t_end),
        "label_drop": loss.class_dropout_prob,
        "norm_power": loss.norm_p,
        "norm_eps": loss.norm_eps,
    }
    official = _dit.described(models, MODEL, given.dit, method, {"num_steps": 1})
    ours = official.ours

    def positions(params: Params) -> dict[str, Any]:
        network = ours.network.network
        return {FIXED: {"positions": jnp.asarray(sincos_2d(network.grid, network.sizes.width))}}

    part = Part(
        MODEL,
        "model",
        _table(given.dit),
        lambda key: {"params": ours.init(key)["model"]["params"]},
        collections=positions,
    )
    return dataclasses.replace(official, parts=(part, *official.parts[1:]))


def _table(given: _dit.Arguments) -> Table:
    return Table((*_outer(given), *_blocks(given)))


def _outer(given: _dit.Arguments) -> Iterator[Entry]:
    patch = (given.patch_size, given.patch_size, given.in_channels, given.hidden_size)
    yield one("patch_projection/kernel", "net/x_embedder/proj/kernel", reshaped(patch, (-1, given.hidden_size)))
    yield one("patch_projection/bias", "net/x_embedder/proj/bias")
    for ours, official in (("time", "t_embedder"), ("scalars_0", "h_embedder")):
        for layer, number in (("up", 0), ("down", 2)):
            for ours_name, name in (("kernel", _OF_KERNEL), ("bias", _OF_BIAS)):
                yield one(f"{ours}/{layer}/{ours_name}", f"net/{official}/mlp/layers_{number}/{name}")
    yield one("class_embedding/embedding", "net/y_embedder/embedding_table/_flax_embedding/embedding")
    shift = "net/final_layer/adaLN_modulation/layers_1"
    yield one("head_modulation/kernel", f"{shift}/{_OF_KERNEL}", _modulation(_dit.HEAD_CHUNKS).then(NEW_AXIS))
    yield one("head_modulation/bias", f"{shift}/{_OF_BIAS}", _dit.HEAD_CHUNKS.then(NEW_AXIS))
    yield one("head/kernel", f"net/final_layer/linear/{_OF_KERNEL}")
    yield one("head/bias", f"net/final_layer/linear/{_OF_BIAS}")


def _blocks(given: _dit.Arguments) -> Iterator[Entry]:
    depth, heads, rows = given.depth, given.num_heads, (given.hidden_size,) * 3
    block, attention = "net/blocks/layers_{}", "stack/layers/attention"
    projections = [f"{attention}/{name}" for name in ("query", "key", "value")]
    qkv = [f"{block.format(i)}/attn/qkv" for i in range(depth)]
    split = LINEAR.then(split_heads(heads))
    yield fused([f"{p}/kernel" for p in projections], [f"{n}/{_OF_KERNEL}" for n in qkv], rows, [split] * 3, axis=1)
    bias = split_heads(heads, bias=True)
    yield fused([f"{p}/bias" for p in projections], [f"{n}/{_OF_BIAS}" for n in qkv], rows, [bias] * 3)
    yield layers(f"{attention}/out/kernel", f"{block}/attn/proj/{_OF_KERNEL}", depth, LINEAR.then(merge_heads(heads)))
    yield layers(f"{attention}/out/bias", f"{block}/attn/proj/{_OF_BIAS}", depth)
    for ours, official in (("up", "fc1"), ("down", "fc2")):
        yield layers(f"stack/layers/mlp/{ours}/kernel", f"{block}/mlp/{official}/{_OF_KERNEL}", depth)
        yield layers(f"stack/layers/mlp/{ours}/bias", f"{block}/mlp/{official}/{_OF_BIAS}", depth)
    modulation = f"{block}/adaLN_modulation/layers_1"
    yield layers("modulation/kernel", f"{modulation}/{_OF_KERNEL}", depth, _modulation(_dit.BLOCK_CHUNKS))
    yield layers("modulation/bias", f"{modulation}/{_OF_BIAS}", depth, _dit.BLOCK_CHUNKS)


def _modulation(order):
    """Of kernels [in, out]: chunks of their columns."""
    return LINEAR.then(order).then(LINEAR)


def forward(official: Official, variables: dict[str, Variables], x: Array, t: Array, r: Array, labels: Array) -> Parts:
    return {"u": jax.jit(official.ours.average)(variables["model"], x, t, r, labels)}


def loss(
    official: Official,
    variables: dict[str, Variables],
    x: Array,
    labels: Array,
    t: Array,
    r: Array,
    noise: Array,
    drop_uniform: Array,
) -> Parts:
    ours, model = official.ours, variables["model"]
    # The official code drops as many labels as there are draws below the rate, those of the first rows.
    dropped = jnp.arange(len(x)) < jnp.sum(drop_uniform < ours.config.label_drop)

    def value(params: Params):
        terms = ours.terms({**model, "params": params}, x, noise, t, r, {"label": labels}, dropped)
        return jnp.mean(ours.normalized(terms.square)), terms

    (mean, terms), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(model["params"])
    gradient = official.parts[0].to_official({"params": gradient})
    norms = jnp.stack([jnp.linalg.norm(jnp.ravel(gradient[name])) for name in sorted(gradient)])
    return {
        "z_t": terms.x,
        "guided_velocity": terms.velocity,
        "u": terms.average,
        "du_dt": terms.derivative,
        "loss": mean[None],
        "velocity_loss": jnp.sum((terms.average - (noise - x)) ** 2, axis=(1, 2, 3)),
        "sq_sum": terms.square,
        "grad_norms": norms,
        **{f"grad/{name}": value for name, value in gradient.items()},
    }


def sample(official: Official, variables: dict[str, Variables], noise: Array, labels: Array, num_steps: int) -> Parts:
    ours = official.ours

    @jax.jit
    def follow(model: Variables, x: Array) -> Array:
        times = ours.visited(students.Sampling(num_steps))
        return students.follow(lambda x, t, s: ours.advance(model, x, t, s, labels), x, times)

    return {"sample": follow(variables["model"], noise)}


CALLS = {call.__name__: call for call in (forward, loss, sample)}
