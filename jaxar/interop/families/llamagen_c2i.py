"""LlamaGen, conditional on classes.

Reference: https://github.com/FoundationVision/LlamaGen, autoregressive/models/gpt.py and generate.py.
"""

import jax
import jax.numpy as jnp

from jaxar.interop.base import Models, Official, Parts
from jaxar.interop.families import _llamagen
from jaxar.typing import Array, Variables

NETWORKS = (_llamagen.MODEL, _llamagen.TOKENIZER)
PUBLISHED = {
    f"llamagen_{size}_{pixels}": {_llamagen.MODEL: {**sizes, "block_size": (pixels // 16) ** 2}}
    for size, sizes in _llamagen.SIZES.items()
    for pixels in (256, 384)
}


def describe(models: Models) -> Official:
    return _llamagen.describe(models, "c2i", {"guidance_scale": 2.0})


def forward(official: Official, variables: dict[str, Variables], ids: Array, labels: Array) -> Parts:
    return {"logits": jax.jit(official.ours.network.apply)(variables["model"], ids, {"label": labels})}


def loss(official: Official, variables: dict[str, Variables], ids: Array, labels: Array) -> Parts:
    return _llamagen.loss(official, variables, {"ids": ids, "label": labels})


def rope_table(official: Official, variables: dict[str, Variables]) -> Parts:
    table = official.ours.network.rotary()
    return {"cos_sin": jnp.stack([table.cos, table.sin], axis=-1)}


def generate(official: Official, variables: dict[str, Variables], labels: Array, **options) -> Parts:
    return _llamagen.generate(official, variables, {"label": labels}, **options)


CALLS = {"forward": forward, "loss": loss, "rope_table": rope_table, "generate": generate}
