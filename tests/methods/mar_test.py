"""MAR's law on Gaussian data with exact conditionals, its training masks and losses, annealing, completion."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from jaxar import flops
from jaxar.config import ConfigError, parse
from jaxar.decoding import mask_schedules, masked, reuse
from jaxar.diffusion.process import Process
from jaxar.methods import _continuous_law as continuous
from jaxar.methods import _token_heads as heads
from jaxar.methods import mar
from jaxar.methods.base import Task
from jaxar.models.diffusion_head import DiffusionHead
from jaxar.models.diffusion_head import Sizes as HeadSizes
from jaxar.models.mar import patchify, unpatchify
from jaxar.tokenizers.base import ImageSpec, Tokens, TokenSpec

CONTINUOUS = TokenSpec("continuous", ((4, 4),), 3)
TOWER = mar.mar.Tower(1, 8, 2)
SIZES = mar.Model(TOWER, TOWER, HeadSizes(1, 8), buffer_size=2, dropout=0.0)


def build(sizes=SIZES, tokens=CONTINUOUS, **config):
    return mar.build(mar.Config(**config), sizes, Task(ImageSpec(8, 1), 5, tokens))


# Three tokens of one value: a Gaussian with this covariance, whose conditionals are known.
COVARIANCE = jnp.array([[1.0, 0.8, 0.5], [0.8, 1.0, 0.6], [0.5, 0.6, 1.0]])


@dataclasses.dataclass(frozen=True)
class Exact:
    """In place of the network: z is the conditional mean and variance, and the head denoises that Gaussian exactly."""

    num_tokens: int = 3
    channels: int = 1
    num_classes: int = 1
    sizes: mar.Model = SIZES

    def apply(self, variables, *args, method=None, rngs=None):
        return self._denoise(*args) if method == "denoise" else self._conditionals(*args)

    def _conditionals(self, shown, positions, cond, count, deterministic):
        return jax.vmap(self._conditional)(shown[..., 0], positions, count)

    def _conditional(self, shown, positions, count):
        at = jnp.where(jnp.arange(len(positions)) < count, positions, 3)
        known, x = (jnp.zeros(3).at[at].set(values, mode="drop") for values in (jnp.ones_like(shown), shown))
        gain = COVARIANCE * known @ jnp.linalg.inv(COVARIANCE * known[:, None] * known + jnp.diag(1 - known))
        return jnp.stack([gain @ x, jnp.diag(COVARIANCE - gain @ (COVARIANCE * known[:, None]))], axis=-1)

    def _denoise(self, x, t, z):
        """Expected noise, and v of the exact reverse variance, as in the tests of `ddpm`; all steps told are kept."""
        tables = PROCESS.tables
        index = jnp.searchsorted(jnp.asarray(tables.timesteps), t.astype(jnp.int32))
        mean, variance = z[:, :1], z[:, 1:]

        def at(values):
            return jnp.asarray(values, jnp.float32)[index][:, None]

        signal, low = at(tables.alphas_cumprod), at(tables.posterior_log_variance_clipped)
        total = signal * variance + 1 - signal
        eps = jnp.sqrt(1 - signal) * (x - jnp.sqrt(signal) * mean) / total
        of_data = (1 - signal) * variance / total
        exact = jnp.log(jnp.exp(low) + at(tables.posterior_mean_coef1) ** 2 * of_data)
        return jnp.concatenate([eps, 2 * (exact - low) / (at(tables.log_betas) - low) - 1], axis=-1)


PROCESS = Process(respacing="20", max_start=998)
COUNT = 4000


@functools.cache
def gaussian_samples(num_steps, order="random"):
    method = mar.MAR(Exact(), (1, 3), mar.Config(order=order))
    options = mar.Sampling(num_steps=num_steps, head=heads.Steps(20, start=998), segments=2)
    keys = jax.random.split(jax.random.key(1), COUNT)
    draw = jax.jit(lambda: method.sample({"model": {}}, {"label": jnp.zeros(COUNT, jnp.int32)}, keys, options).latents)
    return np.asarray(draw())[..., 0]


@pytest.mark.parametrize("order", ["random", "raster"])
def test_one_token_per_step_with_exact_conditionals_gives_the_joint_law(order):
    samples = gaussian_samples(3, order)
    np.testing.assert_allclose(samples.mean(axis=0), 0, atol=0.06)
    np.testing.assert_allclose(np.cov(samples.T), COVARIANCE, atol=0.08)


def test_tokens_of_one_step_are_independent():
    """All at once: right variances, and the covariance is lost."""
    np.testing.assert_allclose(np.cov(gaussian_samples(1).T), np.eye(3), atol=0.08)


def test_known_latents_stay_and_the_others_follow_their_conditional_law():
    method = mar.MAR(Exact(), (1, 3), mar.Config())
    options = mar.Sampling(num_steps=3, head=heads.Steps(20, start=998), segments=1)
    keys = jax.random.split(jax.random.key(2), COUNT)
    known = jnp.tile(jnp.array([False, True, False]), (COUNT, 1))
    given = Tokens(latents=jnp.full((COUNT, 3, 1), 1.5))
    cond = {"label": jnp.zeros(COUNT, jnp.int32)}
    drawn = jax.jit(lambda: method.complete({"model": {}}, given, known, cond, keys, options).latents)()
    drawn = np.asarray(drawn)[..., 0]
    np.testing.assert_array_equal(drawn[:, 1], 1.5)
    np.testing.assert_allclose(drawn.mean(axis=0), [1.2, 1.5, 0.9], atol=0.06)
    conditional = np.array([[0.36, 0.02], [0.02, 0.64]])
    np.testing.assert_allclose(np.cov(drawn[:, [0, 2]].T), conditional, atol=0.06)


def test_known_latents_of_a_patch_that_is_drawn_stay_too():
    method, variables = random_weights(build(dataclasses.replace(SIZES, patch_size=2)))
    given = Tokens(latents=jax.random.normal(jax.random.key(0), (1, 16, 3)))
    known = jnp.arange(16)[None] < 5  # row 0, and one latent of the patch below it
    options = mar.Sampling(num_steps=1, head=heads.Steps(2, start=500), segments=1)
    keys, cond = jax.random.split(jax.random.key(1), 1), {"label": jnp.array([2])}
    run = jax.jit(lambda: method.complete({"model": variables}, given, known, cond, keys, options).latents)
    np.testing.assert_array_equal(run()[known] == given.latents[known], True)
    assert jnp.all(run()[~known] != given.latents[~known])


@pytest.mark.slow
@pytest.mark.parametrize(
    "head, steps",
    [(heads.Diffusion(), heads.Steps(50, start=950)), (heads.Flow(), heads.Steps(50))],
    ids=["ddpm", "flow"],
)
def test_a_trained_head_samples_the_gaussian_that_its_condition_names(head, steps):
    """Three Gaussians, named by one-hot conditions; trained for a moment, so the tolerances are wide."""
    means, stds = jnp.array([-1.0, 0.2, 0.8]), jnp.array([0.3, 0.6, 0.15])
    net = DiffusionHead(HeadSizes(2, 48), head.output_channels(1))
    rows, optimizer = 192, optax.adam(optax.cosine_decay_schedule(4e-3, 500))
    condition = jnp.eye(3)[jnp.arange(rows) % 3]
    mean, std = (condition @ values[:, None] for values in (means, stds))

    def loss(params, key):
        x_key, t_key, noise_key = jax.random.split(key, 3)
        x = mean + std * jax.random.normal(x_key, (rows, 1))
        t, noise = head.draw_times(t_key, (rows,)), jax.random.normal(noise_key, x.shape)
        return sum(v.mean() for v in head.losses(functools.partial(net.apply, params), x, condition, t, noise).values())

    def update(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run():
        fresh = net.init(jax.random.key(0), jnp.zeros((1, 1)), jnp.zeros(1), jnp.zeros((1, 3)))
        params = nn.meta.unbox(fresh)
        (params, _), _ = jax.lax.scan(
            update, (params, optimizer.init(params)), jax.random.split(jax.random.key(0), 500)
        )
        z = jnp.repeat(jnp.eye(3), 1000, axis=0)
        start = jax.random.normal(jax.random.key(5), (3000, 1))

        def noise(index):
            return jax.random.normal(jax.random.fold_in(jax.random.key(6), index), start.shape)

        denoise = functools.partial(net.apply, params)
        return head.sample(denoise, z, start, noise, None, steps, jnp.int32(0), 1)

    samples = np.asarray(run()).reshape(3, 1000)
    np.testing.assert_allclose(samples.mean(axis=1), means, atol=0.12)
    np.testing.assert_allclose(samples.std(axis=1) / stds, 1, atol=0.3)


def test_training_hides_the_share_that_a_truncated_normal_says():
    method = build(dataclasses.replace(SIZES), TokenSpec("continuous", ((32, 32),), 3))
    hidden = jax.jit(method.hide, static_argnums=1)(jax.random.key(0), 300)
    share = np.asarray(hidden.mean(axis=1))
    assert share.min() >= 0.7 and share.max() <= 1
    law = scipy.stats.truncnorm(-0.3 / 0.25, 0, loc=1, scale=0.25)
    assert scipy.stats.kstest(share, law.cdf).pvalue > 1e-3
    assert np.abs(np.asarray(hidden[:, :512]).mean() - share.mean()) < 0.01  # any positions


def test_raster_order_hides_a_suffix():
    hidden = np.asarray(build(order="raster", min_masked=0.0).hide(jax.random.key(0), 50))
    assert np.all(hidden[:, 1:] >= hidden[:, :-1]) and len(set(hidden.sum(axis=1))) > 4


def test_the_loss_is_the_mean_over_hidden_tokens():
    values, hidden = jnp.array([[1.0, 2.0, 30.0], [40.0, 50.0, 6.0]]), jnp.array([[1, 1, 0], [0, 0, 1]], bool)
    np.testing.assert_allclose(mar.hidden_mean(values, hidden), 3.0)
    np.testing.assert_allclose(mar.hidden_mean(values, jnp.zeros_like(hidden)), 0.0)


@pytest.fixture(scope="module")
def small():
    return random_weights(build())


def random_weights(method):
    """The method and random weights everywhere, the zero layers included."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(method.init, jax.random.key(0)))["model"]
    return method, jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


