"""MaskGIT's transformer.

Reference: https://github.com/google-research/maskgit, maskgit/nets/maskgit_transformer.py and maskgit/libml/.
"""

import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.decoding import mask_schedules, masked
from jaxar.interop.base import Models, Official, Part, Parts, arguments, method_of, require
from jaxar.interop.families import _replay, maskgit_vqgan
from jaxar.interop.tables import Entry, Table, layers, one
from jaxar.methods import maskgit
from jaxar.typing import Array, Int, Keys, Variables

MODEL, TOKENIZER = "transformer", maskgit_vqgan.MODEL
NETWORKS = (MODEL, TOKENIZER)
MASK = -1  # read as the last row of the table
_TRAINING = ("attention_probs_dropout_prob", "initializer_range")
_SCHEDULES = {"uniform": "linear"}  # ours where it is spelt otherwise


def _published(side: int) -> dict[str, dict]:
    transformer = {
        "vocab_size": 2025,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "max_position_embeddings": side**2 + 1,
    }
    return {MODEL: transformer, TOKENIZER: {}}


PUBLISHED = {"maskgit_imagenet256": _published(16), "maskgit_imagenet512": _published(32)}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Of the official class, and the codes and classes in its vocabulary."""

    vocab_size: int
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout_prob: float = 0.1
    max_position_embeddings: int = 256
    codebook_size: int = 1024
    num_classes: int = 1000

    def __post_init__(self):
        if self.vocab_size != self.codebook_size + self.num_classes + 1:
            raise ConfigError(
                f"{MODEL}.vocab_size={self.vocab_size} must be codebook_size={self.codebook_size} + "
                f"num_classes={self.num_classes} + 1"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """A square, or a single row where the positions make none."""
        length = self.max_position_embeddings - 1
        side = math.isqrt(length)
        return (side, side) if side**2 == length else (1, length)


def describe(models: Models) -> Official:
    given = arguments(Arguments, models, MODEL, _TRAINING)
    config = {
        "method": {"name": "maskgit", "label_drop": 0.0},
        "model": {
            "num_layers": given.num_hidden_layers,
            "width": given.hidden_size,
            "num_heads": given.num_attention_heads,
            "mlp_ratio": given.intermediate_size / given.hidden_size,
            "dropout": given.hidden_dropout_prob,
        },
        "sample": {"num_steps": 8, "choice_temperature": 4.5},
    }
    vq = maskgit_vqgan.read_arguments(models)
    tokenizer, stride = maskgit_vqgan.described(vq)
    stored = TOKENIZER in models
    tokens = {"kind": "discrete", "scales": [given.grid], "channels": vq.embedding_dim}
    task = {
        "image": {"size": given.grid[1] * stride, "channels": 3},
        "num_classes": given.num_classes,
        "tokenizer": tokenizer if stored else None,
        "tokens": None if stored else {**tokens, "vocab_size": given.codebook_size},
    }
    method, built = method_of(config, task)
    parts = [Part(MODEL, "model", Table(tuple(_entries(given))), lambda key: method.init(key)["model"])]
    if stored:
        if vq.codebook_size != given.codebook_size or built.tokens.grid != given.grid:
            raise ConfigError(
                f"{MODEL}.codebook_size={given.codebook_size}, but {TOKENIZER}.codebook_size={vq.codebook_size}; or "
                f"max_position_embeddings={given.max_position_embeddings} is not 1 + a square"
            )
        parts.append(maskgit_vqgan.part(vq, built.tokenizer))
    return Official(method, tuple(parts), config, task)


def _entries(given: Arguments) -> Iterator[Entry]:
    yield one("token_embedding/embedding", "Embed_0/word_embeddings/embedding")
    yield one("position_embedding/embedding", "Embed_0/position_embeddings/embedding")
    yield one("head_bias", "MlmLayer_0/mlm_bias/bias")
    for ours, official, leaf in (
        ("embedding_norm", "Embed_0/embeddings_ln", "scale"),
        ("head_dense", "MlmLayer_0/mlm_dense", "kernel"),
        ("head_norm", "MlmLayer_0/mlm_ln", "scale"),
    ):
        yield one(f"{ours}/{leaf}", f"{official}/{leaf}")
        yield one(f"{ours}/bias", f"{official}/bias")
    attention = "Attention_0/self_attention"
    for ours, official, leaf in (
        *((f"attention/{name}", f"{attention}/{name}", "kernel") for name in ("query", "key", "value", "out")),
        ("attention_norm", "Attention_0/attention_output_ln", "scale"),
        ("mlp/up", "Mlp_0/intermediate_output", "kernel"),
        ("mlp/down", "Mlp_0/layer_output", "kernel"),
        ("mlp_norm", "Mlp_0/layer_output_ln", "scale"),
    ):
        for name in (leaf, "bias"):
            path = f"TransformerLayer_{{}}/{official}/{name}"
            yield layers(f"stack/layers/{ours}/{name}", path, given.num_hidden_layers)


def forward(official: Official, variables: dict[str, Variables], ids: Array) -> Parts:
    net = official.ours.network
    sequence = jnp.where(ids == MASK, net.mask_id, ids)
    return {"logits": jax.jit(lambda x: net.apply(variables["model"], x, method="sequence_logits"))(sequence)}


def generate(
    official: Official,
    variables: dict[str, Variables],
    start_ids: Array,
    num_iter: int,
    choice_temperature: float,
    mask_schedule: str,
    mask_id: int,
    num_codes: int,
    draw: str,
    prng_key: Array | None,
) -> Parts:
    """The ordinary sampler step by step; tokens that are known at the start stay."""
    method, ids, known = official.ours, start_ids[:, 1:], start_ids[:, 1:] != MASK
    require("generate", "mask_id", mask_id, MASK)
    require("generate", "num_codes", num_codes, method.network.vocab_size)
    options = maskgit.Sampling(
        num_steps=num_iter, schedule=_ours(mask_schedule), choice_temperature=choice_temperature, greedy=draw != "prng"
    )
    counts = _masked_counts(options.schedule, num_iter, ids.shape[1])
    remaining = masked.by_table(counts, known)
    scales = lg.guidance_scales(options, num_iter)
    predict = method.predictor(variables["model"], {"label": start_ids[:, 0] - num_codes}, scales)
    if draw == "prng":
        law, keep = _official_draws(predict, remaining, options, prng_key)
    else:
        _replay.require_greedy(draw)
        law = masked.token_law(predict, options)
        keep = masked.most_confident(remaining, np.zeros(num_iter))
    state, segments = masked.State(ids, known), mask_schedules.segments(counts, 1)
    steps = _replay.masked_steps(law, state, _replay.keys(len(ids)), segments, keep=keep)
    final = [jnp.where(before.known, before.tokens, drawn.tokens) for before, drawn, _ in steps]
    after = [jnp.where(after.known, after.tokens, MASK) for _, _, after in steps]

    def with_class(rows: list[Array]) -> Array:
        return jnp.stack([jnp.concatenate([start_ids[:, :1], row], axis=1) for row in rows], axis=1)

    return {"final_ids": with_class(final), "state_ids": with_class(after)}


def _ours(schedule: str) -> str:
    return _SCHEDULES.get(schedule, schedule)


def _masked_counts(schedule: str, num_iter: int, num_tokens: int) -> Int[np.ndarray, "k n_plus_1"]:
    """The official table. Its loop is compiled, which rounds otherwise than NumPy and so moves the floor of what is a
    whole number on paper; and its last step still masks a token, although its ids are all used."""

    @jax.jit
    def wanted() -> Array:
        starts = jnp.arange(num_tokens + 1, dtype=jnp.float32)

        def after(step: Array) -> Array:
            ratio = jnp.full(starts.shape, 1.0 * (step + 1) / num_iter)
            return jnp.floor(starts * mask_schedules.masked_share(schedule, ratio, starts))

        return jax.lax.map(after, jnp.arange(num_iter))

    counts = mask_schedules.within_bounds(np.asarray(wanted()))
    counts[-1] = np.minimum(1, np.arange(num_tokens + 1))
    return counts


def _official_draws(
    predict: masked.Predict, remaining: masked.Remaining, options: maskgit.Sampling, prng_key: Array
) -> tuple[masked.Law, masked.Keep]:
    """`token_law` and `most_confident` with the official random numbers: a key per step for the whole batch, which also
    draws for the class token."""
    key, pairs = jax.random.wrap_key_data(prng_key.astype(jnp.uint32)), []
    for _ in range(options.num_steps):
        key, ids_key = jax.random.split(key)
        key, choice_key = jax.random.split(key)
        pairs.append((ids_key, choice_key))
    ids_keys, choice_keys = (jnp.stack(keys) for keys in zip(*pairs))
    weights = jnp.asarray(options.confidence_noise())

    def law(state: masked.State, chosen: Array, step: Array, keys: Keys, segment: mask_schedules.Segment):
        logits = jnp.pad(predict(state, step, segment)[0], ((0, 0), (1, 0), (0, 0)))
        ids = jax.random.categorical(ids_keys[step], logits)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]
        return masked.Drawn(ids[:, 1:], log_prob[:, 1:])

    def keep(drawn: masked.Drawn, chosen: Array, step: Array, keys: Keys) -> Array:
        gumbel = jax.random.gumbel(choice_keys[step], (len(chosen), chosen.shape[1] + 1))[:, 1:]
        confidence = jnp.where(chosen, drawn.log_prob + weights[step] * gumbel, -jnp.inf)
        total = jnp.sum(chosen, axis=1)
        return masked.largest(confidence, total - remaining(total, step, keys))

    return law, keep


def schedule(
    official: Official, variables: dict[str, Variables], ratio: Array, total: int, methods: list[str]
) -> Parts:
    total = jnp.full(1, float(total))
    return {"rate": jnp.stack([mask_schedules.masked_share(_ours(name), ratio, total) for name in methods])}


CALLS = {"forward": forward, "generate": generate, "schedule": schedule}
