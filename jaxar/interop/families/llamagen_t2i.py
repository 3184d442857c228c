"""LlamaGen, conditional on text: features of a text encoder (FLAN-T5 XL), padded on the left to 120 vectors.

The text encoder itself is not part of jaxar; a workdir of these weights expects its features.

Reference: https://github.com/FoundationVision/LlamaGen, autoregressive/models/gpt.py and generate.py.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.interop.base import Models, Official, Parts
from jaxar.interop.families import _llamagen
from jaxar.methods import ar
from jaxar.typing import Array, Variables

NETWORKS = (_llamagen.MODEL, _llamagen.TOKENIZER)
PUBLISHED = {
    f"llamagen_t2i_xl_{pixels}": {
        _llamagen.MODEL: {
            **_llamagen.SIZES["xl"],
            "model_type": "t2i",
            "cls_token_num": _llamagen.CAPTION_TOKENS,
            "block_size": (pixels // 16) ** 2,
        }
    }
    for pixels in (256, 512)
}


def describe(models: Models) -> Official:
    return _llamagen.describe(models, "t2i", {"guidance_scale": 7.5, "top_k": 1000})


def forward(
    official: Official, variables: dict[str, Variables], ids: Array, caption: Array | None, attn_mask: Array | None
) -> Parts:
    """Logits at every position, those inside the caption too."""
    net, weights = official.ours.network, variables["model"]

    @jax.jit
    def run(ids: Array, cond: dict[str, Array]) -> Array:
        parts = [net.apply(weights, cond, method="embed_condition"), net.apply(weights, ids, method="embed_tokens")]
        pad = ar.causal.padding(cond) if "text_mask" in cond else None
        x = jnp.concatenate(parts, axis=1)
        return net.apply(weights, x, net.init_cache(ids.shape[0]), pad, method="extend")[0]

    return {"logits": run(ids[:, :-1], _condition(official, ids.shape, caption, attn_mask))}


def loss(
    official: Official,
    variables: dict[str, Variables],
    ids: Array,
    caption: Array | None,
    attn_mask: Array | None,
    valid: Array,
) -> Parts:
    cond = _condition(official, ids.shape, caption, attn_mask)
    return _llamagen.loss(official, variables, {"ids": ids, "valid": valid, **cond})


def generate(
    official: Official, variables: dict[str, Variables], caption: Array, caption_mask: Array, **options
) -> Parts:
    cond = {"text": caption, "text_mask": caption_mask > 0}
    return _llamagen.generate(official, variables, cond, **options)


def _condition(
    official: Official, shape: tuple[int, int], caption: Array | None, attn_mask: Array | None
) -> dict[str, Array]:
    """Our condition; no caption means the learned null caption in every row.

    Args:
      shape: of the ids, [b n].
    Raises:
      ConfigError: a mask that is not that of captions padded on the left.
    """
    batch, length = shape[0], official.ours.network.text[0]
    cond = {"text": jnp.zeros((batch, *official.ours.network.text)) if caption is None else caption}
    if caption is None:
        cond["text_null"] = jnp.ones(batch, bool)
    if attn_mask is not None:
        cond["text_mask"] = jnp.asarray(_text_mask(np.asarray(attn_mask), length))
    return cond


def _text_mask(attn_mask: np.ndarray, length: int) -> np.ndarray:
    """Where captions have words, bool [b length], from a mask over queries and keys of caption and image."""
    size = attn_mask.shape[-1]
    words = attn_mask[:, -1, :length] > 0
    seen = np.concatenate([words, np.ones((len(words), size - length), bool)], axis=1)
    expected = np.tril(np.ones((size, size), bool)) & seen[:, None] | np.eye(size, dtype=bool)
    if not np.array_equal(expected, attn_mask > 0) or (words[:, :-1] & ~words[:, 1:]).any():
        raise ConfigError("attn_mask is not the causal mask of captions padded on the left, the only one we compute")
    return words


CALLS = {"forward": forward, "loss": loss, "generate": generate}
