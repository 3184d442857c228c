"""Stored pairs: what is stored is what a roll-out gives, after an interruption too, and other pairs are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxar import cli, experiment, pairs, sampling
from jaxar.config import ConfigError
from jaxar.data import cache, datasets, loader
from tests.conftest import CONFIGS

NUM = {"train": 40, "test": 10}
SIZES = {"batch_size": 16, "shard_size": 16}


@pytest.fixture(scope="module")
def config(ar_run):
    options = (f"--config.teacher.from_={ar_run}", "--config.method.flow_steps=8", "--config.method.starts=(0,8)")
    return cli.load_config(f"{CONFIGS}/dd1_digits.py:smoke", options)


@pytest.fixture(scope="module")
def store(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "store"
    pairs.make(config, folder, NUM, **SIZES)
    return folder


@pytest.fixture
def setup(config, store, tmp_path):
    """A student's training that reads the store."""
    return experiment.prepare(reading(config, store), tmp_path / "student")


def reading(config, store, **method):
    data = {**config["data"], "cache": str(store)}
    return {**config, "data": data, "method": {**config["method"], **method}}


def test_stored_pairs_are_what_the_teacher_makes_of_their_noise(setup):
    batch = next(loader.train_batches(setup.data, batch_size=16, seed=0, mesh=setup.mesh))
    noise, ids = jax.jit(setup.method.pair)(setup.frozen, batch, None)
    np.testing.assert_array_equal(ids, batch["ids"])
    again = jax.jit(setup.method.decide)(setup.frozen, noise, batch["label"])
    np.testing.assert_array_equal(ids, again)
    assert len(np.unique(np.asarray(noise), axis=0)) == 16 and len(np.unique(ids)) > 4


def test_labels_are_those_of_the_data_in_turn(config, store):
    for split, count in NUM.items():
        source = datasets.open_split(datasets.configure(config["data"]), split)
        stored = cache.TokenCache(store / split)
        assert len(stored) == count
        assert [e["label"] for e in stored] == [source[i]["label"] for i in range(count)]


def test_a_loss_reads_pairs_in_place_of_a_roll_out(setup):
    batch = next(loader.train_batches(setup.data, batch_size=8, seed=0, mesh=setup.mesh))
    model = jax.eval_shape(setup.method.init, jax.random.key(0))["model"]
    variables = {"model": model, "tokenizer": setup.frozen["tokenizer"]}  # no teacher
    loss, _ = jax.eval_shape(setup.method.loss, variables, batch, jax.random.key(0), 0)
    assert loss.shape == ()
    del batch["noise_key"]
    with pytest.raises(KeyError, match="teacher"):
        jax.eval_shape(setup.method.loss, variables, batch, jax.random.key(0), 0)


def test_noise_is_new_in_both_splits_and_when_sampling(store):
    keys = [e["noise_key"] for split in NUM for e in cache.TokenCache(store / split)]
    drawn = jax.random.key_data(sampling.sample_keys(0, jnp.arange(64)))
    assert len({tuple(key) for key in np.concatenate([keys, drawn]).tolist()}) == 50 + 64


def test_an_interrupted_store_is_finished_and_holds_the_same(config, store, tmp_path, monkeypatch):
    written = []

    def dies(folder, plan, index, arrays):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(index)
        write(folder, plan, index, arrays)

    write = cache.write_shard
    monkeypatch.setattr(cache, "write_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        pairs.make(config, tmp_path, NUM, **SIZES)
    with pytest.raises(ConfigError, match=r"is not complete; run the command .* jaxar.pairs"):
        experiment.prepare(reading(config, tmp_path), tmp_path / "student")
    monkeypatch.setattr(cache, "write_shard", lambda *args: (written.append(args[2]), write(*args)))
    pairs.make(config, tmp_path, NUM, **SIZES)
    assert written == [0, 1, 2, 0]
    for split in NUM:
        assert cache.read_metadata(tmp_path / split) == cache.read_metadata(store / split)


def test_a_finished_store_is_read_under_its_own_name(config, store, monkeypatch):
    monkeypatch.setattr(pairs, "_draw", None)
    assert pairs.make(reading(config, store), store, NUM, **SIZES)["train"].num_examples == 40


def test_pairs_of_something_else_are_refused(config, store, setup, tmp_path, ar_run):
    with pytest.raises(ConfigError, match="holds pairs of the law Sampling.*flow_steps=8, this configuration has .*=9"):
        experiment.prepare(reading(config, store, flow_steps=9), tmp_path / "a")
    averaged = {**reading(config, store), "teacher": {"from_": str(ar_run), "ema": "0.995"}}
    with pytest.raises(ConfigError, match="holds pairs of the teacher .*make them again with python -m jaxar.pairs"):
        experiment.prepare(averaged, tmp_path / "b")
    with pytest.raises(ConfigError, match="holds a cache with pairs=.*seed=0.*, not .*seed=1"):
        pairs.make(config, store, NUM, seed=1, **SIZES)
    ar = cli.load_config(f"{CONFIGS}/ar_digits.py:smoke", [f"--config.tokenizer.from_={ar_run}"])
    with pytest.raises(ConfigError, match="method.name='ar' learns from no pairs"):
        pairs.make(ar, tmp_path / "c", NUM)
    sampled = {**config, "sample": {"steps": 3}}
    with pytest.raises(ConfigError, match="sample.steps=3 must be at most 2"):
        experiment.prepare(sampled, tmp_path / "d")


def test_a_changed_file_is_noticed(config, tmp_path, store):
    file = next((store / "test").glob("ids-*.npy"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ConfigError, match="has changed since it was written"):
        pairs.make(config, store, NUM, **SIZES)
    file.write_bytes(whole)
