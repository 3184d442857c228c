"""Points have the law that they are asked to have, and arrive as they were drawn."""

import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.data import datasets, loader

LAW = {"means": ((-2.0, 0.0), (1.0, 3.0)), "stds": ((0.5, 0.1), (0.2, 0.2)), "labels": (0, 1)}


def config(**changes):
    return datasets.configure({"name": "points", "channels": 2, "num_classes": 2, "count": 2000, "law": LAW, **changes})


def test_each_class_has_its_law():
    batch = next(loader.eval_batches(config(count=20_000), "test", batch_size=2000))
    assert batch["image"].shape == (2000, 1, 1, 2) and batch["image"].dtype == np.float32
    points, labels = np.asarray(batch["image"])[:, 0, 0], np.asarray(batch["label"])
    for label in range(2):
        mine = points[labels == label]
        assert len(mine) == 1000
        np.testing.assert_allclose(mine.mean(0), LAW["means"][label], atol=4 * 0.5 / np.sqrt(1000))
        np.testing.assert_allclose(mine.std(0), LAW["stds"][label], rtol=0.1)


def test_an_example_is_always_the_same_and_no_other_ones():
    train, test = (datasets.open_split(config(), split) for split in ("train", "test"))
    assert np.array_equal(train[7]["image"], train[7]["image"])
    assert len({float(source[i]["image"][0, 0, 0]) for source in (train, test) for i in range(100)}) == 200
    info = datasets.info(config())
    assert (len(train), len(test)) == (info.splits["train"], info.splits["test"]) == (2000, 200)
    assert info.image.shape == (1, 1, 2) and info.num_classes == 2


@pytest.mark.parametrize("changes, message", [({"channels": 0}, "data.channels=0"), ({"count": 9}, "data.count=9")])
def test_mistakes_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_a_law_of_another_shape_is_refused():
    with pytest.raises(ConfigError, match="law.means has an entry of 2 values; the data have 3"):
        datasets.info(config(channels=3))
