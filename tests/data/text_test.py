"""Caption features: which words, in which order, can be read back."""

import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.data import text
from jaxar.methods.base import TextSpec

SPEC = TextSpec(length=6, width=256)


def test_padded_on_the_left_with_the_mask():
    features, mask = text.features("a red letter", SPEC)
    assert features.shape == (6, 256) and features.dtype == np.float32
    assert mask.tolist() == [False, False, False, True, True, True]
    assert np.all(features[:3] == 0)
    assert np.mean(features[3:] ** 2) == pytest.approx(1, abs=0.15)


def test_words_and_places_can_be_read_back():
    features, _ = text.features("one two three", SPEC)
    words = np.stack([text.direction(f"word {w}", 256) for w in ("one", "two", "three", "four")])
    places = np.stack([text.direction(f"place {p}", 256) for p in range(6)])
    assert np.argmax(features[3:] @ words.T, axis=1).tolist() == [0, 1, 2]
    assert np.argmax(features[3:] @ places.T, axis=1).tolist() == [0, 1, 2]


def test_order_and_case_count():
    first, second = (text.features(caption, SPEC)[0] for caption in ("red on blue", "blue on red"))
    assert not np.array_equal(first, second)
    assert not np.array_equal(text.features("a", SPEC)[0], text.features("A", SPEC)[0])


def test_the_hash_is_fixed():
    # Models are trained on these numbers (the bits of SHAKE-256, 7db1...): they may never change.
    assert text.direction("word red", 12).tolist() == [-1, 1, 1, 1, 1, 1, -1, 1, 1, -1, 1, 1]


def test_directions_are_nearly_orthogonal():
    vectors = np.stack([text.direction(f"word {i}", 1000) for i in range(50)])
    gram = vectors @ vectors.T / 1000
    assert np.allclose(np.diag(gram), 1)
    assert np.abs(gram - np.eye(50)).max() < 0.15


def test_long_captions_keep_their_first_words_and_empty_ones_none():
    long = text.features("a b c d e f g h", SPEC)
    assert np.array_equal(long[0], text.features("a b c d e f", SPEC)[0]) and long[1].all()
    assert not text.features("", SPEC)[1].any()


def _store(folder, features, mask):
    np.save(folder / "features.npy", features)
    np.save(folder / "mask.npy", mask)


def test_stored_features(tmp_path):
    features = np.random.RandomState(0).standard_normal((3, 4, 5)).astype(np.float16)
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    _store(tmp_path, features, mask)
    stored = text.StoredFeatures(tmp_path)
    assert len(stored) == 3 and stored.spec == TextSpec(4, 5)
    assert stored[1]["text"].dtype == np.float32
    assert np.array_equal(stored[1]["text"], features[1].astype(np.float32))
    assert stored[0]["text_mask"].tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("features", "mask", "message"),
    [
        (np.zeros((3, 4, 5)), np.ones((3, 3), bool), "shapes"),
        (np.zeros((3, 4)), np.ones((3, 4), bool), "shapes"),
        (np.zeros((1, 2, 5)), np.ones((1, 2), np.int32), "int32"),
        (np.zeros((1, 2, 5)), np.array([[True, False]]), "padded on the left"),
    ],
)
def test_stored_features_that_do_not_fit_are_refused(tmp_path, features, mask, message):
    _store(tmp_path, features, mask)
    with pytest.raises(ConfigError, match=message):
        text.StoredFeatures(tmp_path)
    (tmp_path / "mask.npy").unlink()
    with pytest.raises(ConfigError, match=r"mask\.npy are missing"):
        text.StoredFeatures(tmp_path)
