"""Token caches: complete or refused, and resumable."""

import dataclasses
import json

import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.data import cache, datasets, loader
from jaxar.methods.base import TextSpec
from jaxar.tokenizers.base import ImageSpec, TokenSpec

TOKENS = TokenSpec("discrete", ((2, 3),), 4, vocab_size=50)
PLAN = cache.Metadata(
    source="digits",
    dataset="digits",
    split="train",
    num_examples=7,
    image=ImageSpec(8, 1),
    class_names=("a", "b"),
    variants="flip",
    tokens=TOKENS,
    tokenizer="abc",
    text=None,
    captions=(),
    shard_size=3,
)


def _arrays():
    ids = np.arange(7 * 2 * 6).reshape(7, 2, 6) % 50
    return {"ids": ids.astype(np.uint16), "label": np.arange(7, dtype=np.int32) % 2}


def _shard(index):
    return {name: values[PLAN.shard(index).start : PLAN.shard(index).stop] for name, values in _arrays().items()}


def _config(folder, **options):
    return datasets.configure({"name": "digits", "cache": str(folder), **options})


@pytest.fixture
def written(tmp_path):
    cache.write(tmp_path / "train", PLAN, _arrays())
    return tmp_path


def test_what_is_written_is_read_back(written):
    stored = cache.TokenCache(written / "train")
    assert len(stored) == 7
    for index in range(7):
        assert np.array_equal(stored[index]["ids"], _arrays()["ids"][index])
        assert stored[index]["label"] == index % 2
    assert dataclasses.replace(stored.metadata, files=()) == PLAN


def test_files_are_few_and_plain(written):
    names = sorted(path.name for path in (written / "train").iterdir())
    assert names == [*(f"{a}-0000{i}.npy" for a in ("ids", "label") for i in range(3)), "metadata.json"]
    assert np.array_equal(np.load(written / "train" / "ids-00002.npy"), _arrays()["ids"][6:])


def test_info_comes_from_the_cache(written):
    info = datasets.info(_config(written))
    assert (info.image, info.num_classes, info.class_names) == (ImageSpec(8, 1), 2, ("a", "b"))
    assert (info.splits, info.tokens, info.tokenizer) == ({"train": 7}, TOKENS, "abc")
    cache.write(written / "test", dataclasses.replace(PLAN, split="test"), _arrays())
    assert datasets.info(_config(written)).splits == {"train": 7, "test": 7}


def test_batches_hold_tokens(written):
    config = _config(written)
    ids = _arrays()["ids"]
    seen = set()
    for batch in (loader.training_set(config, batch_size=7, seed=0)[step] for step in range(8)):
        assert batch["ids"].dtype == np.int32 and batch["ids"].shape == (7, 6)
        order = [int(np.flatnonzero((ids == row).all(axis=2).any(axis=1))[0]) for row in batch["ids"]]
        assert sorted(order) == list(range(7))
        assert np.array_equal(batch["label"], np.array(order) % 2)
        seen |= {tuple(row) for row in batch["ids"]}
    assert len(seen) == 14  # both variants of all
    first = next(loader.eval_batches(config, "train", batch_size=7))
    assert np.array_equal(first["ids"], ids[:, 0])


def test_text_travels_with_the_tokens(tmp_path):
    text = np.random.RandomState(0).standard_normal((7, 3, 4)).astype(np.float16)
    mask = np.tile([False, True, True], (7, 1))
    plan = dataclasses.replace(PLAN, text=TextSpec(3, 4), captions=("one",))
    cache.write(tmp_path / "train", plan, {**_arrays(), "text": text, "text_mask": mask})
    batch = next(loader.eval_batches(_config(tmp_path), "train", batch_size=7))
    assert batch["text"].dtype == np.float32 and np.array_equal(batch["text"], text.astype(np.float32))
    assert np.array_equal(batch["text_mask"], mask)
    assert datasets.info(_config(tmp_path)).text == TextSpec(3, 4)
    assert datasets.info(_config(tmp_path)).captions == ("one",)


