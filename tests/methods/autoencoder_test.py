import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar import optim, partition, state, train_step
from jaxar.config import ConfigError, parse
from jaxar.methods import autoencoder
from jaxar.methods.base import Task
from jaxar.models import perceptual
from jaxar.tokenizers import base
from jaxar.tokenizers.base import ImageSpec, Reconstruction, TokenSpec

IMAGE = ImageSpec(8, 1)
MODEL = autoencoder.Model(channels=4, num_layers=1, groups=4)
IMAGES = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1), minval=-1)


@dataclasses.dataclass(frozen=True)
class Gain:
    """A tokenizer of one parameter, whose losses have closed forms: reconstruction g x, own loss g^2."""

    image: ImageSpec = IMAGE
    spec: TokenSpec = TokenSpec("continuous", ((8, 8),), channels=1)  # noqa: RUF009 - frozen

    def init(self, key):
        return {"params": {"gain": jnp.full((), 0.5)}, "seen": {"batches": jnp.zeros(())}}

    def reconstruct(self, variables, images, key, train):
        gain, seen = variables["params"]["gain"], variables["seen"]["batches"]
        collections = {"seen": {"batches": seen + 1}} if train else {}
        return Reconstruction(gain * images, gain**2, {"own": gain**2}, collections)

    def project(self, params, collections, key):
        return {"gain": jnp.minimum(params["gain"], 1.0)}, collections


def method(tokenizer=Gain(), image=IMAGE, **values):
    config = parse(autoencoder.Config, values, "method")
    return autoencoder.build(config, MODEL, Task(image, num_classes=10, tokens=tokenizer.spec, tokenizer=tokenizer))


def adversarial(start=0, loss="hinge"):
    return method(l2=2.0, adversarial={"weight": 0.3, "start": start, "loss": loss})


@pytest.fixture(scope="module")
def trained():
    """An adversarial method, and what one step with each of its losses does to a common state."""
    m = adversarial()
    optimizers = optim.build({"learning_rate": 0.1, "schedule": {"name": "constant"}, "ema": (0.9,)}, m, 10)
    before = state.create(m, optimizers, partition.single_device_mesh(), jax.random.key(1))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def step(loss, accumulate):
        plan = train_step.Plan(m, optimizers, accumulate=accumulate)
        key = jax.random.key(2)
        return train_step.train_step(before, {}, {"image": IMAGES}, key, plan=plan, active=(loss,))[0]

    return types.SimpleNamespace(method=m, before=before, step=step)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def loss_of(m, name):
    return next(loss for loss in m.losses() if loss.name == name)


@pytest.mark.parametrize(
    "kind, generator, discriminator",
    [
        ("hinge", -0.5, 0.5 * ((0 + 3.0) / 2 + (3.0 + 0) / 2)),
        (
            "non_saturating",
            np.log1p(np.exp([1.0, -2.0])).mean(),
            0.5 * np.log1p(np.exp([-2.0, 2.0, -1.0, 2.0])).sum() / 2,
        ),
    ],
)
def test_adversarial_losses_in_closed_form(kind, generator, discriminator):
    real, fake = jnp.asarray([[[2.0, -2.0]]]), jnp.asarray([[[-1.0, 2.0]]])
    np.testing.assert_allclose(autoencoder.generator_loss(fake, kind), generator, rtol=1e-6)
    np.testing.assert_allclose(autoencoder.discriminator_loss(real, fake, kind), discriminator, rtol=1e-6)


def test_reconstruction_loss_in_closed_form():
    m = method(l1=3.0, l2=2.0)
    value, aux = loss_of(m, "reconstruction").fn(m.init(jax.random.key(0)), {"image": IMAGES}, jax.random.key(1), 0)
    l1, l2 = np.abs(0.5 * IMAGES).mean(), np.square(0.5 * IMAGES).mean()
    np.testing.assert_allclose(value, 3 * l1 + 2 * l2 + 0.25, rtol=1e-5)
    np.testing.assert_allclose([aux.metrics[k] for k in ("l1", "l2", "own")], [l1, l2, 0.25], rtol=1e-5)
    assert aux.collections == {"tokenizer": {"seen": {"batches": 1}}}