def test_hidden_tokens_and_padding_do_not_reach_the_vectors(small):
    method, variables = small
    tokens = jax.random.normal(jax.random.key(0), (2, 16, 3))
    known = jnp.zeros((2, 16), bool).at[0, jnp.array([1, 7, 9])].set(True).at[1, 4].set(True)
    cond = {"label": jnp.array([0, 3])}
    run = jax.jit(method.vectors, static_argnums=4)
    z = run(variables, tokens, known, cond, 3)
    other = jnp.where(known[..., None], tokens, 9.0)
    np.testing.assert_allclose(run(variables, other, known, cond, 3), z, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run(variables, other, known, cond, 8), z, rtol=1e-4, atol=1e-4)
    moved = run(variables, tokens.at[0, 7].add(1.0), known, cond, 3)
    assert np.abs(moved - z)[0].max() > 1e-3 and np.abs(moved - z)[1].max() == 0


def test_guidance_between_equal_conditions_changes_nothing(small):
    method, variables = small
    keys, options = jax.random.split(jax.random.key(1), 2), mar.Sampling(num_steps=2, head=heads.Steps(4, start=900))
    null = {"label": jnp.full(2, 5)}

    def draw(scale):
        guided = dataclasses.replace(options, guidance_scale=scale)
        return jax.jit(lambda: method.sample({"model": variables}, null, keys, guided).latents)()

    plain = draw(1.0)
    np.testing.assert_allclose(draw(3.0), plain, rtol=1e-3, atol=1e-3 * np.abs(plain).max())


