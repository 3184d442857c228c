import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError, parse
from jaxar.nn import quantize
from jaxar.tokenizers import base, vq
from jaxar.tokenizers.base import ImageSpec, Tokens

NO_ATTENTION = {"level_attention": False, "mid_attention": False}
STACK = {"channels": 8, "multipliers": (1,), "num_res_blocks": 1, "groups": 4} | NO_ATTENTION
QUANTIZER = {"name": "l2_vq", "vocab_size": 12, "channels": 4}
TINY = {"quantizer": QUANTIZER, "stack": STACK, "latent_channels": 8}


@pytest.fixture(scope="module")
def tiny(random_variables):
    """A tokenizer of 4x4 grey images with a 4x4 grid and all that it makes of three images, in one program."""
    tokenizer = base.build("vq", TINY, ImageSpec(4, 1))
    with_entropy = base.build("vq", TINY | {"quantizer": QUANTIZER | {"entropy_weight": 0.5}}, ImageSpec(4, 1))
    images = jax.random.uniform(jax.random.key(1), (3, 4, 4, 1), minval=-1)

    @jax.jit
    def run(variables):
        tokens = tokenizer.encode(variables, images)
        return dict(
            features=tokenizer.features(variables, images),
            ids=tokens.ids,
            decoded=tokenizer.decode(variables, tokens),
            from_codes=tokenizer.decode(variables, Tokens(latents=tokenizer.codes(variables)[tokens.ids])),
            trained=tokenizer.reconstruct(variables, images, None, train=True),
            evaluated=tokenizer.reconstruct(variables, images, None, train=False),
            with_entropy=with_entropy.reconstruct(variables, images, None, train=True),
        )

    variables = random_variables(tokenizer.init)
    return types.SimpleNamespace(tokenizer=tokenizer, variables=variables, images=images, **run(variables))


def test_tokens_fit_the_spec(tiny):
    spec = tiny.tokenizer.spec
    assert tiny.ids.shape == (3, spec.num_tokens) == (3, 16) and tiny.ids.dtype == jnp.int32
    assert spec.scales == ((4, 4),) and spec.vocab_size == 12 and spec.channels == 4
    assert jnp.all((tiny.ids >= 0) & (tiny.ids < 12)) and len(np.unique(tiny.ids)) > 1


def test_decoding_the_codes_is_the_reconstruction(tiny):
    np.testing.assert_allclose(tiny.decoded, jnp.clip(tiny.trained.images, -1, 1), atol=1e-5)


def test_ids_are_the_codes_of_smallest_angle(tiny):
    features, codebook = np.asarray(tiny.features), np.asarray(tiny.variables["params"]["codebook"])
    cosine = features @ codebook.T / np.linalg.norm(codebook, axis=1)
    np.testing.assert_array_equal(tiny.ids, cosine.argmax(axis=-1).reshape(3, 16))


def test_codes_are_read_with_unit_length(tiny):
    quantized = tiny.tokenizer.quantized(tiny.variables, tiny.ids)
    assert quantized.shape == (3, 4, 4, 4)
    stored = np.asarray(tiny.variables["params"]["codebook"])[np.asarray(tiny.ids)].reshape(quantized.shape)
    np.testing.assert_allclose(quantized, stored / np.linalg.norm(stored, axis=-1, keepdims=True), rtol=1e-5)


def test_codes_may_be_given_in_place_of_ids(tiny):
    np.testing.assert_allclose(tiny.from_codes, tiny.decoded, atol=1e-5)


def test_own_loss_in_closed_form(tiny):
    features = quantize.l2_normalize(tiny.features)
    distance = np.mean((np.asarray(features) - np.asarray(tiny.tokenizer.quantized(tiny.variables, tiny.ids))) ** 2)
    np.testing.assert_allclose(tiny.trained.loss, 1.25 * distance, rtol=1e-4)
    codebook = quantize.l2_normalize(tiny.variables["params"]["codebook"])
    entropy = quantize.entropy_loss(features, codebook)
    np.testing.assert_allclose(tiny.with_entropy.loss - tiny.trained.loss, 0.5 * entropy, rtol=1e-4)


def test_gradients_of_reconstruction_and_own_loss(tiny):
    """Pixels train the encoder straight through the quantizer and leave the codes alone; the own loss trains both."""

    @jax.jit
    def gradients(params):
        def values(params):
            result = tiny.tokenizer.reconstruct({**tiny.variables, "params": params}, tiny.images, None, train=True)
            return jnp.sum(result.images**2), result.loss

        _, pullback = jax.vjp(values, params)
        return pullback((1.0, 0.0))[0], pullback((0.0, 1.0))[0]

    of_pixels, of_loss = gradients(tiny.variables["params"])
    size = lambda tree: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(tree))  # noqa: E731
    assert size(of_pixels["encoder"]) > 0 and size(of_pixels["decoder"]) > 0 and size(of_pixels["codebook"]) == 0
    assert size(of_loss["encoder"]) > 0 and size(of_loss["decoder"]) == 0 and size(of_loss["codebook"]) > 0


