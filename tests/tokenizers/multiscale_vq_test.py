import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError, parse
from jaxar.tokenizers import base, multiscale_vq
from jaxar.tokenizers.base import ImageSpec, Tokens

NO_ATTENTION = {"level_attention": False, "mid_attention": False}
STACK = {"channels": 8, "multipliers": (1,), "num_res_blocks": 1, "groups": 4} | NO_ATTENTION
QUANTIZER = {"name": "vq", "vocab_size": 12, "channels": 4}
TINY = {"quantizer": QUANTIZER, "stack": STACK, "scales": (1, 2, 3, 4), "num_phi": 2}


@pytest.fixture(scope="module")
def tiny(random_variables):
    """A tokenizer of 4x4 grey images with scales 1 to 4 and all that it makes of three images, in one program."""
    tokenizer = base.build("multiscale_vq", TINY, ImageSpec(4, 1))
    images = jax.random.uniform(jax.random.key(1), (3, 4, 4, 1), minval=-1)

    @jax.jit
    def run(variables):
        tokens, features = tokenizer.encode(variables, images), tokenizer.features(variables, images)
        return dict(
            features=features,
            ids=tokens.ids,
            residual=tokenizer.residual(variables, features),
            sums=tokenizer.cumulative_features(variables, tokens.ids),
            teacher=tokenizer.teacher_input(variables, tokens.ids),
            decoded=tokenizer.decode(variables, tokens),
            from_codes=tokenizer.decode(variables, Tokens(latents=tokenizer.codes(variables)[tokens.ids])),
            trained=tokenizer.reconstruct(variables, images, None, train=True),
            evaluated=tokenizer.reconstruct(variables, images, None, train=False),
        )

    variables = random_variables(tokenizer.init)
    return types.SimpleNamespace(tokenizer=tokenizer, variables=variables, images=images, **run(variables))


def test_tokens_fit_the_spec(tiny):
    spec = tiny.tokenizer.spec
    assert tiny.ids.shape == (3, 30) and tiny.ids.dtype == jnp.int32 and len(np.unique(tiny.ids)) > 1
    assert spec.scale_lengths == (1, 4, 9, 16) and spec.multiscale and spec.vocab_size == 12


def test_decoding_the_codes_is_the_reconstruction(tiny):
    np.testing.assert_allclose(tiny.decoded, jnp.clip(tiny.trained.images, -1, 1), atol=1e-5)


def test_residual_identity(tiny):
    """f - r_K == f_hat_K, and f_hat from the ids alone is the same at every scale."""
    np.testing.assert_array_equal(tiny.residual.ids, tiny.ids)
    before = tiny.features - tiny.residual.targets[:, -16:].reshape(tiny.features.shape)
    np.testing.assert_allclose(before, tiny.residual.sums[-2], atol=1e-6)
    last = tiny.tokenizer.contribution(tiny.variables, 3, tiny.ids[:, -16:])
    np.testing.assert_allclose(before + last, tiny.residual.sums[-1], atol=1e-6)
    np.testing.assert_allclose(tiny.sums, tiny.residual.sums, atol=1e-6)


def test_teacher_input_is_what_generation_feeds(tiny):
    spec, next_input = tiny.tokenizer.spec, jax.jit(tiny.tokenizer.next_input, static_argnums=1)
    f_hat, inputs = jnp.zeros((3, *spec.grid, spec.channels)), []
    for scale, part in enumerate(np.split(np.asarray(tiny.ids), np.cumsum(spec.scale_lengths)[:-1], axis=1)):
        f_hat, x = next_input(tiny.variables, scale, f_hat, jnp.asarray(part))
        inputs.append(x)
    assert inputs.pop() is None
    assert [x.shape[1] for x in inputs] == [4, 9, 16]
    np.testing.assert_allclose(tiny.teacher, jnp.concatenate(inputs, axis=1), atol=1e-6)
    np.testing.assert_allclose(f_hat, tiny.sums[-1], atol=1e-6)


def test_teacher_input_sees_coarser_scales_alone(tiny):
    """Changing a token of a scale changes the inputs of finer scales, and no others."""
    teacher = jax.jit(tiny.tokenizer.teacher_input)
    for token, first_moved in ((0, 0), (1, 4), (5, 13)):  # inputs of the first scale are not listed
        changed = tiny.ids.at[:, token].set((tiny.ids[:, token] + 1) % 12)
        moved = np.abs(teacher(tiny.variables, changed) - tiny.teacher).max(axis=(0, 2)) > 1e-5
        assert not moved[:first_moved].any() and moved[first_moved:].any()


def test_codes_may_be_given_in_place_of_ids(tiny):
    np.testing.assert_allclose(tiny.from_codes, tiny.decoded, atol=1e-5)


def test_own_loss_in_closed_form(tiny):
    features = np.asarray(tiny.features)
    expected = np.mean([1.25 * np.mean((np.asarray(f_hat) - features) ** 2) for f_hat in tiny.sums])
    np.testing.assert_allclose(tiny.trained.loss, expected, rtol=1e-4)