def test_annealed_steps_are_those_of_the_shorter_process():
    """Every step of the transformer has its own process, though one program holds them all."""
    steps, head, start = heads.Steps(9, last=3, start=900), heads.Diffusion(), jnp.array([[0.3], [-1.0]])
    assert steps.counts(4) == (9, 7, 5, 3) and steps.counts(1) == (9,)

    def denoise(x, t, z):
        return jnp.concatenate([x * jnp.cos(t)[:, None], jnp.zeros_like(x)], axis=-1)

    @functools.partial(jax.jit, static_argnums=0)
    def draw(steps, step):
        return head.sample(denoise, jnp.zeros((2, 1)), start, lambda i: 0.1 * start * i, None, steps, step, 4)

    for step, count in enumerate(steps.counts(4)):
        alone = draw(heads.Steps(count, start=900), jnp.int32(step))
        np.testing.assert_allclose(draw(steps, jnp.int32(step)), alone, rtol=1e-5)
    constant = draw(heads.Steps(9, last=9, start=900), jnp.int32(2))
    np.testing.assert_allclose(constant, draw(heads.Steps(9, start=900), jnp.int32(2)), rtol=1e-6)


@pytest.mark.parametrize(
    "annealing, expected",
    [
        ("linear", (50, 38, 27, 16, 5)),
        ("cosine", (50, 43, 27, 11, 5)),
        ("two_stage", (50, 50, 5, 5, 5)),
    ],
)
def test_forms_of_annealing(annealing, expected):
    assert heads.Steps(50, last=5, annealing=annealing).counts(5) == expected
    assert heads.Steps(50, last=50, annealing=annealing).counts(5) == (50,) * 5
    assert heads.Steps(50, annealing=annealing).counts(5) == (50,) * 5


