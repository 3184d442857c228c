"""From a configuration section to a dataset, and the mistakes on the way."""

import subprocess
import sys

import pytest

from jaxar import lookup
from jaxar.config import ConfigError
from jaxar.data import datasets
from jaxar.data.base import DataConfig
from jaxar.methods.base import TextSpec


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "data.name is missing; known datasets: digits, folder, glyphs, imagenet, points, tfds"),
        ({"name": "digit"}, "unknown dataset 'digit'.*did you mean 'digits'"),
        ({"name": "digits", "imagesize": 8}, "unknown key 'data.imagesize'.*did you mean 'data.image_size'"),
        ({"name": "digits", "flip": "yes"}, "data.flip='yes' has type str"),
        ({"name": "digits", "crop": "centre"}, "unknown value of data.crop 'centre'.*did you mean 'center'"),
        ({"name": "digits", "shift": 8}, r"data.shift=8 must be in \[0, image_size=8\)"),
        ({"name": "digits", "crop_scale": (0.9, 0.5)}, "data.crop_scale="),
        ({"name": "digits", "num_threads": 0}, "data.num_threads=0"),
        ({"name": "digits", "image_size": 0}, "data.image_size=0"),
        ({"name": "digits", "cache": "c", "shift": 1}, "data.cache='c' fixes crop, shift and text"),
        ({"name": "folder"}, "data.root is missing"),
        ({"name": "folder", "root": ".", "test_fraction": 1.0}, "data.test_fraction=1.0"),
        ({"name": "folder", "root": ".", "channels": 4}, "data.channels=4"),
    ],
)
def test_mistakes_are_one_line_that_names_the_field(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        datasets.configure(values)
    assert "\n" not in str(caught.value)


def test_every_source_keeps_the_interface():
    for name in lookup.names("jaxar.data.sources"):
        module = lookup.module("jaxar.data.sources", name, "dataset")
        assert issubclass(module.Config, DataConfig)
        assert module.Config.__dataclass_fields__["name"].default == name
        assert len(module.__doc__.strip().splitlines()) == 1
        assert callable(module.info) and callable(module.open)


def test_configs_are_hashable(digits):
    assert hash(digits()) == hash(digits())
    assert digits() != digits(shift=1)


def test_data_dir_comes_from_the_option_then_the_environment(monkeypatch):
    monkeypatch.setenv("JAXAR_DATA_DIR", "/from/environment")
    assert str(datasets.configure({"name": "digits"}).directory) == "/from/environment"
    assert str(datasets.configure({"name": "digits", "data_dir": "/given"}).directory) == "/given"
    monkeypatch.delenv("JAXAR_DATA_DIR")
    monkeypatch.setenv("HOME", "/home/me")
    assert str(datasets.configure({"name": "digits"}).directory) == "/home/me/.cache/jaxar"


def test_unknown_splits_and_missing_captions_are_refused(digits):
    with pytest.raises(ConfigError, match="unknown split 'val'; known: test, train"):
        datasets.open_split(digits(), "val")
    with pytest.raises(ConfigError, match=r"'digits' has none; remove data.text"):
        datasets.info(digits(text={"length": 4, "width": 8}))


def test_text_brings_captions_as_examples():
    info = datasets.info(datasets.configure({"name": "glyphs", "text": {"length": 4, "width": 8}}))
    assert info.text == TextSpec(4, 8)
    assert info.captions[10].split()[-1] == "background"
    assert " letter A " in f"{info.captions[10]} "
    assert datasets.info(datasets.configure({"name": "glyphs"})).captions == ()


_USE_EVERYTHING = """
import sys, pathlib, tempfile
import numpy as np
from PIL import Image
root = pathlib.Path(tempfile.mkdtemp())
for split in ("train", "val"):
    for synset in ("n00000001", "n00000002"):
        (root / "pictures" / split / synset).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "pictures" / split / synset / "1.png")
from jaxar.data import loader, datasets, cache, encoding, commands, pictures
pictured = {"root": str(root / "pictures"), "image_size": 8}
sources = {
    "digits": {}, "glyphs": {}, "tfds": {"dataset": "digits"}, "folder": pictured, "imagenet": pictured,
    "points": {},
}
from jaxar import lookup
assert set(sources) == set(lookup.names("jaxar.data.sources"))
for name, options in sources.items():
    config = datasets.configure({"name": name, "data_dir": sys.argv[1], **options})
    loader.training_set(config, batch_size=2, seed=0)[0]
    next(loader.eval_batches(config, "test", batch_size=2))
commands.inspect(config, root / "grid.png")
print(sorted({name.split(".")[0] for name in sys.modules} & {"tensorflow", "torch"}))
"""


def test_no_source_imports_tensorflow_or_torch(data_dir):
    result = subprocess.run(
        [sys.executable, "-c", _USE_EVERYTHING, data_dir], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
