"""MaskGIT's tokenizer: codes, losses and options; golden_test and tests/interop compare it with the official one."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError, parse
from jaxar.nn import quantize
from jaxar.tokenizers import base, maskgit_vq
from jaxar.tokenizers.base import ImageSpec, Tokens

TINY = {"vocab_size": 12, "code_channels": 4, "channels": 4, "multipliers": (1, 2), "num_res_blocks": 1, "groups": 2}


@pytest.fixture(scope="module")
def tiny(random_variables):
    """A tokenizer of 8x8 grey images with a 4x4 grid and all that it makes of three images, in one program."""
    tokenizer = base.build("maskgit_vq", TINY, ImageSpec(8, 1))
    images = jax.random.uniform(jax.random.key(1), (3, 8, 8, 1), minval=-1)

    @jax.jit
    def run(variables):
        tokens = tokenizer.encode(variables, images)
        return dict(
            features=tokenizer.features(variables, images),
            ids=tokens.ids,
            decoded=tokenizer.decode(variables, tokens),
            from_codes=tokenizer.decode(variables, Tokens(latents=tokenizer.codes(variables)[tokens.ids])),
            trained=tokenizer.reconstruct(variables, images, None, train=True),
        )

    variables = random_variables(tokenizer.init)
    return types.SimpleNamespace(tokenizer=tokenizer, variables=variables, **run(variables))


def test_tokens_are_the_nearest_codes_and_decode_to_the_reconstruction(tiny):
    assert tiny.tokenizer.spec.scales == ((4, 4),) and tiny.ids.shape == (3, 16)
    features, codebook = np.asarray(tiny.features), np.asarray(tiny.variables["params"]["codebook"])
    distances = ((features[..., None, :] - codebook) ** 2).sum(-1)
    np.testing.assert_array_equal(tiny.ids, distances.argmin(-1).reshape(3, 16))
    assert len(np.unique(tiny.ids)) > 1
    np.testing.assert_allclose(tiny.decoded, jnp.clip(tiny.trained.images, -1, 1), atol=1e-5)


def test_codes_may_be_given_in_place_of_ids(tiny):
    np.testing.assert_allclose(tiny.from_codes, tiny.decoded, atol=1e-5)


def test_own_loss_in_closed_form(tiny):
    codebook = np.asarray(tiny.variables["params"]["codebook"])
    distance = np.mean((np.asarray(tiny.features).reshape(3, 16, 4) - codebook[np.asarray(tiny.ids)]) ** 2)
    entropy = quantize.entropy_loss(tiny.features, tiny.variables["params"]["codebook"], 0.01)
    np.testing.assert_allclose(tiny.trained.loss, 1.25 * distance + 0.1 * entropy, rtol=1e-4)


def test_pixels_train_encoder_and_decoder_and_the_own_loss_trains_the_codes(tiny):
    images = jnp.linspace(-1, 1, 64).reshape(1, 8, 8, 1)

    @jax.jit
    def gradients(params):
        def part(name):
            def value(params):
                result = tiny.tokenizer.reconstruct({**tiny.variables, "params": params}, images, None, train=True)
                return jnp.sum(result.images**2) if name == "pixels" else result.loss

            return jax.grad(value)(params)

        return part("pixels"), part("own")

    def size(tree):
        return sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(tree))

    pixels, own = gradients(tiny.variables["params"])
    assert size(pixels["encoder"]) > 0 and size(pixels["decoder"]) > 0 and size(pixels["codebook"]) == 0
    assert size(own["encoder"]) > 0 and size(own["decoder"]) == 0 and size(own["codebook"]) > 0


def test_the_published_tokenizer_has_54_million_parameters():
    """With the 172.5M of the transformer they are the paper's 227M."""
    tokenizer = base.build("maskgit_vq", {}, ImageSpec(256, 3))
    shapes = jax.eval_shape(tokenizer.init, jax.random.key(0))["params"]
    assert tokenizer.spec.grid == (16, 16)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 54_515_587


def test_convolutions_can_replace_pooling():
    tokenizer = base.build("maskgit_vq", TINY | {"conv_downsample": True}, ImageSpec(8, 1))
    params = jax.eval_shape(tokenizer.init, jax.random.key(0))["params"]["encoder"]
    assert params["downsample_0"]["kernel"].unbox().shape == (4, 4, 4, 4)
    features = jax.eval_shape(
        tokenizer.features, jax.eval_shape(tokenizer.init, jax.random.key(0)), jnp.zeros((1, 8, 8, 1))
    )
    assert features.shape == (1, 4, 4, 4)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vocab_size": 0}, "tokenizer.vocab_size=0"),
        ({"entropy_temperature": 0.0}, "tokenizer.entropy_temperature=0.0"),
        ({"groups": 3}, "tokenizer.groups=3"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse(maskgit_vq.Config, TINY | changes, "tokenizer")
    with pytest.raises(ConfigError, match="stride 2, which does not divide"):
        base.build("maskgit_vq", TINY, ImageSpec(7, 1))
