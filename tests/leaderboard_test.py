"""The leaderboard on digits, with runs that other tests trained, and its rules on made-up rows."""

import functools
import itertools
import json
import pathlib
import re
import shutil
import types

import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxar.run
from jaxar import cli, contest, leaderboard, suites, workdir
from jaxar.config import ConfigError
from jaxar.methods import ar, dd1, flow_matching, maskgit, mdm

DOCS = pathlib.Path(__file__).parents[1] / "docs"
pytestmark = pytest.mark.xdist_group("runs")
BUDGET = contest.Budget(max_parameters=100, max_steps=10, max_seconds=5.0)


@pytest.fixture
def run(capsys):
    """Runs a command line in this process; returns exit code, stdout and stderr."""

    def run(line):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main(leaderboard.command, line.split())
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def trained(monkeypatch, tokenizer_run, ar_run):
    """Names of the runs that are trained; instead of training them, finished ones are copied."""
    names = []
    finished = {"vq_digits": tokenizer_run, "ar_digits": ar_run}

    def copied(config, folder):
        names.append(folder.name)
        shutil.copytree(finished[folder.name], folder, dirs_exist_ok=True)
        workdir.write_json(folder / "config.json", config)
        return True

    monkeypatch.setattr(contest.train, "train", copied)
    return names


@pytest.mark.slow
def test_methods_are_trained_measured_and_not_done_again(run, trained, tmp_path, monkeypatch):
    real = contest.count_parameters
    more = {maskgit.MaskGIT: 10**6}
    monkeypatch.setattr(contest, "count_parameters", lambda method: real(method) + more.get(type(method), 0))
    line = f"--suite=digits --out={tmp_path} --arg=smoke --num=16 --seeds=0,1 --json"
    code, out, _ = run(f"{line} --methods=maskgit,ar")
    report = json.loads(out)
    assert code == 0 and trained == ["vq_digits", "ar_digits"]
    first, refused = report["rows"]
    assert (first["method"], first["num_steps"], first["note"]) == ("ar", 2, "")
    assert first["metrics"]["fd_digits"]["mean"] > first["floor"]["fd_digits"]["mean"] > 0
    assert first["validation"]["bits_per_token"] > 0 and first["network_calls"] == 16
    assert set(first["latency_ms"]) == {"1", "64"} and min(first["latency_ms"].values()) > 0
    assert first["train_seconds"] > 0 and first["parameters"] < 10**6 < refused["parameters"]
    assert refused["note"].endswith("parameters, 1,000,000 are allowed") and "metrics" not in refused
    table = (tmp_path / "leaderboard.md").read_text()
    assert table.startswith("Budget: 1,000,000 parameters, 3,000 steps, 1800 s.") and "| ar | " in table
    assert (tmp_path / "leaderboard.png").stat().st_size > 5000

    monkeypatch.setattr(contest, "measure", None)
    code, out, _ = run(f"{line} --methods=maskgit,ar")
    assert code == 0 and json.loads(out)["rows"] == report["rows"] and len(trained) == 2

    # A run of another length is no run of this budget.
    code, out, _ = run(f"{line} --methods=ar --max_steps=1")
    (failed,) = json.loads(out)["rows"]
    assert code == leaderboard.FAILED and "has done 2 steps" in failed["error"] and len(trained) == 2


def test_samples_are_drawn_as_the_configuration_says_now(ar_run, tmp_path, monkeypatch):
    opened = contest.sampled_with(jaxar.run.load(ar_run), {"temperature": 0.5})
    assert opened.options.temperature == opened.sampler()._static[2].temperature == 0.5
    shutil.copytree(ar_run, tmp_path / "ar_digits")
    measured = []
    monkeypatch.setattr(contest, "measure", lambda opened, *_: measured.append(opened.options.temperature) or {})
    judge, measuring = types.SimpleNamespace(sha256=""), contest.Measuring(16, (0,))
    for temperature in (0.5, 0.7, 0.5):
        contest._measured_once(tmp_path / "ar_digits", {"temperature": temperature}, measuring, judge)
    assert measured == [0.5, 0.7]


