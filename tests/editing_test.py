"""Completing a picture: which tokens are known, which pixels stay, and what the masks of the command mean."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxar import editing, sampling, settings
from jaxar.config import ConfigError
from jaxar.partition import single_device_mesh
from jaxar.tokenizers.base import ImageSpec, TokenSpec
from tests.conformance import cases

GREY = ImageSpec(8, 1)


def spec_of(*sides):
    return TokenSpec("discrete", tuple((s, s) for s in sides), channels=1, vocab_size=2)


def test_a_token_is_known_if_every_pixel_of_its_cell_stays():
    keep = jnp.ones((2, 8, 8), bool).at[0, 2, 5].set(False).at[1, :, :4].set(False)
    known = np.asarray(editing.known_tokens(keep, spec_of(4))).reshape(2, 4, 4)
    expected = np.ones((2, 4, 4), bool)
    expected[0, 1, 2] = expected[1, :, :2] = False
    np.testing.assert_array_equal(known, expected)


def test_tokens_of_coarse_scales_cover_more():
    keep = jnp.ones((1, 8, 8), bool).at[0, 0, 7].set(False)
    known = np.asarray(editing.known_tokens(keep, spec_of(1, 3, 4)))[0]
    assert known.shape == (1 + 9 + 16,) and not known[0]
    np.testing.assert_array_equal(np.flatnonzero(~known[1:10]), [2])
    np.testing.assert_array_equal(np.flatnonzero(~known[10:]), [3])


def test_boxes_and_what_surrounds_them():
    box = editing.read_mask("0,0.25,0.5,1", GREY)
    expected = np.zeros((8, 8), bool)
    expected[0:4, 2:8] = True
    np.testing.assert_array_equal(box, expected)
    np.testing.assert_array_equal(editing.read_mask("outside:0,0.25,0.5,1", GREY), ~expected)


def test_light_pixels_of_a_file_are_drawn(tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[3:, :2] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(editing.read_mask(str(tmp_path / "mask.png"), GREY), pixels > 0)


@pytest.mark.parametrize("text", ["0,0,1", "a,b,c,d", "0.5,0,0.5,1", "0,0,1.5,1", "outside:", "0,-0.5,1,1"])
def test_malformed_boxes_are_refused(text):
    with pytest.raises(ConfigError, match=f"--mask={text} must be an image file, or top,left,bottom,right"):
        editing.read_mask(text, GREY)


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png"), pixels


def test_requests_that_cannot_be_met_are_refused(picture, tmp_path):
    path, _ = picture
    case = cases.case("maskgit_digits")
    ask = functools.partial(editing.request, method=case.method, task=case.task, count=2)
    with pytest.raises(ConfigError, match="AR cannot keep parts of a picture; use a masked method"):
        editing.request(path, "0,0,1,1", cases.case("ar_digits").method, case.task, 2)
    with pytest.raises(ConfigError, match="AR cannot keep tokens of a given image; use a masked method"):
        cases.case("ar_digits").method.complete({}, None, None, {}, None, None)
    with pytest.raises(ConfigError, match="--image=.*no.png cannot be read"):
        ask(str(tmp_path / "no.png"), "0,0,1,1")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ConfigError, match="--mask=.*text.png is not a readable image"):
        ask(path, str(tmp_path / "text.png"))
    with pytest.raises(ConfigError, match="--mask=0,0,0.01,0.01 marks no pixel"):
        ask(path, "0,0,0.01,0.01")


@pytest.mark.parametrize("name", ["maskgit_digits", pytest.param("hmar_digits", marks=pytest.mark.slow)])
def test_what_is_not_masked_stays_and_the_rest_is_drawn_per_sample(name, picture):
    """Through the sampler of the command, with random weights."""
    path, pixels = picture
    case = cases.case(name)
    plan = case.plan()
    variables = {**case.frozen, **case.state(plan).variables()}
    draw = sampling.Sampler(
        case.method, case.task.tokenizer, settings.build_sampling(case.config), single_device_mesh()
    )

    def images(mask, label, ids=(0, 1, 2, 3), seed=0):
        cond = {"label": np.full(len(ids), label, np.int32)}
        request = editing.request(path, mask, case.method, case.task, len(ids))
        return draw(variables, cond | request, np.array(ids), seed)

    half = images("0,0,0.5,1", label=3)
    assert half.shape == (4, 8, 8, 1)
    np.testing.assert_array_equal(half[:, 4:, :, 0], np.broadcast_to(pixels[4:], (4, 4, 8)))
    assert len({image.tobytes() for image in half}) > 1
    np.testing.assert_array_equal(images("0,0,0.5,1", label=3, ids=(2, 3, 0, 1)), half[[2, 3, 0, 1]])
    assert (images("0,0,0.5,1", label=3, seed=1) != half).any()
    outside = images("outside:0.5,0,1,1", label=3)
    np.testing.assert_array_equal(outside, half)


def test_known_tokens_are_the_ones_of_the_picture():
    """A method that returns its tokens: what it was told to keep is what the tokenizer made of the picture."""
    case = cases.case("maskgit_digits")
    tokenizer, seen = case.task.tokenizer, {}

    class Keeps:
        def complete(self, variables, tokens, known, cond, keys, options):
            seen.update(tokens=tokens, known=known, cond=cond)
            return tokens

    image = jnp.linspace(-1, 1, 64).reshape(1, 8, 8, 1)
    keep = jnp.ones((1, 8, 8), bool).at[:, :, :2].set(False)
    cond = {"label": jnp.array([3]), "image": image, "keep": keep}
    result = editing.complete(Keeps(), tokenizer, case.frozen, cond, jax.random.split(jax.random.key(0), 1), None)
    tokens = tokenizer.encode(case.frozen["tokenizer"], image, None)
    np.testing.assert_array_equal(seen["tokens"].ids, tokens.ids)
    np.testing.assert_array_equal(seen["known"].reshape(4, 4), np.arange(4)[None].repeat(4, 0) > 0)
    assert list(seen["cond"]) == ["label"]
    np.testing.assert_array_equal(result[:, :, 2:], image[:, :, 2:])
    np.testing.assert_allclose(
        result[:, :, :2], tokenizer.decode(case.frozen["tokenizer"], tokens)[:, :, :2], atol=1e-5
    )
