"""The whole chain on real data in minutes: tokenizers, an AR and a next-scale model on digits, samples, evaluation.

Each step is a command that works by itself; its equivalent is printed. A step that is done is not done again.
"""

import argparse
import json
import pathlib
import time
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from jaxar import backend, cli, evaluate, run, train, workdir
from jaxar.data import loader, pictures
from jaxar.metrics import reference

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOKENIZERS = {"vq": "vq_digits", "multiscale_vq": "multiscale_vq_digits"}
MODELS = {"ar": ("ar_digits", "vq"), "next_scale": ("next_scale_digits", "multiscale_vq")}
SEEDS = (0, 1, 2)
COLUMNS = 20  # images per row of the grid, two of each class


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/quickstart"))
    parser.add_argument(
        "--arg", default="", help="argument of the configurations; 'smoke' tries the chain without training"
    )
    args = parser.parse_args()
    out, begun = args.out, time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    backend.initialize()
    for name, config in TOKENIZERS.items():
        train_step(out / name, config, args.arg, [])
    for name, (config, tokenizer) in MODELS.items():
        train_step(out / name, config, args.arg, [f"--config.tokenizer.from_={out / tokenizer}"])
    report = {"models": {}, "tokenizers": {}}
    for name in TOKENIZERS:
        report["tokenizers"][name] = evaluate_step(out / name)
    for name in MODELS:
        report["models"][name] = evaluate_step(out / name)
    report["minutes"] = round((time.perf_counter() - begun) / 60, 2)
    draw_grid(out)
    draw_curves(out)
    workdir.write_json(out / "report.json", report)
    text = describe(report)
    (out / "report.md").write_text(text)
    print(f"\n{text}\n{out}/report.md, grid.png, curves.png")


def train_step(folder: pathlib.Path, config: str, arg: str, overrides: list[str]) -> None:
    spec = f"{ROOT / 'configs' / config}.py{':' + arg if arg else ''}"
    print(
        f"$ python -m jaxar.train {' '.join([f'--config=configs/{config}.py', f'--workdir={folder}', *overrides])}",
        flush=True,
    )
    train.train(cli.load_config(spec, overrides), folder)


def evaluate_step(folder: pathlib.Path) -> dict[str, Any]:
    """The stored evaluation of a workdir, made if it is not there."""
    stored = folder / "evaluations" / "quickstart.json"
    print(f"$ python -m jaxar.evaluate --workdir={folder} --reference=digits", flush=True)
    if not stored.is_file():
        opened = run.load(folder)
        if opened.options is None:
            result = evaluate.evaluate_tokenizer(opened, "digits", batch_size=256)
        else:
            digits = reference.load("digits")
            result = evaluate.evaluate_generator(opened, digits, num=None, seeds=SEEDS, batch_size=479, options={})
        stored.parent.mkdir(exist_ok=True)
        workdir.write_json(stored, result)
    return workdir.read_json(stored)


def draw_grid(out: pathlib.Path) -> None:
    """Real digits, their reconstructions, and samples of both models, from the same labels."""
    test = reference.read_split(reference.load("digits").train, "test")
    labels = np.arange(COLUMNS) % 10
    chosen = [np.flatnonzero(test.labels == label)[i // 10] for i, label in enumerate(labels)]
    real = test.images[chosen]
    rows = {"real": real}
    for name in TOKENIZERS:
        rows[f"{name}"] = run.load(out / name).reconstruct(loader.to_float(real))
    for name in MODELS:
        rows[name] = run.load(out / name).sample(labels)
    titles = [str(label) for label in labels] * len(rows)
    picture = pictures.grid(np.concatenate(list(rows.values())), titles, COLUMNS, row_titles=list(rows))
    picture.save(out / "grid.png")


def draw_curves(out: pathlib.Path) -> None:
    """Training and validation curves of the four runs."""
    figure, axes = plt.subplots(1, 4, figsize=(18, 4), layout="constrained")
    for axis, name in zip(axes, [*TOKENIZERS, *MODELS]):
        figure_name, value, unit = (
            ("eval/test/psnr", "train/reconstruction", "PSNR, dB")
            if name in TOKENIZERS
            else ("eval/test/bits_per_token", "train/nll", "bits per token")
        )
        lines = [json.loads(line) for line in (out / name / "metrics.jsonl").read_text().splitlines()]
        train_points = [(line["step"], line[value]) for line in lines if value in line]
        test_points = [(line["step"], line[figure_name]) for line in lines if figure_name in line]
        scale = 1 / np.log(2) if name in MODELS else 1.0
        steps, values = zip(*train_points)
        axis.plot(steps, np.array(values) * scale, color="tab:blue", label="train")
        axis.set(
            title=name,
            xlabel="step",
            ylabel=unit if name in MODELS else "training loss",
            yscale="log" if name in TOKENIZERS else "linear",
        )
        other = axis.twinx() if name in TOKENIZERS else axis
        other.plot(*zip(*test_points), color="tab:orange", marker="o", label="test")
        if other is not axis:
            other.set_ylabel(f"test {unit}")
        axis.legend(loc="upper center")
    figure.savefig(out / "curves.png", dpi=110)


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
        used = r["validation"].get("code_use", r["validation"].get("code_use_scale_4"))
        m = r["metrics"]
        lines.append(f"| {name} | {m['psnr']:.2f} | {m['ssim']:.3f} | {m['rfd_digits']:.3f} | {used:.0%} |")
    return "\n".join([*lines, "", f"{report['minutes']} minutes."])


if __name__ == "__main__":
    main()