def test_generator_gradient_flows_through_the_discriminator(trained):
    m, variables = trained.method, trained.before.variables()

    def value(gain, name):
        tokenizer = {**variables["tokenizer"], "params": {"gain": gain}}
        return loss_of(m, name).fn({**variables, "tokenizer": tokenizer}, {"image": IMAGES}, jax.random.key(0), 0)[0]

    gradient = lambda name: jax.jit(jax.grad(functools.partial(value, name=name)))(jnp.asarray(0.5))  # noqa: E731
    logits = lambda gain: autoencoder.Discriminator(MODEL).apply(variables["discriminator"], gain * IMAGES)  # noqa: E731
    expected = -0.3 * jax.jit(jax.grad(lambda gain: logits(gain).mean()))(jnp.asarray(0.5))
    assert abs(expected) > 1e-6
    np.testing.assert_allclose(gradient("generator") - gradient("reconstruction"), expected, rtol=1e-2)


def test_each_loss_moves_its_own_player(trained):
    before, after = (
        trained.before.players,
        {name: trained.step(name, 1).players for name in ("generator", "discriminator")},
    )
    assert not same(after["generator"]["tokenizer"].params, before["tokenizer"].params)
    assert same(after["generator"]["discriminator"], before["discriminator"])
    assert same(after["discriminator"]["tokenizer"], before["tokenizer"])
    assert not same(after["discriminator"]["discriminator"].params, before["discriminator"].params)


def test_statistics_advance_once_per_microbatch(trained):
    assert trained.step("generator", 1).players["tokenizer"].aux["seen"]["batches"] == 1
    assert trained.step("generator", 2).players["tokenizer"].aux["seen"]["batches"] == 2


def test_the_plan_without_an_adversary():
    m = method()
    assert list(m.players()) == list(m.init(jax.random.key(0))) == ["tokenizer"]
    assert [stage.name for stage in m.stages()] == ["reconstruct"]
    assert m.active(0) == m.active(10**6) == ("reconstruction",)
    assert m.frozen() == {}


def test_the_adversary_enters_at_its_start():
    m = adversarial(start=3)
    assert list(m.players()) == ["tokenizer", "discriminator"]
    assert set(jax.eval_shape(m.init, jax.random.key(0))) == set(m.players())
    assert [(stage.name, stage.start) for stage in m.stages()] == [("reconstruct", 0), ("adversarial", 3)]
    assert m.active(2) == ("reconstruction",)
    assert m.active(3) == m.active(4) == ("generator", "discriminator")
    assert [stage.name for stage in adversarial(start=0).stages()] == ["adversarial"]


def test_the_tokenizer_projects_and_its_codes_do_not_decay():
    spec = method().players()["tokenizer"]
    assert spec.project({"gain": jnp.asarray(7.0)}, {}, jax.random.key(0)) == ({"gain": 1.0}, {})
    tokenizer = base.build("vq", {"stack": {"channels": 32, "multipliers": (1,)}}, IMAGE)
    boxed = jax.eval_shape(tokenizer.init, jax.random.key(0))["params"]
    mask = optim.decay_mask(boxed, method(tokenizer).players()["tokenizer"])
    assert not mask["codebook"] and mask["quant_conv"]["kernel"] and not mask["quant_conv"]["bias"]


def test_figures_per_image():
    m = method()
    variables = {"tokenizer": {"params": {"gain": jnp.asarray(1.5)}, "seen": {"batches": jnp.zeros(())}}}
    images = jnp.stack([jnp.full((8, 8, 1), 0.2), jnp.full((8, 8, 1), -1.0)])  # off by 0.1, and clipped
    figures = m.evaluate(variables, {"image": images}, jax.random.key(0))
    np.testing.assert_allclose(figures["l1"], [0.1, 0], rtol=1e-5)
    np.testing.assert_allclose(figures["mse"], [0.01, 0], rtol=1e-5)
    np.testing.assert_allclose(figures["psnr"], [10 * np.log10(4 / 0.01), 10 * np.log10(4 / 1e-10)], rtol=1e-5)
    assert figures["own"].shape == ()


