"""Measures everything and writes docs/benchmarks.md: python -m benchmarks.all [--torch-python=PATH] [--out=FILE]

About fifteen minutes on two CPU cores. PATH is an interpreter that has PyTorch; without it that comparison is left out.
"""

import argparse
import datetime
import itertools
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import flax
import jax
import jaxlib

from benchmarks import attention, masked, measure, sampling, train_step
from benchmarks.networks import Network

METHODS = ("ar", "next_scale")
SIZES = ((8, 1), (8, 8), (16, 1), (16, 8), (16, 32))  # side of the token grid, batch
Rows = list[dict[str, Any]]

PAGE = """# Benchmarks

{date}, {device}, {cores} cores, {memory:.0f} GiB; Python {python}, jax {jax}, jaxlib {jaxlib}, flax {flax}.
Written by `python -m benchmarks.all` in {minutes:.0f} minutes, load average {load} at the start. Each table comes from
a script of its own in `benchmarks/`, whose options take several values (`python -m benchmarks.sampling --help`).

**No figures of a GPU or TPU exist yet.** `python -m benchmarks.gpu_check` measures one in a single call. Sizes here are
those that a CPU can run ({layers} layers of width {width}, {vocab} codes, {parameters:.1f} million parameters, float32,
random weights): they show how cost grows, not what the published models reach.

*wall* is the time on the clock and *cpu* that of all cores together, each of the best of {repeat} calls after one that
does not count. The machine was shared, so compare *cpu*; a *cpu* near *wall* means that one core did the work.
*compile* is tracing, lowering and compilation with an empty cache, *warm* the same where JAX's persistent compilation
cache holds the program, in seconds. *temp* is the program's memory beside arguments and results. Every timed call is
checked to reuse the traced program.

## Attention

Batch {attention.batch}, {attention.heads} heads of {attention.head_dim} channels, {attention.dtype}; milliseconds.
`causal` is 256 tokens, `scales` the next-scale training mask of 256 px (680 tokens), `prefix` 120 text tokens before
256 image tokens. `auto` takes `sliced` on CPUs.

{attention_table}

## Sampling

Guidance 2 (two rows a sample), whole images of tokens, without the tokenizer's decoder, layers in a loop. `ar` draws
token by token, `next_scale` scale by scale: 6 network calls for 8x8 and 10 for 16x16.

{sampling_table}

### What the cache is worth

The same samplers where every call runs the network over the whole sequence, one sample.

{cache_table}

{masked_section}

## Training

The trainer's own step: AdamW, one average of the weights, tokens from a cache.

{train_table}

## PyTorch

{torch_table}
"""

MASKED = """## Masked decoding

`python -m benchmarks.masked`: {layers} layers of width {width}, 16x16 tokens, batch {case.batch}, no guidance. The
programs of a table are called in turn, {rounds} rounds after one that does not count; times are medians, and *share* is
processor time over that of the first row (in the first table, of the same step without reuse).

One step of `maskgit` by how many tokens are known before it, {fresh} of them since the step before. *rows* are tokens
that the network computes; with reuse (`sample.refresh_every`) those are the masked and the newest ones.

{step_table}

Whole samples in {case.num_steps} steps, with reuse everything is computed in every {case.refresh_every}th. `maskgit`:

{maskgit_table}

`mar`: {towers} layers each in encoder and decoder, 64 buffer tokens, {case.head_steps} steps of the head after each
call; with DiSA they fall to {annealed}.

{mar_table}

`hmar` against `next_scale`, 680 tokens in 10 scales; the mask passes are those of the published schedule.

{hmar_table}"""

