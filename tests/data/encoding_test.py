"""Encoding a dataset and verifying the result, with tokenizers in closed form."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.data import augment, cache, datasets, encoding, loader
from jaxar.tokenizers.base import TokenSpec

GREY = TokenSpec("discrete", ((8, 8),), 1, vocab_size=17)
LATENT = TokenSpec("continuous", ((2, 2),), 16)


def grey_encode(images):
    return {"ids": jnp.round((images + 1) * 8).astype(jnp.int32).reshape(len(images), 64)}


def grey_decode(tokens):
    return (tokens["ids"] / 8 - 1).reshape(-1, 8, 8, 1)


def latent_encode(images):
    patches = images.reshape(-1, 2, 4, 2, 4).swapaxes(2, 3).reshape(-1, 4, 16)
    return {"mean": patches, "std": jnp.full_like(patches, 0.25)}


def latent_decode(tokens):
    return tokens["latents"].reshape(-1, 2, 2, 4, 4).swapaxes(2, 3).reshape(-1, 8, 8, 1)


def _encode(folder, config, encode=grey_encode, tokens=GREY, **options):
    options = {"batch_size": 50, "shard_size": 150, "tokenizer": "grey", "variants": "flip", **options}
    return encoding.encode_split(folder / "test", config, "test", encode, tokens=tokens, **options)


@pytest.mark.parametrize(("variants", "count"), [("image", 1), ("flip", 2), ("ten_crop", 10)])
def test_every_variant_of_every_example_is_encoded(digits, tmp_path, variants, count):
    metadata = _encode(tmp_path, digits(), variants=variants)
    assert (metadata.num_examples, metadata.num_shards, metadata.dataset) == (360, 3, "digits")
    stored, source = cache.TokenCache(tmp_path / "test"), datasets.open_split(digits(), "test")
    for index in (0, 149, 150, 359):
        images = augment.variants(source[index]["image"], 8, variants)
        assert stored[index]["ids"].shape == (count, 64) and stored[index]["ids"].dtype == np.uint16
        assert np.array_equal(stored[index]["ids"].reshape(images.shape), np.round(images / 255 * 16))
        assert stored[index]["label"] == source[index]["label"]


@pytest.mark.parametrize(("flip", "count"), [(False, 1), (True, 2)])
def test_mirror_images_are_encoded_where_training_mirrors(digits, tmp_path, flip, count):
    _encode(tmp_path, digits(flip=flip), variants=None)
    assert cache.TokenCache(tmp_path / "test")[0]["ids"].shape == (count, 64)


def test_the_loader_reads_what_was_encoded(digits, tmp_path):
    _encode(tmp_path, digits())
    batch = next(loader.eval_batches(digits(cache=str(tmp_path)), "test", batch_size=8))
    images = next(loader.eval_batches(digits(), "test", batch_size=8))["image"]
    assert np.allclose(grey_decode(batch), images, atol=1 / 16)


def test_latents_keep_their_posterior(digits, tmp_path):
    _encode(tmp_path, digits(), latent_encode, LATENT)
    stored = cache.TokenCache(tmp_path / "test")[3]
    assert stored["mean"].shape == stored["std"].shape == (2, 4, 16)
    assert np.all(stored["std"] == 0.25)
    batch = next(loader.eval_batches(digits(cache=str(tmp_path)), "test", batch_size=4))
    images = next(loader.eval_batches(digits(), "test", batch_size=4))["image"]
    assert np.allclose(latent_decode(batch), images, atol=1e-3)


def test_an_interrupted_encode_goes_on_where_it_stopped(digits, tmp_path):
    calls = []

    def dies(images):
        calls.append(len(images))
        if len(calls) == 5:  # in the second shard
            raise KeyboardInterrupt
        return grey_encode(images)

    with pytest.raises(KeyboardInterrupt):
        _encode(tmp_path, digits(), dies)
    with pytest.raises(ConfigError, match="is not complete"):
        datasets.info(digits(cache=str(tmp_path)))
    before = (tmp_path / "test" / "ids-00000.npy").stat().st_mtime_ns
    calls.clear()
    _encode(tmp_path, digits(), lambda images: calls.append(len(images)) or grey_encode(images))
    assert calls == [100] * 5  # three of the second shard, two of the third; one shape throughout
    assert (tmp_path / "test" / "ids-00000.npy").stat().st_mtime_ns == before
    assert encoding.verify(tmp_path / "test", digits(), grey_encode, grey_decode, tokenizer="grey")["checked"] == 8


def test_a_finished_encode_is_not_repeated(digits, tmp_path):
    _encode(tmp_path, digits())
    assert _encode(tmp_path, digits(), lambda images: 1 / 0).num_examples == 360


def test_captions_are_encoded_with_the_images(tmp_path):
    config = datasets.configure(
        {"name": "glyphs", "image_size": 16, "test_size": 5, "text": {"length": 14, "width": 32}}
    )
    spec = TokenSpec("discrete", ((1, 1),), 1, vocab_size=2)
    _encode(tmp_path, config, lambda images: {"ids": jnp.zeros((len(images), 1), jnp.int32)}, spec)
    cached = datasets.configure({"name": "glyphs", "image_size": 16, "cache": str(tmp_path)})
    batch, images = (next(loader.eval_batches(c, "test", batch_size=5)) for c in (cached, config))
    assert np.allclose(batch["text"], images["text"], atol=1e-3)
    assert np.array_equal(batch["text_mask"], images["text_mask"])
    assert datasets.info(cached).captions == datasets.info(config).captions != ()


def test_stored_text_is_taken_instead(digits, tmp_path):
    features = np.random.RandomState(0).standard_normal((360, 3, 4)).astype(np.float16)
    np.save(tmp_path / "features.npy", features)
    np.save(tmp_path / "mask.npy", np.ones((360, 3), bool))
    _encode(tmp_path, digits(), text_folder=tmp_path)
    batch = next(loader.eval_batches(digits(cache=str(tmp_path)), "test", batch_size=360))
    assert np.array_equal(batch["text"], features.astype(np.float32))
    np.save(tmp_path / "features.npy", features[:9])
    np.save(tmp_path / "mask.npy", np.ones((9, 3), bool))
    with pytest.raises(ConfigError, match="text features of 9 examples, the dataset has 360"):
        _encode(tmp_path / "other", digits(), text_folder=tmp_path)


@pytest.mark.parametrize(
    ("encode", "tokens", "message"),
    [
        (lambda x: {"ids": grey_encode(x)["ids"] + 1}, GREY, r"\[1, 17\].*below 17"),
        (lambda x: {"ids": grey_encode(x)["ids"][:, :9]}, GREY, r"shape \(9,\)"),
        (lambda x: {"mean": latent_encode(x)["mean"] * 1e5}, LATENT, "mean of shape .* up to 1e\\+05"),
        (lambda x: {"mean": latent_encode(x)["mean"][:, :3]}, LATENT, r"shape \(3, 16\)"),
    ],
)
def test_tokens_that_contradict_the_spec_are_refused(digits, tmp_path, encode, tokens, message):
    with pytest.raises(ConfigError, match=message):
        _encode(tmp_path, digits(), encode, tokens)


def test_verify_reports_the_fidelity(digits, tmp_path):
    _encode(tmp_path, digits())
    report = encoding.verify(tmp_path / "test", digits(), grey_encode, grey_decode, tokenizer="grey", num_examples=5)
    assert (report["num_examples"], report["checked"], report["files"]) == (360, 5, 6)
    assert report["psnr"] == report["psnr_fresh"] > 50
    _encode(tmp_path / "latents", digits(), latent_encode, LATENT)
    report = encoding.verify(tmp_path / "latents" / "test", digits(), latent_encode, latent_decode, tokenizer="grey")
    assert report["psnr"] > 60


def test_verify_catches_another_tokenizer(digits, tmp_path):
    _encode(tmp_path, digits())
    folder = tmp_path / "test"
    with pytest.raises(ConfigError, match="made by tokenizer 'grey', not 'other'"):
        encoding.verify(folder, digits(), grey_encode, grey_decode, tokenizer="other")

    def inverted_encode(images):
        return grey_encode(-images)

    def inverted_decode(tokens):
        return -grey_decode(tokens)

    with pytest.raises(ConfigError, match=r"decodes to .* dB, tokens made afresh to .* dB"):
        encoding.verify(folder, digits(), inverted_encode, inverted_decode, tokenizer="grey")


def test_verify_catches_other_images_and_damage(digits, tmp_path, monkeypatch):
    _encode(tmp_path, digits())
    folder, source = tmp_path / "test", datasets.open_split(digits(), "test")

    def check():
        encoding.verify(folder, digits(), grey_encode, grey_decode, tokenizer="grey")

    with monkeypatch.context() as patch:
        patch.setattr(encoding.datasets, "open_split", lambda config, split: source._examples[:-1])
        with pytest.raises(ConfigError, match="holds 360 examples, the dataset 359"):
            check()
        patch.setattr(encoding.datasets, "open_split", lambda config, split: source._examples[::-1])
        with pytest.raises(ConfigError, match="other labels"):
            check()
        moved = [{**e, "image": augment.shift(e["image"], 1, 1)} for e in source._examples]
        patch.setattr(encoding.datasets, "open_split", lambda config, split: moved)
        with pytest.raises(ConfigError, match="dB"):
            check()
    check()
    path = folder / "ids-00002.npy"
    path.write_bytes(path.read_bytes()[:-2] + b"\x01\x00")
    with pytest.raises(ConfigError, match="has changed"):
        check()
