"""Quantizers on codebooks that can be enumerated, and the two tokenizers with each kind of them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.nn import quantize
from jaxar.tokenizers import _quantizers as q
from jaxar.tokenizers import base
from jaxar.tokenizers._quantizers import _bits
from jaxar.tokenizers._quantizers.base import distances
from jaxar.tokenizers.base import ImageSpec

FSQ, LFQ, BSQ = q.FSQ(levels=(5, 4, 3)), q.LFQ(channels=6, group=6), q.BSQ(channels=6, group=6)
SIMVQ = q.SimVQ(vocab_size=20, channels=4)
ALL = (q.VQ(vocab_size=20, channels=4), q.L2VQ(vocab_size=20, channels=4), SIMVQ, FSQ, LFQ, BSQ)
Z = jnp.asarray(np.random.default_rng(0).normal(size=(50, 6)), jnp.float32)
BARE = {"params": {}}


@functools.cache
def variables(quantizer):
    return nn.meta.unbox(jax.jit(quantizer.init)(jax.random.key(0)))


@functools.cache
def enumerated(quantizer):
    """All codes, in the order of their ids."""
    return jax.jit(quantizer.codes)(variables(quantizer), jnp.arange(quantizer.vocab_size))


@pytest.mark.parametrize("quantizer", ALL, ids=lambda quantizer: quantizer.name)
def test_every_id_is_chosen_for_its_own_code(quantizer):
    codes = enumerated(quantizer)
    assert codes.shape == (quantizer.vocab_size, quantizer.channels)
    ids = jax.jit(quantizer.choose)(variables(quantizer), codes)
    assert ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, np.arange(quantizer.vocab_size))


@pytest.mark.parametrize("quantizer", ALL, ids=lambda quantizer: quantizer.name)
def test_the_nearest_code_is_chosen(quantizer):
    @jax.jit
    def choose(z):
        bounded = quantizer.bound(z)
        return bounded, quantizer.choose(variables(quantizer), bounded)

    bounded, ids = (np.asarray(x) for x in choose(3 * Z[:, : quantizer.channels]))
    distance = ((bounded[:, None] - np.asarray(enumerated(quantizer))) ** 2).sum(axis=-1)
    np.testing.assert_array_equal(ids, distance.argmin(axis=1))


def test_fsq_has_the_levels_it_says_and_no_others():
    z = jnp.linspace(-12, 12, 2001)[:, None] * jnp.ones(3)
    bounded, codes = jax.jit(lambda z: (FSQ.bound(z), FSQ.codes(BARE, FSQ.choose(BARE, FSQ.bound(z)))))(z)
    expected = ([-1, -0.5, 0, 0.5, 1], [-1, -0.5, 0, 0.5], [-1, 0, 1])
    for channel, levels in enumerate(expected):
        np.testing.assert_array_equal(np.unique(codes[:, channel]), levels)
    np.testing.assert_array_equal(codes[1000], 0)  # z = 0
    assert np.all(np.diff(bounded, axis=0) > -1e-5)
    np.testing.assert_allclose(bounded[-1], [2.002 / 2, (1.5015 - 0.5) / 2, 1.001], atol=1e-5)
    np.testing.assert_allclose(bounded[0], [-2.002 / 2, (-1.5015 - 0.5) / 2, -1.001], atol=1e-5)


def test_fsq_counts_the_first_channel_fastest():
    some = {0: [-1, -1, -1], 1: [-0.5, -1, -1], 5: [-1, -0.5, -1], 59: [1, 0.5, 1]}
    np.testing.assert_array_equal(np.asarray(enumerated(FSQ))[list(some)], list(some.values()))


def test_lfq_and_bsq_count_bits_from_the_lowest():
    np.testing.assert_array_equal(enumerated(LFQ)[5], [1, -1, 1, -1, -1, -1])
    np.testing.assert_allclose(enumerated(BSQ)[5], np.array([1, -1, 1, -1, -1, -1]) / np.sqrt(6), rtol=1e-6)
    np.testing.assert_array_equal(jax.jit(LFQ.choose)(BARE, jnp.zeros((1, 6))), 0)  # 0 is negative


def test_bsq_stays_within_its_bound():
    u = np.asarray(quantize.l2_normalize(Z))
    error = np.linalg.norm(u - np.sign(u) / np.sqrt(6), axis=1)
    found = np.asarray(jax.jit(lambda u: BSQ.codes(BARE, BSQ.choose(BARE, BSQ.bound(u))))(Z))
    np.testing.assert_allclose(np.linalg.norm(u - found, axis=1), error, rtol=1e-4)
    assert error.max() <= np.sqrt(2 - 2 / np.sqrt(6))


def softmax_entropies(scores):
    """Of each row's law and of their mean, by enumeration in float64."""
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    entropy = lambda p: -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1)  # noqa: E731
    return entropy(p).mean(), entropy(p.mean(axis=0))