NO_TORCH = "Not measured: pass `--torch-python=PATH` to compare with `benchmarks/torch_reference.py`."
TORCH = """Raster sampling against `benchmarks/torch_reference.py`, an eager sampler of the same shapes with a cache and
guidance, {torch}. Both are bound to one core, since idle PyTorch threads spin on a shared machine; processor seconds a
call. `looped` and `unrolled` say how jaxar's decoding step runs the layers.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", help="interpreter with PyTorch")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/benchmarks.md"))
    parser.add_argument("--repeat", type=int, default=2, help="counted calls per case")
    args = parser.parse_args()
    measure.use_fresh_cache()
    begun, load = time.time(), os.getloadavg()
    torch_table = compare_with_torch(args.torch_python, args.repeat) if args.torch_python else NO_TORCH
    attention_table = measure_attention(10 * args.repeat)
    samples = [progress(sampling.run, *case, args.repeat) for case in sampling_cases()]
    masked_section = measure_masked(3)
    train_table = measure_training(args.repeat)
    page = PAGE.format(
        **machine(),
        load=", ".join(f"{x:.1f}" for x in load),
        minutes=(time.time() - begun) / 60,
        layers=Network.layers,
        width=Network.width,
        vocab=Network.vocab,
        parameters=samples[0]["parameters"] / 1e6,
        repeat=args.repeat,
        attention=attention.Case,
        attention_table=attention_table,
        sampling_table=sampling_table([row for row in samples if row["cache"]]),
        cache_table=cache_table(samples),
        masked_section=masked_section,
        train_table=train_table,
        torch_table=torch_table,
    )
    args.out.write_text(page)


def machine() -> dict[str, Any]:
    device = jax.devices()[0]
    kind = _cpu_name() if device.platform == "cpu" else device.device_kind
    versions = dict(python=platform.python_version(), jax=jax.__version__, jaxlib=jaxlib.__version__)
    return versions | dict(
        date=datetime.date.today().isoformat(),
        device=kind,
        cores=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        flax=flax.__version__,
    )


def _cpu_name() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def progress(run: Any, *case: Any) -> dict[str, Any]:
    print(f"{time.strftime('%H:%M:%S')} {run.__module__} {case}", file=sys.stderr, flush=True)
    return run(*case)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown; numbers to three significant digits, right-aligned."""
    lines = [columns, ["---:" if i else "---" for i in range(len(columns))]]
    lines += [[_text(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def measure_attention(repeat: int) -> str:
    rows = []
    for mask, name in itertools.product(attention.MASKS, attention.implementations(attention.Case.dtype)):
        forward, both = (
            progress(attention.run, attention.Case(mask, name, passes), repeat) for passes in ("forward", "both")
        )
        figures = [1e3 * row[key] for row in (forward, both) for key in ("wall_s", "cpu_s")]
        rows.append([mask, name, *figures, both["temp_bytes"] / 2**20])
    columns = ["mask", "implementation", "forward wall", "cpu", "with backward wall", "cpu", "temp MiB"]
    return table(columns, rows)


def sampling_cases() -> Iterable[tuple[Network, sampling.Sampler]]:
    for method in METHODS:
        for side, batch in SIZES:
            yield Network(method, side=side), sampling.Sampler(batch)
        for side in (8, 16):
            yield Network(method, side=side), sampling.Sampler(1, cache=False)


def _grid(row: dict[str, Any]) -> str:
    return f"{row['side']}x{row['side']}"


def sampling_table(rows: Rows) -> str:
    columns = ["method", "grid", "batch", "compile", "warm", "wall s", "cpu s", "images/s", "tokens/s", "temp MiB"]
    keys = ("batch", "compile_s", "warm_compile_s", "wall_s", "cpu_s", "images_per_s", "tokens_per_s")
    return table(columns, ([r["method"], _grid(r), *(r[k] for k in keys), r["temp_bytes"] / 2**20] for r in rows))


def cache_table(rows: Rows) -> str:
    lines = []
    for method, side in itertools.product(METHODS, (8, 16)):
        single = [r for r in rows if (r["method"], r["side"], r["batch"]) == (method, side, 1)]
        cached, full = (next(r for r in single if r["cache"] is cache) for cache in (True, False))
        ratio = full["cpu_s"] / cached["cpu_s"]
        lines.append([method, _grid(cached), cached["cpu_s"], full["cpu_s"], f"{ratio:.1f}x"])
    return table(["method", "grid", "cached cpu s", "recomputed cpu s", "ratio"], lines)


def measure_masked(rounds: int) -> str:
    network, case = Network(), masked.Case()
    rows = {part: progress(masked.run, part, network, case, rounds) for part in masked.PARTS}
    steps = [
        [known, *(row[key] for key in ("computed", "wall_s", "cpu_s") for row in (whole, part)), part["share"]]
        for known, (whole, part) in itertools.groupby(rows["step"], lambda row: row["known"])
    ]
    columns = ["known", "rows", "with reuse", "wall s", "with reuse", "cpu s", "with reuse", "share"]
    samples = {
        f"{part}_table": table(
            ["sampler", "wall s", "cpu s", "share"],
            ([row[key] for key in ("variant", "wall_s", "cpu_s", "share")] for row in rows[part]),
        )
        for part in ("maskgit", "mar", "hmar")
    }
    return MASKED.format(
        layers=network.layers,
        width=network.width,
        towers=network.layers // 2,
        case=case,
        rounds=rounds,
        fresh=masked.FRESH,
        annealed=case.head_steps // 10,
        step_table=table(columns, steps),
        **samples,
    )


def measure_training(repeat: int) -> str:
    rows = []
    for method in METHODS:
        for side, batch, remat in ((8, 8, "none"), (16, 2, "none"), (16, 8, "none"), (16, 8, "full")):
            network = Network(method, side=side, remat=remat)
            r = progress(train_step.run, network, train_step.Step(batch), repeat)
            figures = [r[k] for k in ("compile_s", "warm_compile_s", "wall_s", "cpu_s", "images_per_s", "tokens_per_s")]
            speed = 1e3 * r["tflops"] / r["cpu_s"]
            rows.append([method, _grid(r), batch, remat, *figures, speed, r["temp_bytes"] / 2**20])
    columns = ["method", "grid", "batch", "remat", "compile", "warm", "wall s", "cpu s", "images/s", "tokens/s"]
    return table([*columns, "GFLOP/cpu s", "temp MiB"], rows)


def compare_with_torch(python: str, repeat: int) -> str:
    rows, version = [], ""
    for side, batch in ((8, 1), (16, 1), (16, 8)):
        shape = [f"--side={side}", f"--batch={batch}", f"--repeat={repeat}", "--json"]
        (other,) = _on_one_core(python, "benchmarks.torch_reference", "--threads=1", *shape)
        unrolled, looped = _on_one_core(sys.executable, "benchmarks.sampling", "--unroll=true,false", *shape)
        assert other["parameters"] == looped["parameters"], "the two networks differ"
        seconds = [r["cpu_s"] for r in (other, looped, unrolled)]
        rows.append([f"{side}x{side}", batch, *seconds, f"{seconds[0] / min(seconds[1:]):.2f}x"])
        version = f"PyTorch {other['torch']}"
    columns = ["grid", "batch", "PyTorch", "jaxar looped", "jaxar unrolled", "PyTorch / best jaxar"]
    return TORCH.format(torch=version) + table(columns, rows)


def _on_one_core(python: str, module: str, *options: str) -> Rows:
    """The JSON lines that a script prints when it may use one core alone."""
    print(f"{time.strftime('%H:%M:%S')} {module} {options}", file=sys.stderr, flush=True)
    core = str(min(os.sched_getaffinity(0)))
    command = ["taskset", "-c", core, python, "-m", module, *options]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in output.splitlines()]


if __name__ == "__main__":
    main()