def test_an_unfinished_cache_is_refused_and_goes_on(tmp_path):
    folder = tmp_path / "train"
    assert cache.start(folder, PLAN) == [0, 1, 2]
    cache.write_shard(folder, PLAN, 1, _shard(1))
    with pytest.raises(ConfigError, match=r"is not complete.*again to finish it"):
        datasets.info(_config(tmp_path))
    with pytest.raises(ConfigError, match="lacks 2 of 3 shards"):
        cache.finish(folder)
    assert cache.start(folder, PLAN) == [0, 2]
    for index in (0, 2):
        cache.write_shard(folder, PLAN, index, _shard(index))
    assert cache.start(folder, PLAN) == []
    cache.finish(folder)
    assert cache.start(folder, PLAN) == []
    assert np.array_equal(cache.TokenCache(folder)[5]["ids"], _arrays()["ids"][5])


def test_a_shard_that_was_cut_off_is_written_again(tmp_path, monkeypatch):
    folder = tmp_path / "train"
    cache.start(folder, PLAN)
    save = np.save

    def die(file, values, **options):
        if values.ndim == 1:  # after the ids, in the middle of the labels
            file.write(b"half")
            raise KeyboardInterrupt
        save(file, values, **options)

    with monkeypatch.context() as patch:
        patch.setattr(cache.np, "save", die)
        with pytest.raises(KeyboardInterrupt):
            cache.write_shard(folder, PLAN, 0, _shard(0))
    assert not (folder / "label-00000.npy").exists()
    assert cache.start(folder, PLAN) == [0, 1, 2]


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_do_not_mix(tmp_path, finished):
    folder = tmp_path / "train"
    if finished:
        cache.write(folder, PLAN, _arrays())
    else:
        cache.start(folder, PLAN)
    with pytest.raises(ConfigError, match="holds a cache with tokenizer='abc', not 'other'; remove it"):
        cache.start(folder, dataclasses.replace(PLAN, tokenizer="other"))
    with pytest.raises(ConfigError, match="holds a cache with variants='flip'"):
        cache.start(folder, dataclasses.replace(PLAN, variants="image"))


def test_missing_and_foreign_caches_are_refused(written, tmp_path_factory):
    with pytest.raises(ConfigError, match=r"does not exist; write it with `python -m jaxar.encode`"):
        datasets.info(_config(tmp_path_factory.mktemp("none")))
    with pytest.raises(ConfigError, match=r"test does not exist"):
        datasets.open_split(_config(written), "test")
    with pytest.raises(ConfigError, match=r"data.image_size=16, but .* was made with 8"):
        datasets.info(_config(written, image_size=16))
    with pytest.raises(ConfigError, match=r"data.name='glyphs', but .* was made with 'digits'"):
        datasets.info(datasets.configure({"name": "glyphs", "cache": str(written), "image_size": 8}))


def test_damage_is_found(written):
    folder, path = written / "train", written / "train" / "ids-00001.npy"
    whole = path.read_bytes()
    cache.check_files(folder)
    path.write_bytes(whole[:-1])
    with pytest.raises(ConfigError, match=rf"ids-00001.npy has {len(whole) - 1} bytes, {len(whole)} were written"):
        datasets.open_split(_config(written), "train")
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ConfigError, match=r"ids-00001.npy has changed since"):
        cache.check_files(folder)
    path.unlink()
    with pytest.raises(ConfigError, match=r"ids-00001.npy has None bytes|is missing"):
        cache.read_metadata(folder)


def test_damaged_metadata_is_named(written):
    path = written / "train" / "metadata.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(ConfigError, match=r"metadata.json is damaged"):
        datasets.info(_config(written))
    path.write_text(json.dumps({"version": 2}))
    with pytest.raises(ConfigError, match=r"metadata.json"):
        datasets.info(_config(written))


def test_a_shard_of_another_length_is_our_mistake(tmp_path):
    cache.start(tmp_path / "train", PLAN)
    with pytest.raises(ValueError, match="shard 0 has 2 rows of 'ids', expected 3"):
        cache.write_shard(tmp_path / "train", PLAN, 0, {"ids": np.zeros((2, 2, 6), np.uint16)})
