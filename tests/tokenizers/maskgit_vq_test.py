"""MaskGIT's tokenizer: its network and losses against the official ones, and what its options do."""

import json
import pathlib
import types

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxar.config import ConfigError, parse
from jaxar.nn import quantize
from jaxar.tokenizers import base, maskgit_vq
from jaxar.tokenizers.base import ImageSpec, Tokens

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
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


# The official implementation. What may change legitimately: parameter paths (then change the table), the order of float
# operations (within the stored tolerance). Ids must stay.


def names(config):
    """Our path of each official module; official modules are numbered in the order in which they are called."""
    levels, blocks = range(len(config.multipliers)), range(config.num_res_blocks)
    rows = {"encoder/Conv_0": "encoder/conv_in", "encoder/Conv_1": "encoder/conv_out"}
    rows |= {"decoder/Conv_0": "decoder/conv_in", f"decoder/Conv_{len(levels)}": "decoder/conv_out"}
    rows |= {f"decoder/Conv_{k + 1}": f"decoder/upsample_{i}/conv" for k, i in enumerate(reversed(levels[1:]))}
    order = {"encoder": [f"level_{i}" for i in levels] + ["middle"]}
    order["decoder"] = ["middle"] + [f"level_{i}" for i in reversed(levels)]
    for part in ("encoder", "decoder"):
        rows[f"{part}/GroupNorm_0"] = f"{part}/norm_out"
        for number, (level, block) in enumerate((level, block) for level in order[part] for block in blocks):
            ours, official = f"{part}/{level}/block_{block}", f"{part}/ResBlock_{number}"
            rows |= {f"{official}/Conv_{i}": f"{ours}/{n}" for i, n in enumerate(("conv_1", "conv_2", "shortcut"))}
            rows |= {f"{official}/GroupNorm_{i}": f"{ours}/norm_{i + 1}" for i in (0, 1)}
    return rows


@pytest.fixture(scope="module")
def official():
    """Tolerances, stored tensors, and what the tokenizer makes of the stored images with the stored weights."""
    meta, tensors = (
        json.loads((GOLDEN / "maskgit_vqgan.json").read_text()),
        load_file(GOLDEN / "maskgit_vqgan.safetensors"),
    )
    model = meta["models"]["vqgan"]
    given = model["constructor"]
    config = maskgit_vq.Config(
        vocab_size=given["codebook_size"],
        code_channels=given["embedding_dim"],
        channels=given["filters"],
        multipliers=tuple(given["channel_multipliers"]),
        num_res_blocks=given["num_res_blocks"],
        groups=model["group_norm_groups"],
        conv_downsample=given["conv_downsample"],
        beta=given["commitment_cost"],
        entropy_weight=given["entropy_loss_ratio"],
        entropy_temperature=given["entropy_temperature"],
    )
    tokenizer = maskgit_vq.build(config, ImageSpec(tensors["in/img"].shape[1], 3))
    table, params = names(config), {}
    for name, value in tensors.items():
        if name == model["prefix"] + "quantizer/codebook":
            params["codebook"] = jnp.asarray(value)
        elif name.startswith(model["prefix"]):
            module, leaf = name.removeprefix(model["prefix"]).rsplit("/", 1)
            params[f"{table[module]}/{leaf}"] = jnp.asarray(value)
    variables = {"params": flax.traverse_util.unflatten_dict(params, sep="/")}

    @jax.jit
    def run(variables, images, ids):
        return dict(
            features=tokenizer.features(variables, images),
            ids=tokenizer.encode(variables, images).ids,
            images=tokenizer.decode_features(variables, tokenizer.quantized(variables, ids)),
            decoded=tokenizer.decode(variables, Tokens(ids=ids)),
            terms=tokenizer.reconstruct(variables, images, None, train=False),
        )

    ids = jnp.asarray(tensors["out/ids"].reshape(2, -1))
    mine = run(variables, 2 * jnp.asarray(tensors["in/img"]) - 1, ids)
    return types.SimpleNamespace(meta=meta["tensors"], tensors=tensors, **mine)


def deviation(mine, stored):
    return np.abs(np.asarray(mine) - stored).max() / stored.std()


@pytest.mark.golden
def test_features_ids_and_images_of_the_official_code(official):
    stored = official.tensors
    assert deviation(official.features, stored["out/encoded"]) < official.meta["out/encoded"]["tolerance"]["value"]
    np.testing.assert_array_equal(official.ids.reshape(2, 2, 2), stored["out/ids"])
    assert deviation((official.images + 1) / 2, stored["out/rec"]) < official.meta["out/rec"]["tolerance"]["value"]
    np.testing.assert_allclose(official.decoded, np.clip(2 * stored["out/rec"] - 1, -1, 1), atol=1e-4)


@pytest.mark.golden
def test_losses_of_the_official_code(official):
    terms, stored = official.terms, official.tensors
    np.testing.assert_allclose(terms.loss, stored["out/quantizer_loss"][0], rtol=1e-4)
    np.testing.assert_allclose(terms.metrics["entropy_loss"], stored["out/entropy_loss"][0], rtol=1e-4)
    np.testing.assert_allclose(terms.metrics["commitment_loss"], stored["out/e_latent_loss"][0], rtol=1e-4)
