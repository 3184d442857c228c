"""Runs build on runs: tokenizer, model, samples, scores, caches; each from nothing but the workdir before it."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import jaxar
from jaxar import checkpoints, cli, encode, evaluate, experiment, sample, sampling, state, train, weights, workdir
from jaxar.config import ConfigError
from jaxar.data import datasets
from jaxar.metrics import reference
from tests.conftest import CONFIGS, ar_options

NUM, BATCH = 24, 8


@pytest.fixture(scope="module")
def orphan(ar_run, tokenizer_run, tmp_path_factory):
    """The model's workdir at another place, with a tokenizer's that is gone."""
    folder = shutil.copytree(ar_run, tmp_path_factory.mktemp("orphan") / "moved")
    for file in (folder / "config.json", folder / "parents" / "tokenizer" / "parent.json"):
        assert str(tokenizer_run) in file.read_text()
        file.write_text(file.read_text().replace(str(tokenizer_run), "/no/such/run"))
    return folder


@pytest.fixture(scope="module")
def opened(orphan):
    return jaxar.load(orphan)


@pytest.fixture(scope="module")
def saved(ar_run):
    """The last state of the model's training, and its layout."""
    return state_of(ar_run)


@pytest.fixture
def command(capsys):
    """Runs a command in this process and returns its JSON."""

    def command(module, *argv):
        capsys.readouterr()
        module.command([*map(str, argv), "--json"])
        return json.loads(capsys.readouterr().out)

    return command


@pytest.fixture
def draw(command, orphan, tmp_path):
    """Samples of the model by `jaxar.sample`: arrays of the file, and the command's answer."""

    def draw(*options, name="samples"):
        out = tmp_path / f"{name}.npz"
        answer = command(sample, f"--workdir={orphan}", f"--num={NUM}", f"--out={out}", *options)
        with np.load(out) as file:
            return dict(file), answer

    return draw


def state_of(folder):
    setup = experiment.prepare(workdir.read_json(folder / "config.json"), folder)
    abstract = state.abstract(setup.method, setup.plan.optimizers, setup.mesh)
    step = checkpoints.list_saved(folder / "checkpoints")[-1].step
    return checkpoints.load_state(folder / "checkpoints", step, abstract), abstract, setup


