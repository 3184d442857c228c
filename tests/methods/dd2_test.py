"""Distilled Decoding 2: laws and denoisers of the teacher, the generator's loss, and one trained to a joint law."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar import state
from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.diffusion import token_scores
from jaxar.methods import ar, dd2, next_scale
from jaxar.methods.base import Task
from jaxar.models import diffusion_head
from jaxar.models.token_denoiser import Outputs, RasterDenoiser
from jaxar.nn import quantize
from jaxar.nn.convnet import ConvStack
from jaxar.tokenizers import multiscale_vq, vq
from jaxar.tokenizers._quantizers import L2VQ
from jaxar.tokenizers._quantizers import VQ as PlainVQ
from jaxar.tokenizers.base import ImageSpec, TokenSpec
from tests import toys

CLASSES, VOCAB, BATCH = 2, 3, 2
STACK = ConvStack(4, (1, 1), num_res_blocks=1, groups=2)
IMAGE = ImageSpec(4, 1)
VQ = vq.build(vq.Config(L2VQ(vocab_size=VOCAB, channels=2), latent_channels=4, stack=STACK), IMAGE)
SCALES = multiscale_vq.build(
    multiscale_vq.Config(quantizer=PlainVQ(vocab_size=VOCAB, channels=2), stack=STACK, scales=(1, 2), num_phi=1), IMAGE
)
GUIDED = lg.Sampling(guidance_scale=1.5, guidance_schedule="linear", temperature=0.8, top_k=2)
HEAD = diffusion_head.Sizes(1, 8)
MODEL = dd2.Model(HEAD)
KINDS = ("raster", "multiscale")


def noisy(init, seed, size=0.7):
    """Random weights of the shapes of `init`, so that nothing is at its special starting point."""
    shapes = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return tree.unflatten([jnp.asarray(size * rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves])


@functools.cache
def built(kind, mixture=None, **config):
    """By default one kind is a mixture, so that tests see both."""
    tokenizer = VQ if kind == "raster" else SCALES
    task = Task(IMAGE, CLASSES, tokenizer.spec, tokenizer)
    if kind == "raster":
        sizes = ar.Model(num_layers=1, width=8, num_heads=1, hidden_multiple=8, dropout=0.0)
        teacher = ar.build(ar.Config(), sizes, task)
    else:
        teacher = next_scale.build(next_scale.Config(), next_scale.Model(num_layers=1, width=8, num_heads=1), task)
    model = dd2.Model(HEAD, kind == "multiscale" if mixture is None else mixture)
    return dd2.build(dd2.Config(**config), model, dataclasses.replace(task, teacher=teacher))


@functools.cache
def variables(kind):
    method = built(kind)
    tokenizer = noisy(method.tokenizer.init, 1, 1.0)["params"]
    kept = {name: tokenizer[name] for name in ("codebook", "phi") if name in tokenizer}
    teacher = noisy(method.teacher.init, 0)["model"]
    return {**noisy(method.init, 2), "teacher": teacher, "tokenizer": {"params": kept}}


def labels(count=BATCH):
    return jnp.ones(count, jnp.int32)


def noise_of(method, seed, count=BATCH):
    return method.noise(jax.random.split(jax.random.key(seed), count))


@pytest.mark.parametrize("kind", KINDS)
def test_the_laws_of_given_tokens_are_those_that_sampling_draws_from(kind):
    method, known = built(kind, teacher=GUIDED), variables(kind)
    ids = jnp.array([[0, 2, 1, 1, 2]])[:, : method.tokenizer.spec.num_tokens]
    parents = {"model": known["teacher"], "tokenizer": known["tokenizer"]}
    seen = {}

    def force(logits, keys, positions):
        jax.debug.callback(lambda p, x: seen.update(zip(p.tolist(), x[0])), positions, logits, ordered=True)
        return ids[:, positions]

    cheap = {"segments": 1, "unroll": False} if kind == "raster" else {}
    options, cond = dataclasses.replace(method.options, **cheap), {"label": labels(1)}
    jax.block_until_ready(jax.jit(lambda p: method.teacher.roll_out(p, cond, None, options, force))(parents))
    jax.effects_barrier()
    expected = np.stack([lg.filtered(jnp.asarray(seen[i]), options) for i in range(ids.shape[1])])
    laws = jax.jit(lambda p: method.teacher.log_laws(p, ids, cond, options))(parents)
    np.testing.assert_allclose(laws[0], expected, rtol=1e-4, atol=1e-4)
    assert np.isinf(expected).any()


def sees(function, values):
    """Which of the values [b n e] of the first sample each token of function(values) [b n] depends on."""
    return np.abs(jax.jit(jax.jacrev(lambda v: function(v)[0]))(values)[:, 0]).sum(-1) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_depends_on_its_own_noise_and_earlier_ones(kind):
    method, known = built(kind), variables(kind)
    seen = sees(lambda noise: method.generate(known, noise, labels()).sum(-1), noise_of(method, 0))
    index = np.arange(method.tokenizer.spec.num_tokens)
    if kind == "raster":
        expected = index[:, None] >= index
    else:
        scale = np.repeat(np.arange(2), SCALES.spec.scale_lengths)
        expected = (scale[:, None] > scale) | (index[:, None] == index)
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_reaches_the_tokens_that_are_given(kind):
    """And teacher and score know them by their nearest codes alone."""
    method, known = built(kind), variables(kind)
    values = noise_of(method, 3)
    draws = token_scores.draw(jax.random.key(4), 1, values.shape, (0.3, 0.6))

    @jax.jit
    def differences(values, given):
        teacher, score, _, _ = method.denoisers(known, given, labels())
        x = token_scores.noised(values, draws)
        return jnp.sum(teacher(x, draws.t) - score(x, draws.t), axis=(0, 3))

    own = np.eye(values.shape[1], dtype=bool)
    np.testing.assert_array_equal(sees(lambda v: differences(v, v), values), own)
    codes = method.codes(known)
    same = codes[quantize.nearest(values, codes)]
    np.testing.assert_array_equal(differences(values, values), differences(values, same))
    assert not np.array_equal(differences(values, values)[:, -1], differences(values, -values)[:, -1])


def test_codes_have_unit_size():
    known = variables("multiscale")
    codes, own = built("multiscale").codes(known), SCALES.codes(known["tokenizer"])
    np.testing.assert_allclose(jnp.mean(codes**2), 1, rtol=1e-5)
    np.testing.assert_allclose(codes / codes[0, 0], own / own[0, 0], rtol=1e-4)


@dataclasses.dataclass(frozen=True)
class Codes:
    """A tokenizer of `length` tokens out of these codes."""

    rows: tuple[tuple[float, ...], ...]
    length: int

    @property
    def spec(self):
        return TokenSpec("discrete", ((1, self.length),), len(self.rows[0]), len(self.rows))

    def codes(self, variables):
        return jnp.array(self.rows)


@dataclasses.dataclass(frozen=True)
class Independent:
    """An enumerated teacher: one law for all tokens."""

    probs: tuple[float, ...]

    def log_laws(self, variables, ids, cond, options):
        return jnp.broadcast_to(jnp.log(jnp.array(self.probs)), (*ids.shape, len(self.probs)))


def enumerated(teacher, tokenizer, width=16, mixture=False, **config):
    sizes = ar.Model(num_layers=1, width=width, num_heads=1, hidden_multiple=8, dropout=0.0)
    spec = tokenizer.spec
    network = RasterDenoiser(
        sizes,
        spec.vocab_size,
        spec.grid,
        1,
        channels=spec.channels,
        head_sizes=diffusion_head.Sizes(1, width),
        mixture=mixture,
    )
    return dd2.DD2(network, dd2.Config(**config), teacher, ar.Sampling(), tokenizer)


def test_with_one_token_the_loss_is_score_identity_distillation_of_a_dirac_mixture():
    """That loss, written with scores: w (t^2 / (1 - t))^2 d . (s_T - s(x | q) - alpha d), with d = s_T - s_S."""
    rows, probs = ((1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)), (0.1, 0.2, 0.3, 0.4)
    method = enumerated(Independent(probs), Codes(rows, 1), 8, alpha=1.2, times=(0.3, 0.8))
    known = {**noisy(method.init, 0), "teacher": {}, "tokenizer": {}}
    batch, key = {"label": jnp.zeros(16, jnp.int32)}, jax.random.key(1)

    def log_density(x, t):
        distances = jnp.sum((x - (1 - t) * jnp.array(rows)) ** 2, axis=-1)
        return jax.nn.logsumexp(jnp.log(jnp.array(probs)) - distances / (2 * t**2))

    def reference(generator):
        q, (t, noise) = method._make({"generator": generator}, batch["label"], key)
        ids, t = jnp.zeros((16, 1), jnp.int32), t[..., None]
        x = (1 - t) * q + t * noise
        velocity, _ = method.network.apply(known["score"], ids, batch["label"], x, t[..., 0], method="after_tokens")
        fake = -(x + (1 - t) * velocity) / t
        real = jax.vmap(jax.vmap(jax.vmap(jax.grad(log_density))))(x, t)
        own = ((1 - t) * q - x) / t**2
        distance = jnp.mean(jnp.abs(real - own) * t**2 / (1 - t), axis=(2, 3), keepdims=True)
        scale = (t**2 / (1 - t)) ** 2 / jax.lax.stop_gradient(distance)
        return jnp.mean(scale * (real - fake) * (real - own - 1.2 * (real - fake)))

    def loss(generator):
        return method.generator_loss({**known, "generator": generator}, batch, key, jnp.int32(0))[0]

    got, want = (jax.jit(jax.value_and_grad(f))(known["generator"]) for f in (loss, reference))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-3)
    for a, b in zip(*map(jax.tree.leaves, (got[1], want[1]))):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3 * float(jnp.abs(b).max()))


@dataclasses.dataclass(frozen=True)
class Exact:
    """In place of the score: the velocity of the closed form, or one that is wrong by a factor."""

    rows: tuple[tuple[float, ...], ...]
    probs: tuple[float, ...]
    factor: float = 1.0

    def apply(self, variables, ids, labels, x, t, method):
        fit = -jnp.sum((x[..., None, :] - (1 - t)[..., None, None] * jnp.array(self.rows)) ** 2, axis=-1)
        weights = jax.nn.softmax(jnp.log(jnp.array(self.probs)) + fit / (2 * t[..., None] ** 2))
        return Outputs(self.factor * (x - weights @ jnp.array(self.rows)) / t[..., None], None)


def test_the_first_stage_teaches_the_closed_form():
    rows, probs = ((1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)), (0.1, 0.2, 0.3, 0.4)
    method = enumerated(Independent(probs), Codes(rows, 3), 8)
    batch = {"label": jnp.zeros(64, jnp.int32), "ids": jnp.zeros((64, 3), jnp.int32)}
    known = {"teacher": {}, "tokenizer": {}, "score": {}}

    def loss(network):
        learns = dataclasses.replace(method, network=network)
        return float(learns.ground_truth_score_loss(known, batch, jax.random.key(0), jnp.int32(0))[0])

    assert loss(Exact(rows, probs)) < 1e-8
    for wrong in (Exact(rows, probs, factor=-1.0), Exact(rows, probs, factor=1.1), Exact(rows, probs[::-1])):
        assert loss(wrong) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_starts_as_its_teacher(kind):
    """Without guidance and filters D_S is D_T before any training, where the published head knows nothing."""

    def gap(mixture):
        method = built(kind, mixture)
        known = variables(kind)
        fresh = {name: v["params"] for name, v in nn.meta.unbox(method.init(jax.random.key(0))).items()}
        known = {**known, **{name: {"params": p} for name, p in method.warm_start(fresh, known).items()}}
        values = noise_of(method, 3)
        draws = token_scores.draw(jax.random.key(4), 2, values.shape, (0.1, 0.9))
        x = token_scores.noised(values, draws)
        teacher, score, _, _ = method.denoisers(known, values, labels())
        return np.abs(jax.jit(lambda: teacher(x, draws.t) - score(x, draws.t))()).max()

    assert gap(True) < 1e-5
    assert gap(False) > 0.1


@dataclasses.dataclass(frozen=True)
class Opinion:
    """In place of the generator: a law and a velocity, whatever comes before."""

    probs: tuple[float, ...]

    def apply(self, variables, before, labels, x, t, method):
        laws = jnp.log(jnp.array(self.probs))
        return Outputs(0.5 * x, jnp.broadcast_to(laws, (*before.shape[:2], len(self.probs))))


@pytest.mark.parametrize("call", [1.0, 0.4])
def test_the_generator_denoises_noise_of_the_time_of_its_call(call):
    rows, probs = ((1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)), (0.1, 0.2, 0.3, 0.4)
    method = enumerated(Independent(probs), Codes(rows, 3), 8, call=call)
    method = dataclasses.replace(method, network=Opinion(probs))
    noise = noise_of(method, 0)
    made = method.generate({"generator": {}, "tokenizer": {}}, noise, labels())
    codes = jnp.array(rows)
    density = jnp.exp(-jnp.sum((call * noise[..., None, :] - (1 - call) * codes) ** 2, axis=-1) / (2 * call**2))
    law = jnp.array(probs) * density
    expected = law @ codes / law.sum(-1, keepdims=True) - call * 0.5 * call * noise
    np.testing.assert_allclose(made, expected, atol=1e-5)


class Idle:
    """A generator that hands on its noise, and a score without opinion."""

    def apply(self, variables, before, labels, x, t, method):
        return Outputs(jnp.zeros_like(x), None)


def test_tokens_that_the_teacher_excludes_are_counted_apart():
    method = enumerated(Independent((0.5, 0.5, 0.0, 0.0)), Codes(((1.0,), (-1.0,), (3.0,), (-3.0,)), 4), 8)
    method = dataclasses.replace(method, network=Idle())
    known = {"generator": {}, "score": {}, "teacher": {}, "tokenizer": {}}
    figures = method.evaluate(known, {"label": jnp.zeros(64, jnp.int32)}, jax.random.key(1))
    assert 0 < figures["impossible"].mean() < 1
    rows = figures["teacher_bits"][figures["impossible"] < 1]
    np.testing.assert_allclose(rows, 1.0, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_players_start_with_what_they_share_and_the_generator_as_the_score(kind):
    method, known = built(kind), variables(kind)
    fresh = {name: known[name]["params"] for name in method.players()}
    started = method.warm_start(fresh, known)
    own = {"velocity_head"} | ({"noise_projection"} if kind == "raster" else set())
    assert ("head" in fresh["score"]) == (kind == "multiscale")
    for player, params in started.items():
        assert set(params) == set(fresh[player])
        for name in params:
            origin = fresh[player] if name in own else known["teacher"]["params"]
            assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params[name], origin[name]))), (player, name)
    guard = state.Guard(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))
    begun = state.TrainState(
        jnp.int32(0),
        {n: state.PlayerState(p, {}, {}, {"0.5": p}, guard, jnp.int32(0)) for n, p in fresh.items()},
    )
    assert [stage.enter for stage in method.stages()] == [None, dd2.start_generator]
    entered = dd2.start_generator(begun).players
    for name, part in entered["generator"].params.items():
        source = begun.players["generator" if name == "noise_projection" else "score"].params[name]
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, part, source))), name
    assert entered["generator"].emas["0.5"] is entered["generator"].params
    assert entered["score"] is begun.players["score"]


def test_stages_and_ratios():
    method = built("raster", init_steps=3, generator_every=2)
    assert [method.active(step) for step in (2, 3, 4)] == [("ground_truth_score",), ("score",), ("score", "generator")]
    assert built("raster", init_steps=0).active(0) == ("score", "generator")
    assert method.network_calls(dd2.Sampling()) == 1


@pytest.mark.parametrize(
    "config, match",
    [
        ({"init_steps": -1}, "method.init_steps=-1"),
        ({"generator_every": 0}, "method.generator_every=0"),
        ({"draws": 0}, "method.draws=0"),
        ({"times": (0.0, 1.0)}, "method.times="),
        ({"call": 0.0}, "method.call=0.0"),
        ({"teacher": lg.Sampling(greedy=True)}, "method.teacher.greedy=True"),
    ],
)
def test_mistakes_name_the_field(config, match):
    with pytest.raises(ConfigError, match=match):
        dd2.Config(**config)


def test_another_teacher_is_refused():
    with pytest.raises(ConfigError, match="needs a class-conditional teacher"):
        dd2.build(dd2.Config(), MODEL, Task(IMAGE, CLASSES, VQ.spec, VQ))


@dataclasses.dataclass(frozen=True)
class Pair:
    """An enumerated teacher of two tokens, which agree with probability 0.95."""

    def log_laws(self, variables, ids, cond, options):
        second = jnp.log(jnp.where(jnp.arange(2) == ids[:, :1], 0.95, 0.05))
        return jnp.stack([jnp.full_like(second, jnp.log(0.5)), second], axis=1)


def distance(ids):
    """Total variation between pairs of ids and their law."""
    seen = np.bincount(np.asarray(ids) @ [2, 1], minlength=4) / len(ids)
    return 0.5 * np.abs(seen - [0.475, 0.025, 0.025, 0.475]).sum()


def distilled(method, iterations, section, batch_size):
    """The averaged generator after the second stage, in which every iteration is `generator_every` steps."""
    batch, frozen = {"label": jnp.zeros(batch_size, jnp.int32)}, {"teacher": {}, "tokenizer": {}}
    _, trained = toys.alternated(method, section, frozen, lambda key: batch, iterations)
    return {"generator": {"params": trained.players["generator"].emas["0.99"]}, **frozen}


OPTIM = {"learning_rate": 2e-3, "weight_decay": 0.0, "ema": (0.99,), "schedule": {"name": "cosine", "warmup_steps": 50}}
OURS = {"mixture": True, "call": 0.6}


@pytest.mark.slow
@pytest.mark.parametrize("ours, iterations", [({}, 500), (OURS, 2000)], ids=["published", "mixture"])
def test_one_call_draws_a_token_from_its_law(ours, iterations):
    rows, probs = ((1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)), (0.1, 0.2, 0.3, 0.4)
    method = enumerated(Independent(probs), Codes(rows, 1), 32, init_steps=0, **ours)
    keys, cond = jax.random.split(jax.random.key(2), 20_000), {"label": jnp.zeros(20_000, jnp.int32)}

    def off(variables):
        ids = jax.jit(method.sample, static_argnums=3)(variables, cond, keys, dd2.Sampling()).ids
        return 0.5 * np.abs(np.bincount(np.asarray(ids)[:, 0], minlength=4) / len(keys) - probs).sum()

    assert off(distilled(method, iterations, OPTIM, 256)) < 0.03
    assert off({**nn.meta.unbox(method.init(jax.random.key(0))), "teacher": {}, "tokenizer": {}}) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("ours", [{}, OURS], ids=["published", "mixture"])
def test_one_call_draws_from_the_joint_law_of_two_tokens(ours):
    method = enumerated(Pair(), Codes(((-1.0,), (1.0,)), 2), 32, init_steps=0, **ours)
    trained = distilled(method, 500, OPTIM, 256)
    keys, cond = jax.random.split(jax.random.key(2), 20_000), {"label": jnp.zeros(20_000, jnp.int32)}
    ids = jax.jit(method.sample, static_argnums=3)(trained, cond, keys, dd2.Sampling()).ids
    apart = np.stack([ids[:, 0], np.roll(ids[:, 1], 1)], axis=1)  # the same tokens, drawn independently
    assert distance(ids) < 0.03
    assert distance(apart) > 0.4
