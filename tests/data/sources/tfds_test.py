"""Prepared TFDS datasets, read without tensorflow."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxar.config import ConfigError
from jaxar.data import datasets


def _picture(index: int) -> np.ndarray:
    return np.random.RandomState(index).randint(0, 256, (6 + index, 9, 3)).astype(np.uint8)


class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Six pictures of growing height."""

    VERSION = tfds.core.Version("1.2.0")
    code_path = None

    def _info(self):
        features = {
            "picture": tfds.features.Image(shape=(None, None, 3)),
            "kind": tfds.features.ClassLabel(names=["even", "odd"]),
            "text": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(4)), "extra": self._generate_examples(range(4, 6))}

    def _generate_examples(self, part):
        for index in part:
            yield index, {"picture": Image.fromarray(_picture(index)), "kind": index % 2, "text": f"number {index}"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    Made(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


def _config(folder, **options):
    values = {"dataset": "made", "image_key": "picture", "label_key": "kind", "test_split": "extra", "image_size": 6}
    return datasets.configure({"name": "tfds", "data_dir": folder, **values, **options})


@pytest.mark.parametrize("in_memory", [False, True])
def test_examples(prepared, in_memory):
    config = _config(prepared, caption_key="text", in_memory=in_memory)
    for split, expected in (("train", range(4)), ("test", range(4, 6))):
        source = datasets.open_split(config, split)
        found = {source[index]["caption"]: source[index] for index in range(len(source))}
        assert sorted(found) == [f"number {index}" for index in expected]
        for index in expected:
            assert found[f"number {index}"]["label"] == index % 2
            assert np.array_equal(found[f"number {index}"]["image"], _picture(index))


def test_info(prepared):
    info = datasets.info(_config(prepared))
    assert info.name == "made"
    assert info.class_names == ("even", "odd")
    assert info.splits == {"train": 4, "test": 2}
    assert info.image.shape == (6, 6, 3)
    assert datasets.info(_config(prepared, dataset="made/1.2.0", train_split="train[50%:]")).splits["train"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "nothing"}, "data.dataset='nothing' is not prepared"),
        ({"dataset": "../made"}, "leaves data_dir"),
        ({"test_split": "validation"}, "data.test_split='validation'.*train, extra|extra, train"),
        ({"image_key": "image"}, "data.image_key='image'.*picture"),
        ({"label_key": "text"}, "data.label_key='text'.*kind"),
    ],
)
def test_mistakes_name_the_field(prepared, options, message):
    with pytest.raises(ConfigError, match=message):
        datasets.info(_config(prepared, **options))


def test_the_newest_version_is_taken(prepared, tmp_path):
    from jaxar.data.sources.tfds import _version_folder

    for version in ("1.9.0", "1.10.0", "0.1.0", "1.11.0-incomplete"):
        (tmp_path / "d" / version).mkdir(parents=True)
        (tmp_path / "d" / version / "dataset_info.json").touch()
    assert _version_folder(tmp_path, "d").name == "1.10.0"
