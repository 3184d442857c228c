"""The whole chain on real data in minutes: tokenizers, an AR and a next-scale model on digits, samples, evaluation.

At the end the AR model teaches a student that draws all tokens in one call.

Each step is a command that works by itself and is printed. Training that is done is not done again.
"""

import argparse
import concurrent.futures
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from jaxar import backend, run, workdir
from jaxar.data import loader, pictures
from jaxar.metrics import reference

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHAINS = {"ar": "vq", "next_scale": "multiscale_vq"}  # model: its tokenizer
TEACHER, STUDENT = "ar", "dd1"
STEPS = {TEACHER: 1500, STUDENT: 600}  # enough to show; their configurations have more
PAIRS = {"": 8192, "smoke": 64}  # of noise and the teacher's tokens, by argument
COLUMNS = 20  # images per row of the grid, two of each class


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/quickstart"))
    parser.add_argument("--arg", default="", help="argument of the configurations; 'smoke' tries the chain untrained")
    args = parser.parse_args()
    out, begun = args.out, time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    # XLA keeps about one core busy with networks as small as these: two chains side by side use two.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        chains = [pool.submit(run_chain, out, model, args.arg) for model in CHAINS]
        results = [chain.result() for chain in chains]
    report = {
        "models": {model: result[model] for model, result in zip(CHAINS, results)},
        "tokenizers": {CHAINS[model]: result[CHAINS[model]] for model, result in zip(CHAINS, results)},
        "students": {STUDENT: {"teacher": TEACHER, **results[list(CHAINS).index(TEACHER)][STUDENT]}},
        "minutes": round((time.perf_counter() - begun) / 60, 2),
    }
    backend.initialize()
    draw_grid(out)
    draw_curves(out)
    workdir.write_json(out / "report.json", report)
    text = describe(report)
    (out / "report.md").write_text(text)
    print(f"\n{text}\n{out}/report.md, grid.png, curves.png")


def run_chain(out: pathlib.Path, model: str, arg: str) -> dict[str, Any]:
    """A tokenizer, the tokens of the data, a model of them and perhaps its student: the evaluations by workdir."""
    tokenizer = CHAINS[model]
    cache = out / f"{tokenizer}_tokens"
    parents = (f"--config.tokenizer.from_={out / tokenizer}", f"--config.data.cache={cache}")
    train(out, tokenizer, arg)
    run_command("encode", f"--workdir={out / tokenizer}", f"--out={cache}")
    train(out, model, arg, *parents)
    results = {name: sample_and_evaluate(out, name) for name in (tokenizer, model)}
    if model == TEACHER:
        results[STUDENT] = distil(out, arg)
    return results


def distil(out: pathlib.Path, arg: str) -> dict[str, Any]:
    """Pairs of the teacher, a student that learns them, and its evaluation."""
    store, parent = out / f"{STUDENT}_pairs", f"--config.teacher.from_={out / TEACHER}"
    labels = f"--config.data.cache={out / CHAINS[TEACHER]}_tokens"
    run_command("pairs", config_option(STUDENT, arg), f"--out={store}", f"--num={PAIRS[arg]}", parent, labels)
    train(out, STUDENT, arg, parent, f"--config.data.cache={store}")
    return sample_and_evaluate(out, STUDENT)


def sample_and_evaluate(out: pathlib.Path, name: str) -> dict[str, Any]:
    """Scores a workdir; a model draws the samples of the grid first."""
    batch = "--batch_size=479"  # one compiled sampler for both commands
    if name not in CHAINS.values():
        run_command("sample", f"--workdir={out / name}", "--num=200", batch, f"--out={out / name / 'samples.npz'}")
    return run_command("evaluate", f"--workdir={out / name}", "--reference=digits", batch)


def train(out: pathlib.Path, name: str, arg: str, *overrides: str) -> None:
    shorter = [f"--config.train.num_steps={STEPS[name]}"] if name in STEPS and not arg else []
    run_command("train", config_option(name, arg), f"--workdir={out / name}", *overrides, *shorter)


def config_option(name: str, arg: str) -> str:
    return f"--config={ROOT / 'configs' / f'{name}_digits.py'}{':' + arg if arg else ''}"