def test_guidance_grows_with_the_revealed_share():
    linear, constant = mar.Sampling(guidance_scale=3.0), mar.Sampling(guidance_scale=3.0, guidance_schedule="constant")
    left = jnp.array([12, 4, 0])
    np.testing.assert_allclose(continuous.guidance_scales(linear, left, 16), [1.5, 2.5, 2.875])
    np.testing.assert_allclose(continuous.guidance_scales(constant, left, 16), 3.0)


def test_patches_are_squares_with_channels_first():
    latents = jnp.arange(2 * 8 * 3.0).reshape(2, 8, 3)
    tokens = patchify(latents, (2, 4), 2)
    assert tokens.shape == (2, 2, 12)
    np.testing.assert_array_equal(tokens[0, 1], latents[0, jnp.array([2, 3, 6, 7])].T.reshape(-1))
    np.testing.assert_array_equal(unpatchify(tokens, (2, 4), 2), latents)


# Reuse of keys and values.


@functools.cache
def towers(encoder, decoder):
    """Method and weights of a network with so many layers."""
    sizes = dataclasses.replace(SIZES, encoder=mar.mar.Tower(encoder, 8, 2), decoder=mar.mar.Tower(decoder, 8, 2))
    return random_weights(build(sizes))


@functools.cache
def reusing(encoder, decoder, every):
    """Latents drawn in four guided steps, the last two with fewer due tokens; the second sample is given three."""
    method, variables = towers(encoder, decoder)
    options = mar.Sampling(4, heads.Steps(2, start=900), 1.5, segments=2, refresh_every=every)
    known = jnp.zeros((2, 16), bool).at[1, jnp.array([3, 8, 9])].set(True)
    given = Tokens(latents=jax.random.normal(jax.random.key(0), (2, 16, 3)))
    cond, keys = {"label": jnp.array([0, 3])}, jax.random.split(jax.random.key(1), 2)
    run = jax.jit(lambda v: method.complete({"model": v}, given, known, cond, keys, options).latents)
    return np.asarray(run(variables))


