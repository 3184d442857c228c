"""The Inception network of FID, in the names of its PyTorch exports.

Reference: https://github.com/mseitzer/pytorch-fid and https://github.com/toshas/torch-fidelity, whose files of weights
have the same entries; conventions of https://github.com/openai/guided-diffusion, evaluations/evaluator.py.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from jaxar.interop.base import Models, Official, Part, Parts, arguments
from jaxar.interop.families import fid_math
from jaxar.interop.tables import CONV, LINEAR, Entry, Table, one
from jaxar.models import inception
from jaxar.typing import Array, Key, Variables

MODEL = "inception"
NETWORKS = (MODEL,)
PUBLISHED = {}
_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The network has no options."""


def describe(models: Models) -> Official:
    arguments(Arguments, models, MODEL)
    network = inception.Inception()

    def init(key: Key) -> Variables:
        return network.init(key, jnp.zeros((1, inception.SIZE, inception.SIZE, 3)))

    return Official(network, (Part(MODEL, MODEL, _table(init), init),))


def _table(init: Callable[[Key], Variables]) -> Table:
    params = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))["params"]
    layers = sorted({path[:-2] for path in flax.traverse_util.flatten_dict(params) if path[-1] == "kernel"})
    entries = [entry for layer in layers for entry in _layer("/".join(layer), ".".join(layer))]
    # A counter that modules of torch keep beside the statistics.
    kept = {f"{'.'.join(layer)}.bn.num_batches_tracked": () for layer in layers}
    return Table((*entries, one("fc_kernel", "fc.weight", LINEAR), one("fc_bias", "fc.bias")), kept=kept)


def _layer(ours: str, official: str) -> list[Entry]:
    norm = [one(f"{ours}/{name}", f"{official}.bn.{theirs}") for name, theirs in _NORM.items()]
    return [one(f"{ours}/conv/kernel", f"{official}.conv.weight", CONV), *norm]


def resize(official: Official, variables: dict[str, Variables], images: Array, size: int) -> Parts:
    return {"resized": inception.preprocess(images, size)}


@functools.partial(jax.jit, static_argnums=0)
def _layers(network: inception.Inception, variables: Variables, images: Array) -> Parts:
    return network.apply(variables, images)


def features(official: Official, variables: dict[str, Variables], images: Array, size: int) -> Parts:
    found = _layers(official.ours, variables[MODEL], inception.preprocess(images, size))
    heads = {name: found.pop(name) for name in ("pool_3", "spatial", "logits")}
    layers = {f"layer/{name}": value for name, value in found.items()}
    return heads | layers | {"softmax": jax.nn.softmax(heads["logits"])}


CALLS = {
    "resize": resize,
    "features": features,
    "fid": fid_math.CALLS["fid"],
    "inception_score": fid_math.CALLS["inception_score"],
}
