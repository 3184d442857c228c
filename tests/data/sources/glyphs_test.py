"""Glyphs: a pure function of seed, split and index, readable, and truthfully captioned."""

import dataclasses

import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.data import datasets
from jaxar.data.sources import glyphs


def _source(split="train", **options):
    return datasets.open_split(datasets.configure({"name": "glyphs", **options}), split)


def _glyph(**changes):
    return dataclasses.replace(
        glyphs.random_glyph(np.random.default_rng(0), glyphs.CHARACTERS.index("G")),
        font="DejaVuSerif.ttf",
        family="serif",
        stroke=0,
        tilt=0.0,
        height=0.7,
        offset=(0.0, 0.0),
        foreground="red",
        background="white",
        foreground_rgb=(200.0, 0.0, 0.0),
        background_rgb=(255.0, 255.0, 255.0),
        **changes,
    )


def test_an_example_depends_on_seed_split_and_index_alone():
    first, again = _source(), _source()
    for index in (5, 3, 5):
        assert np.array_equal(first[index]["image"], again[index]["image"])
        assert first[index]["caption"] == again[index]["caption"]
    assert not np.array_equal(first[5]["image"], _source(seed=1)[5]["image"])
    assert np.array_equal(first[5]["image"], _source(train_size=10)[5]["image"])


def test_no_test_picture_is_a_training_picture():
    pictures = {split: {_source(split)[i]["image"].tobytes() for i in range(300)} for split in ("train", "test")}
    assert len(pictures["train"]) == len(pictures["test"]) == 300
    assert not pictures["train"] & pictures["test"]


def test_classes_are_balanced_and_named():
    info = datasets.info(datasets.configure({"name": "glyphs", "train_size": 72, "test_size": 36}))
    assert info.num_classes == len(info.class_names) == 36
    assert info.splits == {"train": 72, "test": 36}
    labels = [_source()[index]["label"] for index in range(72)]
    assert np.array_equal(np.bincount(labels), np.full(36, 2))


@pytest.mark.parametrize("size", [32, 64])
def test_every_glyph_can_be_seen(size):
    source = _source(image_size=size)
    for index in range(72):
        image = source[index]["image"]
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        luminance = image @ np.array([0.299, 0.587, 0.114])
        assert np.ptp(luminance) > 45
        border = np.concatenate([luminance[0], luminance[-1], luminance[:, 0], luminance[:, -1]])
        assert np.mean(np.abs(border - np.median(border)) < 6) > 0.95  # nothing is cut off


def test_drawn_upright_in_its_colours():
    image = glyphs.render(_glyph(), 64).astype(int)
    assert image.min(axis=(0, 1)).tolist() == [200, 0, 0]
    assert image.max(axis=(0, 1)).tolist() == [255, 255, 255]
    rows = np.flatnonzero((image[:, :, 1] < 128).any(axis=1))
    assert len(rows) == pytest.approx(0.7 * 64, abs=3)
    assert (rows[0] + rows[-1]) / 2 == pytest.approx(31.5, abs=1)
    partly = (image[:, :, 1] > 20) & (image[:, :, 1] < 235)
    assert partly.sum() > 50  # anti-aliased


def test_tilt_turns_to_the_left_and_offset_moves_right_and_down():
    bar = dataclasses.replace(_glyph(), character="I", font="DejaVuSans.ttf", height=0.5)
    tilted = glyphs.render(dataclasses.replace(bar, tilt=30.0), 64)[:, :, 1] < 128
    top, bottom = (np.flatnonzero(rows.any(axis=0)).mean() for rows in (tilted[:25], tilted[40:]))
    assert top < bottom - 4
    moved = glyphs.render(dataclasses.replace(bar, offset=(1.0, 0.5)), 64)[:, :, 1] < 128
    rows, columns = np.nonzero(moved)
    assert columns.mean() > 55 and 36 < rows.mean() < 48


def test_stroke_thickens():
    ink = [(glyphs.render(dataclasses.replace(_glyph(), stroke=s), 64)[:, :, 1] < 128).mean() for s in (0, 3, 8)]
    assert ink[0] < ink[1] < ink[2]


def test_captions_say_what_is_drawn():
    assert glyphs.caption(_glyph()) == "a red serif letter G on a white background"
    tilted = dataclasses.replace(_glyph(), stroke=8, tilt=20.0, font="DejaVuSerif-Italic.ttf")
    assert glyphs.caption(tilted) == "a bold red italic serif letter G tilted left on a white background"
    digit = dataclasses.replace(_glyph(), character="7", tilt=-20.0, foreground="orange", background="orange")
    assert glyphs.caption(digit) == "an orange serif digit 7 tilted right on an orange background"


def test_captions_follow_the_pictures():
    source = _source()
    for index in range(60):
        words = source[index]["caption"].split()
        character = words[words.index("letter" if "letter" in words else "digit") + 1]
        assert glyphs.CHARACTERS[source[index]["label"]] == character
        corner = np.median(source[index]["image"][[0, 0, -1, -1], [0, -1, 0, -1]].astype(int), axis=0)
        background = words[words.index("background") - 1]
        assert np.abs(corner - glyphs.COLORS[background]).max() <= 15


@pytest.mark.parametrize("options", [{"train_size": 0}, {"seed": -1}, {"image_size": 0}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        datasets.configure({"name": "glyphs", **options})
