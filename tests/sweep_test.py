"""A sweep of a workdir: every combination once, whatever interrupts it."""

import json
import re

import pytest

from jaxar import cli, scoring, sweep

pytestmark = pytest.mark.xdist_group("runs")


@pytest.fixture
def run(capsys):
    """Runs a command line in this process; returns exit code, stdout and stderr."""

    def run(*argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main(sweep.command, list(argv))
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def evaluated(monkeypatch):
    """The options of all evaluations."""
    seen, real = [], scoring.evaluate_generator

    def counted(opened, judge, **options):
        seen.append((opened.ema, options["options"]))
        return real(opened, judge, **options)

    monkeypatch.setattr(scoring, "evaluate_generator", counted)
    return seen


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_stopped_and_grows(run, evaluated, ar_run, tmp_path, monkeypatch):
    fixed = (f"--workdir={ar_run}", "--reference=digits", "--num=8", "--seeds=0", f"--out={tmp_path}", "--json")
    scales = ("--guidance_scale=1.5,2.5", "--temperature=0.9")
    monkeypatch.setattr(sweep.workdir, "write_json", _interrupted_after(1, sweep.workdir.write_json))
    assert run(*fixed, "--ema=raw", *scales)[0] == cli.INTERRUPTED
    assert not (tmp_path / "sweep.json").exists()
    monkeypatch.undo()

    code, out, _ = run(*fixed, "--ema=raw", *scales)
    rows = json.loads(out)["rows"]
    assert code == 0 and [row["options"]["guidance_scale"] for row in rows] == [1.5, 2.5]
    assert all(row["sampling"]["temperature"] == 0.9 and row["protocol"]["n"] == 8 for row in rows)
    files = sorted((tmp_path / "rows").glob("*.json"))
    assert len(files) == 2
    before = [file.stat().st_mtime_ns for file in files]
    more = json.loads(run(*fixed, "--ema=raw,0.995", *scales)[1])["rows"]
    assert [row["ema"] for row in more] == ["raw", "raw", "0.995", "0.995"] and more[:2] == rows
    assert [file.stat().st_mtime_ns for file in files] == before
    assert more[0]["metrics"]["fd_digits"] != more[2]["metrics"]["fd_digits"]
    text = (tmp_path / "sweep.md").read_text()
    distances = [row["metrics"]["fd_digits"]["mean"] for row in more]
    assert text.startswith("| ema | guidance_scale | temperature | fd_digits |")
    assert text.count("**") == 2 * distances.count(min(distances))  # untrained, guidance may change nothing
    assert json.loads((tmp_path / "sweep.json").read_text()) == more
    assert len(evaluated) == 2  # those before the patches were undone


def _interrupted_after(count, write):
    written = []

    def interrupted(path, value):
        if len(written) == count:
            raise KeyboardInterrupt
        written.append(path)
        write(path, value)

    return interrupted


def test_the_grid_is_every_combination():
    grid = sweep.points(["a", "b"], {"x": (1, 2), "y": (3,)})
    assert [(point.ema, dict(point.options)) for point in grid] == [
        ("a", {"x": 1, "y": 3}),
        ("a", {"x": 2, "y": 3}),
        ("b", {"x": 1, "y": 3}),
        ("b", {"x": 2, "y": 3}),
    ]


MISTAKES = [
    ("--workdir={vq} --reference=digits", "holds a tokenizer, which has no options; use jaxar.evaluate"),
    ("--workdir={ar} --reference=digits --guidance=1,2", "unknown option '--guidance'.*'--guidance_scale'"),
    ("--workdir={ar} --reference=digits --top_p=0.5,2", r"sample.top_p=2.0 must lie in"),
    ("--workdir={ar} --reference=digits --ema=raw,0.5", "unknown average '0.5'; known: 0.995, raw"),
    ("--workdir={ar} --reference=digits --inception=no.pth", "--inception='no.pth' is no file; give pt_inception"),
    ("--workdir={ar} --reference=digits --inception=x --features=digits", "not allowed with argument"),
    ("--workdir={out}/no --reference=digits", "does not exist; train it first"),
]


@pytest.mark.parametrize("line, message", MISTAKES)
def test_a_mistake_is_one_line(line, message, run, evaluated, ar_run, tokenizer_run, tmp_path):
    line = line.format(ar=ar_run, vq=tokenizer_run, out=tmp_path) + f" --out={tmp_path}/sweep"
    code, out, err = run(*line.split())
    assert (code, out, err.count("\n")) == (2, "", 1) and re.search(message, err), err
    assert not evaluated