def test_latency_is_measured_again_when_asked(ar_run, tmp_path, monkeypatch):
    folder = pathlib.Path(shutil.copytree(ar_run, tmp_path / "ar_digits"))
    monkeypatch.setattr(contest, "measure", lambda *_: {"latency_ms": {"1": 9.0}, "metrics": {"fd_digits": 3.0}})
    monkeypatch.setattr(contest, "latency_ms", lambda opened, size: size / opened.options.temperature)
    measured = functools.partial(
        contest._measured_once,
        folder,
        {"temperature": 0.5},
        contest.Measuring(16, (0,)),
        types.SimpleNamespace(sha256=""),
    )
    assert measured()["latency_ms"] == {"1": 9.0} == measured()["latency_ms"]
    timed = {"latency_ms": {"1": 2.0, "64": 128.0}, "metrics": {"fd_digits": 3.0}}
    assert measured(latency_again=True) == timed == measured()


def test_labels_cover_no_marks_and_one_another_nowhere():
    figure, axis = plt.subplots()
    points = np.random.default_rng(0).uniform(0.4, 0.6, (12, 2))
    labels = [axis.annotate(f"method_{i}", xy, (0, 0), textcoords="offset points") for i, xy in enumerate(points)]
    axis.set(xlim=(0, 1), ylim=(0, 1))
    leaderboard._place(labels)
    boxes = [label.get_window_extent() for label in labels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert not any(box.contains(*axis.transData.transform(xy)) for box in boxes for xy in points)
    plt.close(figure)


def row(method, distance=1.0, seconds=1.0, **changes):
    spread = {"mean": distance, "min": distance, "max": distance}
    return {
        "method": method,
        "teacher": None,
        "parameters": 50,
        "num_steps": 10,
        "own_num_steps": 10,
        "train_seconds": seconds,
        "metrics": {"fd_digits": spread, "class_consistency": spread},
        "floor": {"fd_digits": spread},
        "validation": {},
        "network_calls": 4,
        "latency_ms": {"1": 2.0, "64": 1.0},
    } | changes


def test_what_exceeds_the_budget_ranks_behind():
    rows = [
        {"method": "broken", "error": "no"},
        {"method": "large", "parameters": 200, "num_steps": 10, "own_num_steps": 10, "refused": "200"},
        row("slow", 0.1, seconds=6),
        row("far", 3.0),
        row("near", 2.0, own_num_steps=30),
    ]
    ranked = leaderboard.ranked(rows, BUDGET, "digits")
    assert {r["method"]: r["note"] for r in ranked} == {
        "near": "cut from 30 steps",
        "far": "",
        "slow": "over the time",
        "large": "refused: 200",
        "broken": "failed: no",
    }
    assert [r["method"] for r in ranked] == ["near", "far", "slow", "large", "broken"]
    report = {"suite": "digits", "budget": vars(BUDGET), "measuring": {"seeds": [0]}, "rows": ranked}
    lines = leaderboard.markdown(report).splitlines()[2:]
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 7


def test_students_are_compared_with_their_teachers_by_number_of_calls():
    by_calls = {str(calls): row("", distance)["metrics"] for calls, distance in ((1, 3.0), (2, 2.5))}
    rows = [row("old", 2.0), row("young", 3.0, teacher="old", few_calls=by_calls), row("lone", 4.0, teacher="absent")]
    rows = leaderboard.ranked(rows, BUDGET, "digits")
    report = {"suite": "digits", "budget": vars(BUDGET), "measuring": {"seeds": [0]}, "rows": rows}
    lines = leaderboard.markdown(report).splitlines()
    teachers = {cells[1].strip(): cells[4].strip() for line in lines[4:7] if (cells := line.split("|"))}
    assert teachers == {"old": "", "young": "old, 1.50x", "lone": "absent"}
    assert lines[-1] == "| young | old | 3.00 (1.50x) | 2.50 (1.25x) |  |"


def test_few_step_methods_are_measured_at_one_two_and_four_calls(monkeypatch):
    def evaluate(opened, judge, *, options, **_):
        if options["steps"] > 2:
            raise ConfigError("trained for two")
        return {"network_calls": options["steps"], "metrics": options}

    monkeypatch.setattr(contest.scoring, "evaluate_generator", evaluate)
    measuring = contest.Measuring(4, (0,))
    student = types.SimpleNamespace(options=dd1.Sampling())
    own = evaluate(student, None, options={"steps": 1})
    assert contest.few_calls(student, measuring, None, own) == {"1": {"steps": 1}, "2": {"steps": 2}}
    for options in (flow_matching.Sampling(), mdm.Sampling(), ar.Sampling()):  # many, as many as tokens, no choice
        assert contest.few_calls(types.SimpleNamespace(options=options), measuring, None, {}) == {}


def test_the_page_shows_the_table_that_is_kept():
    report = json.loads((DOCS / "leaderboard.json").read_text())
    assert f"<!-- table -->\n{leaderboard.markdown(report)}<!-- /table -->" in (DOCS / "leaderboard.md").read_text()


def test_parameters_are_those_of_the_network_that_samples():
    players = {"model": {"params": {"a": np.zeros((2, 3)), "b": np.zeros(5)}}, "critic": {"params": {"a": np.zeros(7)}}}
    method = types.SimpleNamespace(players=lambda: players, init=lambda key: players)
    assert contest.count_parameters(method) == 11


def test_time_is_that_of_the_steps(tmp_path):
    lines = [{"step": 50, "perf/step_time_s": 2.0}, {"step": 60, "eval": 1}, {"step": 70, "perf/step_time_s": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert contest.train_seconds(tmp_path) == 50 * 2 + 20 * 1


def test_a_longer_run_is_not_begun_in_the_folder_of_a_shorter_one(tmp_path):
    config = {"train": {"num_steps": 2, "batch_size": 8}}
    workdir.write_json(tmp_path / "config.json", config)
    with pytest.raises(ConfigError, match="is a run of 2 steps, asked for are 3; choose a new --out"):
        contest.train_once({"train": {"num_steps": 3, "batch_size": 8}}, tmp_path)


def written(folder, **configs):
    for stem, text in configs.items():
        (folder / f"{stem}.py").write_text(f"def get_config(arg=''):\n    return {text}\n")
    return suites.Suite(folder, folder / "runs", "digits", "", ())


def test_parents_come_first_and_lie_among_the_runs(tmp_path):
    suite = written(
        tmp_path,
        vq_digits="{}",
        ar_digits="{'tokenizer': {'from_': 'out/vq_digits'}}",
        few_digits="{'tokenizer': {'from_': 'out/vq_digits'}, 'teacher': {'from_': '/any/ar_digits', 'step': 3}}",
    )
    assert suite.parents("few_digits") == ["vq_digits", "ar_digits"]
    assert (suite.teacher("few_digits"), suite.teacher("ar_digits")) == ("ar", None)
    config = suite.config("few_digits")
    assert config["teacher"] == {"from_": str(tmp_path / "runs" / "ar_digits"), "step": 3}


def test_parents_that_cannot_be_trained(tmp_path):
    suite = written(
        tmp_path,
        a_digits="{'tokenizer': {'from_': 'out/no_digits'}}",
        b_digits="{'teacher': {'from_': 'out/c_digits'}}",
        c_digits="{'init_from': {'from_': 'out/b_digits'}}",
    )
    with pytest.raises(ConfigError, match="builds on 'no_digits', and there is no .*no_digits.py"):
        suite.parents("a_digits")
    with pytest.raises(ConfigError, match="builds on itself through 'b_digits'"):
        suite.parents("b_digits")


def test_the_suite_is_what_samples():
    methods = suites.find(pathlib.Path("configs"), pathlib.Path("runs"), "digits").methods
    assert {"ar", "next_scale", "maskgit", "mar"} <= set(methods) and not {"vq", "kl"} & set(methods)


MISTAKES = [
    ("--suite=digit --out={out}", "unknown value of --suite 'digit'.*did you mean 'digits'"),
    ("--suite=digits --out={out} --methods=ar,maskgti", "method of the suite 'maskgti'.*did you mean 'maskgit'"),
    ("--suite=digits --out={out} --arg=smke", "argument of the configuration 'smke'.*did you mean 'smoke'"),
    ("--suite=digits --out={out} --max_steps=0", "--max_steps: '0' is not in 1, 2"),
    ("--suite=digits", "required: --out"),
]


@pytest.mark.parametrize("line, message", MISTAKES)
def test_a_mistake_is_one_line(line, message, run, tmp_path):
    code, out, err = run(line.format(out=tmp_path))
    assert (code, out, err.count("\n")) == (2, "", 1) and re.search(message, err), err


def test_outside_a_checkout(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(f"--suite=digits --out={tmp_path}")
    assert code == 2 and "has no configurations NAME_digits.py; run in a checkout" in err


@pytest.mark.slow
def test_from_nothing(run, tmp_path):
    code, out, _ = run(f"--suite=digits --out={tmp_path} --arg=smoke --methods=ar,next_scale --num=16 --seeds=0 --json")
    assert code == 0 and [r["note"] for r in json.loads(out)["rows"]] == ["", ""]