def test_entropies_of_bits_are_those_of_the_enumerated_codes():
    z = np.asarray(0.02 * Z, np.float64)
    lfq = q.LFQ(channels=6, group=6, temperature=0.05, entropy_weight=0.3, diversity=2.0)
    codes = np.asarray(enumerated(LFQ), np.float64)
    sample, codebook = softmax_entropies(-((z[:, None] - codes) ** 2).sum(axis=-1) / 0.05)
    found = jax.jit(lfq.entropy_terms)(BARE, jnp.asarray(z, jnp.float32))["entropy_loss"]
    np.testing.assert_allclose(found, 0.3 * (sample - 2 * codebook), rtol=1e-5)
    assert sample > 0.1 and codebook > sample + 0.05

    bsq = q.BSQ(channels=6, group=6, sharpness=4.0, entropy_weight=0.3, diversity=2.0)
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    sample, codebook = softmax_entropies(2 * 4.0 * u @ codes.T / np.sqrt(6))
    found = jax.jit(bsq.entropy_terms)(BARE, jnp.asarray(u, jnp.float32))["entropy_loss"]
    np.testing.assert_allclose(found, 0.3 * (sample - 2 * codebook) / 4.0, rtol=1e-5)


def test_entropies_of_certain_bits_have_a_finite_gradient():
    """Most codes then have probability 0, where the slope of the entropy is infinite."""
    gradient = jax.jit(jax.grad(lambda logits: sum(_bits.entropies(logits, 2))))(jnp.full((3, 4), 300.0))
    assert jnp.all(jnp.isfinite(gradient))


def test_groups_of_bits_bound_the_entropy_of_all_codes_and_leave_that_of_a_sample():
    logits = jnp.concatenate([Z, -Z[:, ::-1]])
    one, two, bits = (jax.jit(functools.partial(_bits.entropies, group=g))(logits) for g in (6, 3, 1))
    np.testing.assert_allclose([two.sample, bits.sample], one.sample, rtol=1e-5)
    assert one.codebook < two.codebook < bits.codebook <= 6 * np.log(2) + 1e-6
    halves = [softmax_entropies(np.asarray(logits[:, part], np.float64) @ (_codes3() / 2).T)[1] for part in PARTS]
    np.testing.assert_allclose(two.codebook, sum(halves), rtol=1e-5)


PARTS = (slice(0, 3), slice(3, 6))


def _codes3():
    return np.array([[2 * (i >> k & 1) - 1 for k in range(3)] for i in range(8)])


def test_simvq_with_the_identity_is_a_codebook():
    fixed = variables(SIMVQ)["fixed"]["codebook"]
    identity = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
    plain = {"params": {"codebook": fixed}}
    simple = {"params": {"projection": identity}, "fixed": {"codebook": fixed}}
    vq = q.VQ(vocab_size=20, channels=4)
    chosen = [jax.jit(c.choose)(v, Z[:, :4]) for c, v in ((SIMVQ, simple), (vq, plain))]
    np.testing.assert_array_equal(*chosen)
    np.testing.assert_array_equal(SIMVQ.codebook(simple), vq.codebook(plain))