def run_command(name: str, *options: str) -> dict[str, Any]:
    """Runs `python -m jaxar.NAME`, shows it and its log, and returns its result.

    Raises:
      SystemExit: the command failed; its own message has been shown.
    """
    print(f"$ python -m jaxar.{name} {' '.join(options)}", flush=True)
    command = [sys.executable, "-m", f"jaxar.{name}", *options, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:  # not the terminal itself: two progress bars would overwrite each other
            print(f"  {line.rstrip()}", flush=True)
        result = process.stdout.read()
    if process.returncode:
        raise SystemExit(process.returncode)
    return json.loads(result)


def draw_grid(out: pathlib.Path) -> None:
    """Real digits, their reconstructions, and samples of both models and the student, from the same labels."""
    test = reference.read_split(reference.load("digits").train, "test")
    labels = np.arange(COLUMNS) % 10
    chosen = [np.flatnonzero(test.labels == label)[i // 10] for i, label in enumerate(labels)]
    real = test.images[chosen]
    rows = {"real": real}
    for name in CHAINS.values():
        rows[name] = run.load(out / name).reconstruct(loader.to_float(real))
    for name in (*CHAINS, STUDENT):
        with np.load(out / name / "samples.npz") as samples:  # classes in turn, as in `labels`
            rows[name] = samples["arr_0"][:COLUMNS]
    titles = [str(label) for label in labels] * len(rows)
    picture = pictures.grid(np.concatenate(list(rows.values())), titles, COLUMNS, row_titles=list(rows))
    picture.save(out / "grid.png")


def draw_curves(out: pathlib.Path) -> None:
    """Training and test curves of the five runs."""
    figure, axes = plt.subplots(1, 5, figsize=(22, 4), layout="constrained")
    for axis, name in zip(axes, CHAINS.values()):
        draw_curve(axis, out / name, "train/reconstruction", "training loss", "tab:blue")
        axis.set(yscale="log")
        draw_curve(axis.twinx(), out / name, "eval/test/psnr", "test PSNR, dB", "tab:orange")
    tests = {**dict.fromkeys(CHAINS, ("eval/test/bits_per_token", np.log(2))), STUDENT: ("eval/test/nll", 1.0)}
    for axis, (name, (figure_name, scale)) in zip(axes[len(CHAINS) :], tests.items()):
        draw_curve(axis, out / name, "train/nll", "nats per token (blue: training, orange: test)", "tab:blue")
        draw_curve(axis, out / name, figure_name, axis.get_ylabel(), "tab:orange", scale)
    figure.savefig(out / "curves.png", dpi=110)


def draw_curve(axis: plt.Axes, folder: pathlib.Path, figure: str, label: str, color: str, scale: float = 1.0) -> None:
    """One figure of metrics.jsonl, times `scale`, against the step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    points = [(line["step"], scale * line[figure]) for line in lines if figure in line]
    axis.plot(*zip(*points), color=color, marker="o" if len(points) < 10 else None)
    axis.set(title=folder.name, xlabel="step")
    axis.set_ylabel(label, color=color if axis.get_ylabel() == "" and "(" not in label else "black")


def describe(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    lines = [
        "| model | fd_digits (3 seeds) | floor | class consistency | bits per token | network calls | ms per image |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, r in report["models"].items():
        fd, consistency = r["metrics"]["fd_digits"], r["metrics"]["class_consistency"]
        cells = (
            name,
            f"{fd['mean']:.2f} ({fd['min']:.2f} to {fd['max']:.2f})",
            f"{r['floor']['fd_digits']['mean']:.2f}",
            f"{consistency['mean']:.1%}",
            f"{r['validation']['bits_per_token']:.2f}",
            r["network_calls"],
            f"{r['ms_per_image']:.2f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| tokenizer | PSNR, dB | SSIM | rfd_digits | codes used |", "| --- | --- | --- | --- | --- |"]
    for name, r in report["tokenizers"].items():
        m, used = r["metrics"], r["validation"]["code_use"]
        lines.append(f"| {name} | {m['psnr']:.2f} | {m['ssim']:.3f} | {m['rfd_digits']:.3f} | {used:.0%} |")
    lines += ["", *describe_students(report)]
    return "\n".join([*lines, "", f"Took {report['minutes']} minutes.", ""])


def describe_students(report: dict[str, Any]) -> list[str]:
    """The lines of a table with each teacher above its student."""
    lines = [
        "| distilled | network calls | ms per image | speed-up | fd_digits (3 seeds) | class consistency |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for student, result in report["students"].items():
        teacher = report["models"][result["teacher"]]
        for name, r in ((f"{result['teacher']} (teacher)", teacher), (f"{student} (student)", result)):
            fd, consistency = r["metrics"]["fd_digits"], r["metrics"]["class_consistency"]
            lines.append(
                f"| {name} | {r['network_calls']} | {r['ms_per_image']:.2f} "
                f"| {teacher['ms_per_image'] / r['ms_per_image']:.1f}x "
                f"| {fd['mean']:.2f} ({fd['min']:.2f} to {fd['max']:.2f}) | {consistency['mean']:.1%} |"
            )
    return lines


if __name__ == "__main__":
    main()