def test_gradients_of_reconstruction_and_own_loss(tiny):
    """Pixels train the encoder straight through the quantizer; the own loss trains encoder, codes and every phi."""

    @jax.jit
    def gradients(params):
        def values(params):
            result = tiny.tokenizer.reconstruct({**tiny.variables, "params": params}, tiny.images, None, train=True)
            return jnp.sum(result.images**2), result.loss

        _, pullback = jax.vjp(values, params)
        return pullback((1.0, 0.0))[0], pullback((0.0, 1.0))[0]

    of_pixels, of_loss = gradients(tiny.variables["params"])
    size = lambda tree: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(tree))  # noqa: E731
    assert size(of_pixels["encoder"]) > 0 and size(of_pixels["decoder"]) > 0
    assert size(of_pixels["codebook"]) == size(of_pixels["phi"]) == 0
    assert size(of_loss["encoder"]) > 0 and size(of_loss["decoder"]) == 0 and size(of_loss["codebook"]) > 0
    assert all(size(kernel) > 0 for kernel in of_loss["phi"]["kernel"])


def test_statistics_of_use_per_scale(tiny):
    figures = tiny.evaluated.metrics
    assert tiny.evaluated.collections == {}
    assert tiny.trained.collections["code_use"]["frequencies"].shape == (4, 12)
    np.testing.assert_allclose(figures["code_use/4x4"], len(np.unique(tiny.ids[:, -16:])) / 12, rtol=1e-6)
    np.testing.assert_allclose(figures["code_use"], len(np.unique(tiny.ids)) / 12, rtol=1e-6)


def test_project_revives_a_collapsed_codebook(tiny):
    """Features are near 0, so the code there takes all of them; the others come back as features."""
    quantizer = QUANTIZER | {"guard": {"decay": 0.5, "revive_below": 0.2}}
    tokenizer = base.build("multiscale_vq", TINY | {"quantizer": quantizer}, ImageSpec(4, 1))
    codebook = jnp.concatenate([jnp.zeros((1, 4)), jnp.full((11, 4), 1e3)])
    variables = {**tiny.variables, "params": {**tiny.variables["params"], "codebook": codebook}}

    @jax.jit
    def step(variables, key):
        result = tokenizer.reconstruct(variables, tiny.images, None, train=True)
        params, collections = tokenizer.project(variables["params"], result.collections, key)
        return {"params": params, **collections}, result.metrics["code_use"]

    for i in range(5):  # four steps until the unused codes are dead, one more to see the new ones used
        variables, code_use = step(variables, jax.random.key(i))
    np.testing.assert_array_equal(variables["params"]["codebook"][0], codebook[0])
    assert jnp.abs(variables["params"]["codebook"]).max() < 100 and code_use > 0.5


@pytest.mark.parametrize(
    "num_scales, num_phi, expected",
    [
        (10, 4, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),  # the published tokenizer
        (5, 4, [0, 1, 2, 2, 3]),  # a tie that float64 decides
        (3, 4, [0, 2, 3]),
        (10, 1, [0] * 10),
        (10, 10, list(range(10))),
        (4, 4, [0, 1, 2, 3]),
        (4, 2, [0, 0, 1, 1]),
    ],
)
def test_which_phi_serves_which_scale(num_scales, num_phi, expected):
    assert [multiscale_vq.phi_index(k, num_scales, num_phi) for k in range(num_scales)] == expected


def test_default_sizes_are_the_published_ones():
    tokenizer = multiscale_vq.build(multiscale_vq.Config(), ImageSpec(256, 3))
    params = nn.meta.unbox(jax.eval_shape(tokenizer.init, jax.random.key(0)))["params"]
    assert tokenizer.spec.num_tokens == 680 and tokenizer.spec.grid == (16, 16)
    assert round(sum(x.size for x in jax.tree.leaves(params)) / 1e6) == 109  # the size of VAR's released tokenizer
    assert params["phi"]["kernel"].shape == (4, 3, 3, 32, 32)


@pytest.mark.parametrize("size, levels, scales", [(8, 2, (1, 2, 3, 4)), (32, 3, (1, 2, 4, 8)), (64, 4, (1, 3, 5, 8))])
def test_other_image_sizes(size, levels, scales):
    stack = STACK | {"multipliers": (1,) * levels}
    tokenizer = base.build("multiscale_vq", TINY | {"stack": stack, "scales": scales}, ImageSpec(size, 3))
    variables = nn.meta.unbox(jax.eval_shape(tokenizer.init, jax.random.key(0)))
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    ids = jax.eval_shape(tokenizer.encode, variables, images).ids
    assert ids.shape == (2, sum(s * s for s in scales))
    assert jax.eval_shape(tokenizer.decode, variables, Tokens(ids=ids)).shape == images.shape


@pytest.mark.parametrize(
    "values, message",
    [
        ({"scales": (1, 2, 3)}, "tokenizer.scales=(1, 2, 3) must end at 4"),
        ({"scales": (4,)}, "use tokenizer 'vq'"),
        ({"scales": (1, 3, 2, 4)}, "growing"),
        ({"num_phi": 0}, "tokenizer.num_phi=0"),
        ({"phi_ratio": 0.0}, "tokenizer.phi_ratio=0.0"),
        ({"quantizer": QUANTIZER | {"channels": 0}}, "tokenizer.quantizer.channels=0"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(ConfigError) as error:
        multiscale_vq.build(parse(multiscale_vq.Config, TINY | values, "tokenizer"), ImageSpec(4, 1))
    assert message in str(error.value)