def test_simvq_moves_all_codes_through_its_map_alone():
    start = variables(SIMVQ)
    assert set(start["params"]) == {"projection"} and set(start["fixed"]) == {"codebook"}

    @jax.jit
    def gradient(params):
        def loss(params):
            own = {**start, "params": params}
            codes = SIMVQ.codes(own, SIMVQ.choose(own, Z[:, :4]))
            return sum(distances(SIMVQ, Z[:, :4], codes).values())

        return jax.grad(loss)(params)

    moved = jax.tree.map(lambda p, g: p - 0.1 * g, start["params"], gradient(start["params"]))
    before, after = SIMVQ.codebook(start), SIMVQ.codebook({**start, "params": moved})
    assert jnp.all(jnp.abs(after - before).max(axis=1) > 1e-4)
    kernel, bias = moved["projection"]["kernel"], moved["projection"]["bias"]
    np.testing.assert_allclose(after, start["fixed"]["codebook"] @ kernel + bias, atol=1e-6)


def test_distances_are_weighted_and_pull_each_side():
    z, codes = jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 0.0]])
    swapped = q.SimVQ(vocab_size=2, channels=2, codebook_weight=0.25, beta=1.0)
    terms = jax.jit(lambda z, codes: distances(swapped, z, codes))(z, codes)
    np.testing.assert_allclose([terms["codebook_loss"], terms["commitment_loss"]], [0.25 * 2.5, 2.5])
    pulls = jax.jit(jax.grad(lambda z, c: sum(distances(swapped, z, c).values()), argnums=(0, 1)))(z, codes)
    np.testing.assert_allclose(pulls[0], [[1.0, 2.0]])
    np.testing.assert_allclose(pulls[1], [[-0.25, -0.5]])
    assert distances(FSQ, z, codes) == {}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: q.FSQ(levels=(8, 1)), "levels=(8, 1) must be at least 2"),
        (lambda: q.LFQ(channels=31, group=1), "channels=31 must lie in 1..30"),
        (lambda: q.BSQ(channels=8, group=3), "group=3 must divide tokenizer.quantizer.channels=8"),
        (lambda: q.LFQ(temperature=0.0), "temperature=0.0 must be positive"),
        (lambda: q.SimVQ(vocab_size=0), "vocab_size=0 must be at least 1"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert message in str(error.value)


STACK = {"channels": 4, "multipliers": (1,), "num_res_blocks": 1, "groups": 2}
STACK |= {"level_attention": False, "mid_attention": False}
CASES = {
    "fsq": ("vq", {"quantizer": {"name": "fsq", "levels": (5, 4)}, "latent_channels": 4}),
    "simvq": ("vq", {"quantizer": {"name": "simvq", "vocab_size": 9, "channels": 3}, "network": "magvit2"}),
    "multiscale": (
        "multiscale_vq",
        {"quantizer": {"name": "bsq", "channels": 4, "group": 2, "sharpness": 2.0}, "scales": (1, 2)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_tokenizers_train_and_decode_with_any_quantizer(name, random_variables):
    kind, options = CASES[name]
    tokenizer = base.build(kind, {"stack": STACK, **options}, ImageSpec(2, 1))
    variables = random_variables(tokenizer.init)
    images = jax.random.uniform(jax.random.key(1), (3, 2, 2, 1), minval=-1)

    @jax.jit
    def run(params):
        def values(params):
            result = tokenizer.reconstruct({**variables, "params": params}, images, None, train=True)
            return (jnp.sum(result.images**2), result.loss), result

        _, pullback, result = jax.vjp(values, params, has_aux=True)
        gradients = pullback((1.0, 0.0))[0], pullback((0.0, 1.0))[0]
        own = {**variables, "params": params}
        return result, gradients, tokenizer.decode(own, tokenizer.encode(own, images))

    result, (of_pixels, of_loss), decoded = run(variables["params"])
    np.testing.assert_allclose(decoded, jnp.clip(result.images, -1, 1), atol=1e-5)
    size = lambda tree: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(tree))  # noqa: E731
    assert size(of_pixels["encoder"]) > 0  # straight through the quantizer
    assert (size(of_loss["encoder"]) > 0) == (name != "fsq") and size(of_loss["decoder"]) == 0
    assert set(result.collections) == {"code_use"} and set(result.collections["code_use"]) == {"frequencies"}
    assert tokenizer.project(variables["params"], result.collections, None) == (variables["params"], result.collections)