def logged(folder):
    """The logged figures by step, without those that a clock gave."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = ("loss", "grad_norm", "learning_rate")
    return {line["step"]: {k: v for k, v in line.items() if any(name in k for name in names)} for line in lines}


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_a_loaded_run_is_model_weights_tokenizer_and_config(opened, orphan, tokenizer_run, saved):
    assert opened.workdir == orphan and opened.config["model"]["width"] == 32
    assert (opened.step, opened.ema) == (2, None) and opened.class_names == tuple("0123456789")
    parent = jaxar.load(tokenizer_run)
    assert opened.tokenizer == parent.tokenizer and parent.options is None
    assert same(opened.variables["tokenizer"], parent.variables["tokenizer"])
    assert same(opened.variables["model"]["params"], saved[0].players["model"].params)


def test_the_average_is_chosen_by_name(ar_run, orphan, saved, tmp_path):
    model = saved[0].players["model"]
    assert not same(model.params, model.emas["0.995"])
    averaged, raw = jaxar.load(orphan, ema="0.995"), jaxar.load(orphan, ema="raw")
    assert same(averaged.variables["model"]["params"], model.emas["0.995"])
    assert same(raw.variables["model"]["params"], model.params)
    copy = shutil.copytree(ar_run, tmp_path / "copy")
    config = workdir.read_json(copy / "config.json") | {"eval": {"ema": "0.995"}}
    workdir.write_json(copy / "config.json", config)
    assert jaxar.load(copy).ema == "0.995"  # what the run itself samples with
    with pytest.raises(ConfigError, match=r"has no checkpoint of step 1; it has \[2\]"):
        jaxar.load(orphan, step=1)


def test_samples_are_stored_in_adm_layout_with_a_grid(draw, opened, tmp_path):
    arrays, answer = draw(f"--batch_size={BATCH}")
    assert set(arrays) == {"arr_0", "arr_1"}
    images, labels = arrays["arr_0"], arrays["arr_1"]
    assert images.dtype == np.uint8 and images.shape == (NUM, 8, 8, 1) and np.ptp(images) > 0
    assert labels.shape == (NUM,) and set(np.bincount(labels, minlength=10)) == {2, 3}
    grid = np.asarray(Image.open(tmp_path / "samples.png"))
    assert answer["grid"] == str(tmp_path / "samples.png") and grid.size > images.size and np.ptp(grid) > 0
    assert (answer["num"], answer["step"], answer["network_calls"]) == (NUM, 2, 16)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["samples.npz", "samples.png"]
    # In Python, on one device and in one batch, they are the same pictures.
    np.testing.assert_array_equal(opened.sample(labels), images)


def test_pictures_depend_on_seed_number_and_class_alone(draw, opened):
    first, whole = draw(f"--batch_size={BATCH}")[0], draw("--batch_size=16")[0]
    np.testing.assert_array_equal(whole["arr_0"], first["arr_0"])
    assert not np.array_equal(draw(f"--batch_size={BATCH}", "--seed=1")[0]["arr_0"], first["arr_0"])
    threes = draw(f"--batch_size={BATCH}", "--class_id=3")[0]
    assert set(threes["arr_1"]) == {3}
    agree = (threes["arr_0"] == first["arr_0"]).all(axis=(1, 2, 3))
    assert agree[first["arr_1"] == 3].all() and not agree.all()


def test_interrupted_sampling_goes_on_where_it_stopped(draw, monkeypatch, tmp_path, capsys):
    expected = draw(f"--batch_size={BATCH}", name="whole")[0]
    original, calls = sampling.Sampler.__call__, []

    def interrupted(self, *args):
        calls.append(args[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(sampling.Sampler, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw(f"--batch_size={BATCH}")
    parts = tmp_path / "samples.npz.parts"
    assert sorted(p.name for p in parts.glob("*.npy")) == ["000000000.npy", "000000008.npy"]
    assert not (tmp_path / "samples.npz").exists()
    with pytest.raises(ConfigError, match="holds parts of an interrupted command with other options; remove it"):
        draw(f"--batch_size={BATCH}", "--seed=1")
    (parts / "000000000.npy").unlink()
    resumed, _ = draw(f"--batch_size={BATCH}")
    assert [ids[0] for ids in calls[3:]] == [0, 16]  # the second part was kept
    np.testing.assert_array_equal(resumed["arr_0"], expected["arr_0"])
    np.testing.assert_array_equal(resumed["arr_1"], expected["arr_1"])
    assert not parts.exists()


def test_an_interrupted_command_says_so(monkeypatch, orphan, tmp_path, capsys):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling.Sampler, "__call__", interrupt)
    with pytest.raises(SystemExit) as stop:
        cli.main(sample.command, [f"--workdir={orphan}", f"--num={NUM}", f"--out={tmp_path}/x.npz"])
    assert (stop.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_a_file_of_samples_scores_as_the_workdir_that_drew_them(command, opened, orphan, tmp_path):
    options = ("--reference=digits", "--seeds=0")
    of_workdir = command(evaluate, f"--workdir={orphan}", f"--num={NUM}", f"--batch_size={NUM}", *options)
    labels = reference.read_split(datasets.configure({"name": "digits"}), "train", range(NUM)).labels
    np.savez(tmp_path / "drawn.npz", arr_0=opened.sample(labels), arr_1=labels)
    of_file = command(evaluate, f"--samples={tmp_path}/drawn.npz", *options)
    assert of_file["metrics"].keys() == of_workdir["metrics"].keys() >= {"fd_digits", "class_consistency"}
    for group in ("metrics", "floor"):
        for name, value in of_workdir[group].items():
            assert of_file[group][name] == pytest.approx(value["mean"], rel=1e-5, abs=1e-6), name
    assert of_workdir["protocol"].pop("seeds") == [of_file["protocol"].pop("seed")]
    assert of_workdir["protocol"] == of_file["protocol"]
    assert 0 < of_workdir["validation"]["bits_per_token"] < 20
    stored = workdir.read_json(orphan / "evaluations" / of_workdir["file"].rpartition("/")[2])
    assert stored["metrics"] == of_workdir["metrics"] and stored["step"] == 2


def test_weights_start_from_another_run(saved, ar_run):
    source, abstract, setup = saved
    fresh = state.create(setup.method, setup.plan.optimizers, setup.mesh, jax.random.key(1))
    start = weights.initialise(fresh, {"from_": str(ar_run)}, abstract, setup.mesh)
    model = start.players["model"]
    assert same(model.params, source.players["model"].params) and not same(model.params, fresh.players["model"].params)
    assert same(model.emas["0.995"], model.params)  # averages start anew
    assert int(start.step) == 0 and same(model.opt_state, fresh.players["model"].opt_state)
    averaged = weights.initialise(fresh, {"from_": str(ar_run), "ema": "0.995"}, abstract, setup.mesh)
    assert same(averaged.players["model"].params, source.players["model"].emas["0.995"])
    whole = weights.initialise(fresh, {"from_": str(ar_run), "state": True}, abstract, setup.mesh)
    assert int(whole.step) == 2 and same(whole, source)


@pytest.mark.slow
def test_a_branch_with_state_trains_on_as_the_run_itself(ar_run, tokenizer_run, tmp_path):
    shutil.copytree(ar_run, tmp_path / "same")
    train.command(ar_options(tmp_path / "same", tokenizer_run, "--config.train.num_steps=3"))
    branch = ("--config.train.num_steps=3", f"--config.init_from.from_={ar_run}", "--config.init_from.state=True")
    train.command(ar_options(tmp_path / "branch", tokenizer_run, *branch))
    assert list(logged(tmp_path / "branch")) == [3]
    assert logged(tmp_path / "branch")[3] == logged(tmp_path / "same")[3]
    # Once begun, it needs its source no longer, and says what stands in the way of another start.
    with pytest.raises(ConfigError, match="init_from.from_=no value, but .* was started with"):
        train.command(ar_options(tmp_path / "branch", tokenizer_run, "--config.train.num_steps=3"))


@pytest.mark.slow
def test_training_on_a_cache_is_training_on_the_pictures(command, ar_run, tokenizer_run, tmp_path):
    written = command(encode, f"--workdir={tokenizer_run}", f"--out={tmp_path}/cache", "--splits=train")
    assert written["splits"]["train"]["num_examples"] == 1437
    cache = f"--config.data.cache={tmp_path}/cache"
    train.command(ar_options(tmp_path / "cached", tokenizer_run, cache))
    cached, fresh = logged(tmp_path / "cached"), logged(ar_run)
    assert list(cached) == [1, 2] and cached.keys() == fresh.keys()
    for step, figures in fresh.items():
        assert any("loss" in name for name in figures)
        assert cached[step] == pytest.approx(figures, rel=1e-4)
    with pytest.raises(ConfigError, match="was encoded by tokenizer .*, tokenizer.from_ gives .*; encode again"):
        train.command(ar_options(tmp_path / "other", tokenizer_run, cache, "--config.tokenizer.ema='0.5'"))
    with pytest.raises(ConfigError, match="holds a cache with tokenizer=.*; remove it or write elsewhere"):
        command(
            encode,
            f"--workdir={tokenizer_run}",
            f"--out={tmp_path}/cache",
            "--splits=train",
            "--variants=image",
            "--ema=0.5",
        )


def test_a_corrected_start_takes_the_parent_that_it_names(ar_run, tokenizer_run, tmp_path):
    other = shutil.copytree(tokenizer_run, tmp_path / "other")
    with pytest.raises(ConfigError, match="num_heads"):
        train.command(ar_options(tmp_path / "run", other, "--config.model.num_heads=3"))
    config = cli.load_config(f"{CONFIGS}/ar_digits.py:smoke", [f"--config.tokenizer.from_={tokenizer_run}"])
    setup = experiment.prepare(config, tmp_path / "run")
    record = workdir.read_json(setup.folder / "parents" / "tokenizer" / "parent.json")
    assert record["origin"] == str(tokenizer_run)