def off(latents, exact):
    """The largest difference, in terms of the largest value."""
    return np.abs(latents - exact).max() / np.abs(exact).max()


@pytest.mark.parametrize("encoder, decoder, every", [(1, 2, 1), (0, 1, 9)])
@pytest.mark.slow
def test_reuse_is_exact_if_all_is_refreshed_or_keys_depend_on_their_token_alone(encoder, decoder, every):
    assert off(reusing(encoder, decoder, every), reusing(encoder, decoder, None)) < 1e-4


@pytest.mark.slow
def test_reuse_in_deeper_networks_is_an_approximation():
    assert off(reusing(1, 2, 9), reusing(1, 2, None)) > 5e-4


@pytest.mark.slow
def test_keys_of_a_drawn_token_that_stay_those_of_a_mask_are_told_apart(monkeypatch):
    """The wrong twin decodes what is masked and nothing else."""

    def due(state, segment):
        return masked.positions_of(~state.known, segment.due)

    monkeypatch.setattr(reuse, "due", due)
    assert off(reusing.__wrapped__(0, 1, 9), reusing(0, 1, None)) > 1e-2


def test_a_step_with_reuse_encodes_what_is_new_and_decodes_what_is_due(monkeypatch):
    """Each encoded and each decoded token adds its own number of operations, and settled ones add none."""
    monkeypatch.setattr(jax.lax, "cond", lambda refresh, whole, part, state: part(state))
    method, variables = towers(1, 2)
    state = masked.State(jnp.zeros((2, 16, 3)), jnp.zeros((2, 16), bool))
    state = state._replace(extra=reuse.begin(method.network.init_caches(2), 2, 16))
    vectors = method._due_vectors(variables, {"label": jnp.zeros(2, jnp.int32)}, 9)

    def cost(fresh, due):
        bounds = mask_schedules.unbounded(6, 16)._replace(fresh=fresh, due=due)
        return flops.count(lambda s: vectors(s, 1, bounds)[0], state)

    encoded, decoded = cost(2, 1) - cost(1, 1), cost(1, 2) - cost(1, 1)
    assert cost(1, 1) == encoded + decoded and cost(7, 5) == 7 * encoded + 5 * decoded
    shown = jnp.zeros((2, 8, 3)), jnp.zeros((2, 8), jnp.int32), {"label": jnp.zeros(2, jnp.int32)}
    whole = flops.count(lambda x: method.network.apply(variables, x, *shown[1:]), shown[0])
    assert cost(1, 16) < whole and cost(1, 1) < whole / 10


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: mar.Config(min_masked=1.0), "method.min_masked=1.0"),
        (lambda: mar.Config(label_drop=1.5), "method.label_drop=1.5"),
        (lambda: mar.Config(repeats=0), "method.repeats=0"),
        (lambda: mar.Sampling(num_steps=0), "sample.num_steps=0"),
        (lambda: mar.Sampling(refresh_every=0), "sample.refresh_every=0"),
        (lambda: heads.Steps("ddim20", last=5), "sample.head.last=5"),
        (lambda: heads.Steps(temperature=-1.0), "sample.head.temperature=-1.0"),
        (lambda: heads.Flow().check(heads.Steps("ddim20")), "a flow takes a positive number"),
        (lambda: heads.Diffusion().check(heads.Steps(2000)), "respacing='2000'"),
        (lambda: mar.mar.Tower(1, 10, 4), "width=10 of a tower"),
        (lambda: dataclasses.replace(SIZES, buffer_size=0), "model.buffer_size=0"),
        (lambda: build(dataclasses.replace(SIZES, patch_size=3)), "model.patch_size=3 does not divide"),
        (lambda: build(tokens=TokenSpec("discrete", ((4, 4),), 3, 8)), "needs continuous raster tokens"),
        (lambda: parse(mar.Sampling, {"head": {"steps": 3}}, "sample"), "sample.head.steps"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