def test_evaluation_leaves_the_statistics_alone(tiny):
    assert tiny.evaluated.collections == {} and set(tiny.trained.collections) == {"code_use"}
    np.testing.assert_allclose(tiny.evaluated.metrics["code_use"], len(np.unique(tiny.ids)) / 12, rtol=1e-6)


def test_project_revives_a_collapsed_codebook(tiny):
    """All codes but one far away from the features: they come back as features, the one in use keeps its bits."""
    images = tiny.images
    quantizer = QUANTIZER | {"guard": {"decay": 0.5, "revive_below": 0.2}}
    tokenizer = base.build("vq", TINY | {"quantizer": quantizer}, ImageSpec(4, 1))
    mean = quantize.l2_normalize(tiny.features.mean(axis=(0, 1, 2)))
    codebook = jnp.concatenate([mean[None], jnp.tile(-mean, (11, 1))])
    variables = {**tiny.variables, "params": {**tiny.variables["params"], "codebook": codebook}}

    @jax.jit
    def step(variables, key):
        result = tokenizer.reconstruct(variables, images, None, train=True)
        params, collections = tokenizer.project(variables["params"], result.collections, key)
        return {"params": params, **collections}, result.metrics["code_use"]

    for i in range(5):  # four steps until the unused codes are dead, one more to see the new ones used
        variables, code_use = step(variables, jax.random.key(i))
    revived = variables["params"]["codebook"]
    np.testing.assert_array_equal(revived[0], codebook[0])
    assert jnp.all(revived[1:] @ codebook[0] > -0.99) and code_use > 0.5
    np.testing.assert_allclose(jnp.linalg.norm(revived, axis=1), 1, rtol=1e-5)


def test_default_sizes_are_the_published_ones():
    tokenizer = vq.build(vq.Config(), ImageSpec(256, 3))
    boxed = jax.eval_shape(tokenizer.init, jax.random.key(0))
    params = nn.meta.unbox(boxed)["params"]
    assert tokenizer.spec.grid == (16, 16) and params["codebook"].shape == (16384, 8)
    assert round(sum(x.size for x in jax.tree.leaves(params)) / 1e6) == 72  # "72M" in LlamaGen's table
    assert boxed["params"]["codebook"].names == ("vocab", "embed_table")


@pytest.mark.parametrize("size, levels, grid", [(8, 2, 4), (32, 3, 8), (64, 4, 8)])
def test_other_image_sizes(size, levels, grid):
    stack = STACK | {"multipliers": (1,) * levels}
    tokenizer = base.build("vq", TINY | {"stack": stack}, ImageSpec(size, 3))
    variables = nn.meta.unbox(jax.eval_shape(tokenizer.init, jax.random.key(0)))
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    ids = jax.eval_shape(tokenizer.encode, variables, images).ids
    assert ids.shape == (2, grid * grid)
    assert jax.eval_shape(tokenizer.decode, variables, Tokens(ids=ids)).shape == images.shape


@pytest.mark.parametrize(
    "values, size, message",
    [
        ({"stack": STACK | {"multipliers": (1, 1)}}, 9, "data.image_size=9"),
        ({"quantizer": QUANTIZER | {"vocab_size": 0}}, 8, "tokenizer.quantizer.vocab_size=0"),
        ({"stack": STACK | {"groups": 3}}, 8, "groups=3 must divide"),
        ({"quantizer": QUANTIZER | {"guard": {"decay": 2.0}}}, 8, "guard.decay=2.0"),
        ({"quantizers": {}}, 8, "tokenizer.quantizer"),
        ({"quantizer": {"name": "fsp"}}, 8, "unknown value of tokenizer.quantizer.name 'fsp'"),
        ({"quantizer": {}}, 8, "tokenizer.quantizer.name is missing; it must be one of vq, l2_vq, simvq, fsq"),
        ({"network": "magvit2", "stack": STACK | {"mid_attention": True}}, 8, "'magvit2' has no attention"),
    ],
)
def test_mistakes_are_named(values, size, message):
    with pytest.raises(ConfigError) as error:
        vq.build(parse(vq.Config, TINY | values, "tokenizer"), ImageSpec(size, 1))
    assert message in str(error.value)
