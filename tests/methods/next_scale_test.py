"""The next-scale method with a real tokenizer: inputs, loss, guidance over scales, sampling through the cache."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar import flops, optim
from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.methods import _conditions as conditions
from jaxar.methods import next_scale
from jaxar.methods.base import Task
from jaxar.nn.convnet import ConvStack
from jaxar.tokenizers import multiscale_vq
from jaxar.tokenizers._quantizers import VQ
from jaxar.tokenizers.base import ImageSpec, TokenSpec

CLASSES = 5
CONFIG = multiscale_vq.Config(
    VQ(vocab_size=9, channels=3), stack=ConvStack(4, (1, 1), num_res_blocks=1, groups=2), scales=(1, 2, 4), num_phi=2
)
TOKENIZER = multiscale_vq.build(CONFIG, ImageSpec(8, 3))
LENGTHS, TOKENS = TOKENIZER.spec.scale_lengths, TOKENIZER.spec.num_tokens
SIZES = next_scale.Model(num_layers=2, width=16, num_heads=2)
TASK = Task(ImageSpec(8, 3), CLASSES, TOKENIZER.spec, TOKENIZER)
LABEL = {"label": jnp.array([4, 0])}
BATCH = {"ids": jnp.asarray(np.random.default_rng(1).integers(9, size=(2, TOKENS))), **LABEL}
METHOD = next_scale.build(next_scale.Config(label_drop=0.0), SIZES, TASK)


@functools.cache
def variables():
    shapes = nn.meta.unbox(jax.eval_shape(METHOD.init, jax.random.key(0)))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    weights = tree.unflatten([jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves])
    shapes = nn.meta.unbox(jax.eval_shape(TOKENIZER.init, jax.random.key(0)))["params"]
    quantizer = {name: shapes[name] for name in ("codebook", "phi")}  # no image is encoded or decoded here
    quantizer = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), quantizer)
    return {**weights, "tokenizer": {"params": quantizer}}


@functools.cache
def sampler(options):
    return jax.jit(lambda variables, cond, keys: METHOD.sample(variables, cond, keys, options).ids)


@functools.cache
def figures():
    return jax.jit(METHOD.evaluate)(variables(), BATCH, jax.random.key(0))


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_teacher_forced_inputs_equal_those_of_the_sampler():
    """All scales at once, and scale by scale as the decode loop asks for them."""

    @jax.jit
    def run(tokenizer):
        f_hat, parts, begin = jnp.zeros((2, 4, 4, 3)), [], 0
        for scale, length in enumerate(LENGTHS):
            ids = BATCH["ids"][:, begin : begin + length]
            f_hat, inputs = TOKENIZER.next_input(tokenizer, scale, f_hat, ids)
            parts.append(inputs)
            begin += length
        assert parts.pop() is None
        return TOKENIZER.teacher_input(tokenizer, BATCH["ids"]), jnp.concatenate(parts, axis=1)

    whole, incremental = run(variables()["tokenizer"])
    np.testing.assert_allclose(incremental, whole, atol=1e-5)
    assert np.abs(whole).max() > 0.1


def test_loss_and_figures_are_the_mean_log_likelihood():
    loss, _ = jax.jit(METHOD.loss)(variables(), BATCH, jax.random.key(0), jnp.int32(0))
    x = TOKENIZER.teacher_input(variables()["tokenizer"], BATCH["ids"])
    logits = jax.jit(METHOD.network.apply)(variables()["model"], x, LABEL["label"])
    bits = -np.asarray(jax.nn.log_softmax(logits)) / np.log(2)
    picked = np.take_along_axis(bits, np.asarray(BATCH["ids"])[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(loss, picked.mean() * np.log(2), rtol=1e-5)
    np.testing.assert_allclose(figures()["bits_per_token"], picked.mean(1), rtol=1e-5)
    np.testing.assert_allclose(figures()["accuracy"], (np.argmax(logits, -1) == BATCH["ids"]).mean(1))
    for scale, part in enumerate(np.split(picked, np.cumsum(LENGTHS)[:-1], axis=1), 1):
        np.testing.assert_allclose(figures()[f"bits_per_token_scale_{scale}"], part.mean(1), rtol=1e-5)


def test_the_tokenizer_gets_no_gradient():
    def loss(tokenizer):
        return METHOD.loss({**variables(), "tokenizer": {"params": tokenizer}}, BATCH, jax.random.key(0), 0)[0]

    for gradient in jax.tree.leaves(jax.jit(jax.grad(loss))(variables()["tokenizer"]["params"])):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_sampling_draws_from_the_guided_full_forward(scale):
    """Feeding the samples back: every token is the one that its key draws from the uncached, guided logits."""
    options = next_scale.Sampling(guidance_scale=scale, temperature=0.9, top_p=0.9)
    ids = sampler(options)(variables(), LABEL, keys(2))

    @jax.jit
    def redraw(variables, ids):
        both = conditions.doubled(LABEL, CLASSES)["label"]
        x = TOKENIZER.teacher_input(variables["tokenizer"], jnp.concatenate([ids, ids]))
        cond, uncond = jnp.split(METHOD.network.apply(variables["model"], x, both), 2)
        weight = np.repeat([0.0, (scale - 1) / 2, scale - 1], LENGTHS)[:, None]  # VAR's t = cfg k / (K - 1)
        return lg.draw((1 + weight) * cond - weight * uncond, keys(2), jnp.arange(TOKENS), options)

    np.testing.assert_array_equal(redraw(variables(), ids), ids)
    assert (ids[0] != ids[1]).any()


def test_scale_one_is_the_conditional_path_and_costs_half():
    plain, guided = next_scale.Sampling(), next_scale.Sampling(guidance_scale=2.0)

    def network_flops(options):
        decoder = flops.count(lambda v: METHOD.sample(v, LABEL, keys(2), options).ids, variables())
        return decoder - quantizer

    def quantize(v):
        f_hat, begin = jnp.zeros((2, 4, 4, 3)), 0
        for scale, length in enumerate(LENGTHS):
            f_hat, _ = TOKENIZER.next_input(v["tokenizer"], scale, f_hat, BATCH["ids"][:, begin : begin + length])
            begin += length
        return f_hat

    quantizer = flops.count(quantize, variables())
    assert network_flops(guided) == pytest.approx(2 * network_flops(plain), rel=0.01)
    zero = next_scale.Sampling(guidance_scale=0.0, guidance_schedule="constant")
    null = {"label": jnp.full(2, CLASSES)}
    np.testing.assert_array_equal(
        sampler(zero)(variables(), LABEL, keys(2)), sampler(plain)(variables(), null, keys(2))
    )


def test_a_sample_depends_on_its_own_key_and_condition_alone():
    options = next_scale.Sampling(guidance_scale=2.5, temperature=0.9, top_p=0.9)  # as compiled above
    whole = sampler(options)(variables(), LABEL, keys(2))
    alone = sampler(options)(variables(), {"label": LABEL["label"][1:]}, keys(2)[1:])
    np.testing.assert_array_equal(whole[1:], alone)


def test_sampling_compiles_once_and_calls_the_network_once_a_scale(monkeypatch):
    traced, decoder = [], next_scale.NextScale.decoder

    def counting(self, *args):
        extend, cache = decoder(self, *args)
        return lambda x, scale, cache: traced.append(scale) or extend(x, scale, cache), cache

    monkeypatch.setattr(next_scale.NextScale, "decoder", counting)
    options = next_scale.Sampling()
    sample = jax.jit(lambda variables, cond, keys: METHOD.sample(variables, cond, keys, options).ids)
    for seed in range(2):
        sample(variables(), LABEL, keys(2, seed))
    assert sample._cache_size() == 1
    assert traced == [0, 1, 2] and METHOD.network_calls(options) == 3


def test_tables_biases_and_norms_escape_weight_decay():
    shapes = jax.eval_shape(METHOD.init, jax.random.key(0))["model"]["params"]
    mask = optim.decay_mask(shapes, METHOD.players()["model"])
    for path, decays in jax.tree_util.tree_leaves_with_path(mask):
        assert decays == (path[-1].key == "kernel")


def test_raster_tokens_are_refused():
    spec = TokenSpec("discrete", ((4, 4),), channels=4, vocab_size=9)
    with pytest.raises(ConfigError, match="needs discrete multi-scale tokens"):
        next_scale.build(next_scale.Config(), SIZES, dataclasses.replace(TASK, tokens=spec))
