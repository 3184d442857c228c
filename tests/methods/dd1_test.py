"""Distilled Decoding 1: the map from noise to tokens, the student's calls, and a student trained to the joint law."""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.diffusion import codebook
from jaxar.methods import ar, dd1, next_scale
from jaxar.methods.base import Task
from jaxar.models.one_step import Predictions, RasterStudent
from jaxar.nn.convnet import ConvStack
from jaxar.tokenizers import multiscale_vq, vq
from jaxar.tokenizers._quantizers import L2VQ
from jaxar.tokenizers._quantizers import VQ as PlainVQ
from jaxar.tokenizers.base import ImageSpec, TokenSpec

CLASSES, VOCAB = 2, 3
STACK = ConvStack(4, (1, 1), num_res_blocks=1, groups=2)
IMAGE = ImageSpec(4, 1)
VQ = vq.build(vq.Config(L2VQ(vocab_size=VOCAB, channels=2), latent_channels=4, stack=STACK), IMAGE)
SCALES = multiscale_vq.build(
    multiscale_vq.Config(quantizer=PlainVQ(vocab_size=VOCAB, channels=2), stack=STACK, scales=(1, 2), num_phi=1), IMAGE
)


def noisy(init, seed, size=0.7):
    """Random weights of the shapes of `init`, so that nothing is at its special starting point."""
    shapes = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return tree.unflatten([jnp.asarray(size * rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves])


def with_codes(tokenizer, seed):
    """Variables of the tokenizer's codes and what smooths them; nothing is encoded or decoded here."""
    names = ("codebook", "phi")
    params = noisy(tokenizer.init, seed, 1.0)["params"]
    return {"params": {name: params[name] for name in names if name in params}}


def raster(**config):
    task = Task(IMAGE, CLASSES, VQ.spec, VQ)
    sizes = ar.Model(num_layers=1, width=8, num_heads=1, hidden_multiple=8, dropout=0.0)
    teacher = ar.build(ar.Config(), sizes, task)
    return dd1.build(dd1.Config(**config), dd1.Model(), dataclasses.replace(task, teacher=teacher))


def multiscale(**config):
    task = Task(IMAGE, CLASSES, SCALES.spec, SCALES)
    teacher = next_scale.build(next_scale.Config(), next_scale.Model(num_layers=1, width=8, num_heads=1), task)
    return dd1.build(dd1.Config(**config), dd1.Model(), dataclasses.replace(task, teacher=teacher))


@functools.cache
def parents(kind):
    method = {"raster": raster, "multiscale": multiscale}[kind]()
    return {
        "teacher": noisy(method.teacher.init, 0)["model"],
        "tokenizer": with_codes(method.tokenizer, 1),
    }


GUIDED = lg.Sampling(guidance_scale=1.5, temperature=0.8)


def law(kind, method):
    """The teacher's probabilities of all sequences for label 1 under `GUIDED`, from teacher-forced logits."""
    ids = jnp.array(list(itertools.product(range(VOCAB), repeat=method.num_tokens)))
    teacher, frozen = method.teacher, parents(kind)

    def logits(label):
        labels = jnp.full(len(ids), label)
        if kind == "raster":
            return teacher.network.apply(frozen["teacher"], ids, {"label": labels})
        features = teacher.tokenizer.teacher_input(frozen["tokenizer"], ids)
        return teacher.network.apply(frozen["teacher"], features, labels)

    cond, null = (np.asarray(logits(label), np.float64) for label in (1, CLASSES))
    guided = (null + 1.5 * (cond - null)) / 0.8
    log_probs = guided - np.log(np.exp(guided).sum(-1, keepdims=True))
    return np.exp(np.take_along_axis(log_probs, np.asarray(ids)[..., None], -1).sum((1, 2)))


def p_value(ids, expected):
    cells = np.asarray(ids) @ VOCAB ** np.arange(ids.shape[1])[::-1]
    seen, expected = np.bincount(cells, minlength=len(expected)), expected / expected.sum() * len(cells)
    rare = expected < 5
    pooled = [np.append(x[~rare], x[rare].sum() + 1e-9) for x in (seen, expected)]
    return scipy.stats.chisquare(*pooled, sum_check=False).pvalue


MOSTLY_RASTER = [("raster", raster), pytest.param("multiscale", multiscale, marks=pytest.mark.slow)]


@pytest.mark.parametrize("kind, build", MOSTLY_RASTER)
def test_the_teacher_turns_noise_into_its_own_law(kind, build):
    count = 20_000
    for steps, exact in ((40, True), (2, False)):
        method = build(flow_steps=steps, teacher=GUIDED)
        noise = method.noise(jax.random.split(jax.random.key(3), count))
        ids = jax.jit(method.decide)(parents(kind), noise, jnp.ones(count, jnp.int32))
        assert (p_value(ids, law(kind, method)) > 1e-3) == exact


@pytest.mark.parametrize("kind, build", [("raster", raster), ("multiscale", multiscale)])
def test_a_token_depends_on_earlier_noise_alone(kind, build):
    method, count = build(), 256
    noise = method.noise(jax.random.split(jax.random.key(4), count))
    decide = jax.jit(method.decide)
    labels = jnp.zeros(count, jnp.int32)
    ids = decide(parents(kind), noise, labels)
    position = 2
    other = decide(parents(kind), noise.at[:, position].multiply(-1), labels)
    np.testing.assert_array_equal(other[:, :position], ids[:, :position])
    assert (other[:, position] != ids[:, position]).any()


@pytest.mark.parametrize("kind, build", [("raster", raster), ("multiscale", multiscale)])
def test_a_student_sees_its_own_value_and_earlier_ones(kind, build):
    method = build()
    weights = noisy(method.init, 5)["model"]
    noise = method.noise(jax.random.split(jax.random.key(6), 1))
    known = jnp.zeros(noise.shape[:2], bool)

    labels, codes = jnp.ones(1, jnp.int32), method.tokenizer.codes(parents(kind)["tokenizer"])

    def output(noise):
        return sum(
            jnp.sum(jnp.square(head), -1) for head in method.network.apply(weights, noise, known, labels, codes)
        )[0]

    seen = np.abs(jax.jit(jax.jacrev(output))(noise)[:, 0]).sum(-1) > 0  # [output, input]
    index = np.arange(method.num_tokens)
    if kind == "raster":
        expected = index[:, None] >= index
    else:
        scale = np.repeat(np.arange(2), SCALES.spec.scale_lengths)
        expected = (scale[:, None] > scale) | (index[:, None] == index)
    np.testing.assert_array_equal(seen, expected)


@dataclasses.dataclass(frozen=True, eq=False)
class Oracle:
    """A student that knows the answer, and keeps what it was asked; its values are 0.5 beside the codes."""

    ids: jax.Array
    codes: jax.Array
    asked: list

    channels: int = 2

    def apply(self, variables, values, known, labels, codes):
        self.asked.append((np.asarray(values), np.asarray(known)))
        return Predictions(jax.nn.one_hot(self.ids, VOCAB), self.codes[self.ids] + 0.5)


def test_later_calls_keep_tokens_and_put_the_same_noise_back():
    method = raster(starts=(0, 1, 3))
    ids, codes = jnp.array([[0, 2, 1, 1], [2, 2, 0, 1]]), VQ.codes(parents("raster")["tokenizer"])
    oracle = Oracle(ids, codes, [])
    method = dataclasses.replace(method, network=oracle)
    keys = jax.random.split(jax.random.key(0), 2)
    variables, cond = {**parents("raster"), "model": {}}, {"label": jnp.zeros(2, jnp.int32)}
    tokens = method.sample(variables, cond, keys, dd1.Sampling(3))
    np.testing.assert_array_equal(tokens.ids, ids)
    noise = method.noise(keys)
    assert len(oracle.asked) == method.network_calls(dd1.Sampling(3)) == 3
    for start, (values, known) in zip((0, 1, 3), oracle.asked):
        np.testing.assert_array_equal(known, np.broadcast_to(np.arange(4) < start, (2, 4)))
        np.testing.assert_array_equal(values[:, :start], codes[ids[:, :start]])
        np.testing.assert_array_equal(values[:, start:], noise[:, start:])


def test_tokens_from_the_split_on_stay_values():
    ids, codes = jnp.array([[0, 2, 1, 1]]), VQ.codes(parents("raster")["tokenizer"])
    method = dataclasses.replace(raster(starts=(0, 1)), network=Oracle(ids, codes, []))
    variables, cond = {**parents("raster"), "model": {}}, {"label": jnp.zeros(1, jnp.int32)}
    for split in (1, 3):
        tokens = method.sample(variables, cond, jax.random.split(jax.random.key(0), 1), dd1.Sampling(2, split=split))
        assert tokens.ids is None
        np.testing.assert_array_equal(tokens.latents, codes[ids] + 0.5 * (np.arange(4)[:, None] >= split))


@pytest.mark.parametrize("kind, build", MOSTLY_RASTER)
def test_a_teacher_goes_on_from_given_tokens(kind, build):
    teacher, frozen = build(teacher=GUIDED).teacher, parents(kind)
    variables = {"model": frozen["teacher"], "tokenizer": frozen["tokenizer"]}
    options = {"raster": ar, "multiscale": next_scale}[kind].Sampling(guidance_scale=1.5, unroll=False)
    cond, keys = {"label": jnp.arange(16) % 2}, jax.random.split(jax.random.key(1), 16)
    draw = functools.partial(lg.draw, options=options)
    whole = teacher.roll_out(variables, cond, keys, options, draw)
    given, stop = (2, 3) if kind == "raster" else (1, 5)
    rest = teacher.roll_out(variables, cond, keys, options, draw, whole[:, :given], stop)
    np.testing.assert_array_equal(rest, whole[:, :stop])
    other = teacher.roll_out(variables, cond, keys, options, draw, (whole[:, :given] + 1) % VOCAB, stop)
    assert (other[:, given:] != rest[:, given:]).any()
    assert teacher.roll_out_calls(given, stop) == (1 if kind == "raster" else 2)


@pytest.mark.parametrize("kind, build", [("raster", raster), ("multiscale", multiscale)])
def test_a_student_starts_with_what_it_shares_with_its_teacher(kind, build):
    method = build()
    teacher, fresh = parents(kind)["teacher"]["params"], noisy(method.init, 7)["model"]["params"]
    started = method.warm_start({"model": fresh}, parents(kind))["model"]
    assert jax.tree.structure(started) == jax.tree.structure(fresh)
    new = {"kind_embedding", "value_head", "closeness"} | ({"input_projection"} if kind == "raster" else set())
    for name in started:
        same = jax.tree.map(np.array_equal, started[name], (fresh if name in new else teacher)[name])
        assert all(jax.tree.leaves(same)), name
    assert set(teacher) - set(started) == ({"token_embedding"} if kind == "raster" else set())


@pytest.mark.parametrize(
    "config, match",
    [
        ({"starts": (1, 2)}, r"method.starts=\(1, 2\) must rise from 0"),
        ({"starts": (0, 4)}, r"method.starts=\(0, 4\): 4 is not the start of a token map"),
        ({"flow_steps": 0}, "method.flow_steps=0"),
        ({"value_weight": -1.0}, "method.value_weight=-1.0"),
        ({"teacher": lg.Sampling(greedy=True)}, "method.teacher.greedy=True"),
    ],
)
def test_mistakes_name_the_field(config, match):
    with pytest.raises(ConfigError, match=match):
        raster(**config)
    with pytest.raises(ConfigError, match=r"method.starts=\(0, 2\): 2 is not the start of a token map; use \[0, 1\]"):
        multiscale(starts=(0, 2))
    with pytest.raises(ConfigError, match="needs a class-conditional teacher"):
        dd1.build(dd1.Config(), dd1.Model(), Task(IMAGE, CLASSES, VQ.spec, VQ))


@pytest.mark.parametrize(
    "options, match",
    [
        ({"steps": 0}, "sample.steps=0 must be at least 1"),
        ({"steps": 4}, "sample.steps=4 must be at most 3"),
        ({"temperature": -1.0}, "sample.temperature=-1.0 must be at least 0"),
        ({"steps": 2, "split": 0}, "sample.split=0 must lie in 1..3"),
        ({"split": 4}, "sample.split=4 must lie in 0..3"),
        ({"steps": 2, "resample": (0, 3)}, r"sample.resample=\(0, 3\) must end at .* one of \(1,\)"),
        ({"steps": 3, "resample": (3, 3)}, r"sample.resample=\(3, 3\) .* begin before it"),
        ({"resample": (0, 1)}, r"one of \(\) with sample.steps=1"),
    ],
)
def test_sampling_options_that_do_not_fit_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        raster(starts=(0, 1, 3)).network_calls(dd1.Sampling(**options))


@dataclasses.dataclass(frozen=True)
class Pair:
    """An enumerated teacher of two tokens, which agree with probability 0.95."""

    def roll_out(self, variables, cond, keys, options, draw, given=None, stop=2):
        first = draw(jnp.zeros((len(cond["label"]), 1, 2)), keys, jnp.array([0])) if given is None else given
        agree = jnp.log(jnp.where(jnp.arange(2) == first, 0.95, 0.05))
        return jnp.concatenate([first, draw(agree[:, None], keys, jnp.array([1]))], axis=1)[:, :stop]

    def roll_out_calls(self, given, stop):
        return stop - given


@dataclasses.dataclass(frozen=True)
class Line:
    """A tokenizer of two tokens with the codes -1 and 1."""

    spec: TokenSpec = TokenSpec("discrete", ((1, 2),), 1, 2)  # noqa: RUF009 - frozen

    def codes(self, variables):
        return jnp.array([[-1.0], [1.0]])


def distance(ids):
    """Total variation between the pairs of ids and their law."""
    seen = np.bincount(np.asarray(ids) @ [2, 1], minlength=4) / len(ids)
    return 0.5 * np.abs(seen - [0.475, 0.025, 0.025, 0.475]).sum()


@dataclasses.dataclass(frozen=True)
class Exact:
    """The map itself as a student: it goes on with the flow from the tokens that it is given."""

    channels: int = 1
    astray: bool = False  # in its first call, where nothing is known: all tokens 0

    def apply(self, variables, values, known, labels, codes):
        log_probs = jnp.log(jnp.array([[0.95, 0.05], [0.05, 0.95]]))
        ids = []
        for i in range(2):
            law = log_probs[ids[0]] if ids else jnp.zeros((len(labels), 2))
            flown = codebook.codes_of_noise(values[:, i], codes, law, 50)
            ids.append(jnp.where(known[:, i], (values[:, i, 0] > 0).astype(jnp.int32), flown))
        ids = jnp.stack(ids, axis=1)
        ids = jnp.where(self.astray & ~known.any(axis=1, keepdims=True), 0, ids)
        return Predictions(jax.nn.one_hot(ids, 2), codes[ids])


def sampled(method, options):
    keys, cond = jax.random.split(jax.random.key(2), 20_000), {"label": jnp.zeros(20_000, jnp.int32)}
    variables = {"model": {}, "teacher": {}, "tokenizer": {}}
    return jax.jit(method.sample, static_argnums=3)(variables, cond, keys, options).ids


def test_the_exact_map_gives_the_same_in_one_and_two_calls():
    method = dd1.DD1(Exact(), dd1.Config(starts=(0, 1)), Pair(), ar.Sampling(), Line())
    once = sampled(method, dd1.Sampling())
    np.testing.assert_array_equal(sampled(method, dd1.Sampling(2)), once)
    assert distance(once) < 0.015


def test_the_teacher_corrects_what_it_draws_anew():
    method = dd1.DD1(Exact(astray=True), dd1.Config(starts=(0, 1)), Pair(), ar.Sampling(), Line())
    assert distance(sampled(method, dd1.Sampling(2))) > 0.4
    options = dd1.Sampling(2, resample=(0, 1))
    assert distance(sampled(method, options)) < 0.015
    assert method.network_calls(options) == 3


@dataclasses.dataclass(frozen=True)
class Unsure:
    """A student that gives every token the second code with probability 0.8."""

    channels: int = 1

    def apply(self, variables, values, known, labels, codes):
        return Predictions(jnp.broadcast_to(jnp.log(jnp.array([0.2, 0.8])), (*known.shape, 2)), codes[None, :2])


def test_a_temperature_draws_from_the_first_head():
    method = dd1.DD1(Unsure(), dd1.Config(), Pair(), ar.Sampling(), Line())
    assert (sampled(method, dd1.Sampling()) == 1).all()
    for temperature, share in ((1.0, 0.8), (0.5, 0.64 / 0.68)):
        ids = np.asarray(sampled(method, dd1.Sampling(temperature=temperature)))
        both = [np.mean(ids[:, 0]), np.mean(ids[:, 1]), np.sqrt(np.mean(ids.prod(axis=1)))]
        np.testing.assert_allclose(both, share, atol=0.015)


@pytest.mark.slow
def test_one_call_draws_from_the_joint_law_of_two_tokens():
    sizes = ar.Model(num_layers=2, width=32, num_heads=2, hidden_multiple=8, dropout=0.0)
    network = RasterStudent(sizes, 2, (1, 2), num_classes=1, channels=1)
    method = dd1.DD1(network, dd1.Config(), Pair(), ar.Sampling(), Line())
    frozen = {"teacher": {}, "tokenizer": {}}
    weights = nn.meta.unbox(method.init(jax.random.key(0)))["model"]
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 600))

    @jax.jit
    def train(carry, key):
        weights, moments = carry
        batch = {"label": jnp.zeros(512, jnp.int32)}
        grads = jax.grad(lambda w: method.loss({**frozen, "model": w}, batch, key, jnp.int32(0))[0])(weights)
        change, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(weights, change), moments), None

    keys = jax.random.split(jax.random.key(1), 600)
    (weights, _), _ = jax.lax.scan(train, (weights, optimizer.init(weights)), keys)
    keys, cond = jax.random.split(jax.random.key(2), 20_000), {"label": jnp.zeros(20_000, jnp.int32)}
    ids = jax.jit(method.sample, static_argnums=3)({**frozen, "model": weights}, cond, keys, dd1.Sampling()).ids
    assert distance(ids) < 0.03
    apart = np.stack([ids[:, 0], np.roll(ids[:, 1], 1)], axis=1)  # the same tokens, drawn independently
    assert distance(apart) > 0.4