def test_perceptual_weights_are_frozen_variables(monkeypatch):
    """The loss reads them from its variables; `frozen` reads them from the file, once."""
    image, params = ImageSpec(16, 1), {"weight": jnp.asarray(3.0)}
    monkeypatch.setattr(perceptual, "load", lambda path, field: {"path": path, "field": field})
    monkeypatch.setattr(perceptual, "distance", lambda p, a, b: p["weight"] * jnp.abs(a - b).mean(axis=(1, 2, 3)))
    m = method(Gain(image), image, perceptual={"weight": 0.2, "weights": "vgg.safetensors"})
    assert m.frozen() == {"perceptual": {"params": {"path": "vgg.safetensors", "field": "method.perceptual.weights"}}}
    assert list(m.players()) == ["tokenizer"]
    variables = {**m.init(jax.random.key(0)), "perceptual": {"params": params}}
    images = jnp.full((1, 16, 16, 1), 0.4)
    value, aux = loss_of(m, "reconstruction").fn(variables, {"image": images}, jax.random.key(0), 0)
    np.testing.assert_allclose(aux.metrics["lpips"], 0.6, rtol=1e-5)
    np.testing.assert_allclose(value, 0.04 + 0.25 + 0.2 * 0.6, rtol=1e-5)
    np.testing.assert_allclose(m.evaluate(variables, {"image": images}, None)["lpips"], [0.6], rtol=1e-5)


@pytest.mark.slow
def test_overfits_one_batch():
    stack = {"channels": 8, "multipliers": (1,), "num_res_blocks": 1, "groups": 4}
    guard = {"decay": 0.7, "revive_below": 0.2}
    quantizer = {"name": "l2_vq", "vocab_size": 64, "channels": 4, "guard": guard}
    options = {"quantizer": quantizer, "latent_channels": 8}
    options["stack"] = stack | {"level_attention": False, "mid_attention": False}
    image = ImageSpec(4, 1)
    m = method(base.build("vq", options, image), image)
    optimizers = optim.build({"learning_rate": 1e-2, "weight_decay": 0.0}, m, 60)
    player = state.create(m, optimizers, partition.single_device_mesh(), jax.random.key(0))
    plan, batch = train_step.Plan(m, optimizers), {"image": IMAGES[:, :4, :4]}
    step = jax.jit(functools.partial(train_step.train_step, plan=plan, active=("reconstruction",)), donate_argnums=0)
    errors = []
    for _ in range(60):
        player, metrics = step(player, {}, batch, jax.random.key(1))
        errors.append(float(metrics["train/l2"]))
    assert errors[-1] < 0.1 * errors[0]
    assert metrics["train/code_use"] > 0.5 and metrics["train/perplexity"] > 16


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: method(l2=0.0), "method.l1=0.0, method.l2=0.0"),
        (lambda: method(perceptual={"weight": 1.0}), "needs method.perceptual.weights"),
        (lambda: method(perceptual={"weight": 1.0, "weights": "x"}), "at least 16 pixels"),
        (lambda: method(adversarial={"weight": -1.0}), "method.adversarial has weight=-1.0"),
        (lambda: method(adversarial={"loss": "wasserstein"}), "method.adversarial.loss"),
        (lambda: method(Gain(ImageSpec(4, 1)), ImageSpec(4, 1), adversarial={"weight": 1.0}), "data.image_size=4"),
        (lambda: autoencoder.build(autoencoder.Config(), MODEL, Task(IMAGE, 10)), "tokenizer.name"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert message in str(error.value)
