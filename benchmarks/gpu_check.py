"""Checks kernels and measures speed on a GPU in one call: python -m benchmarks.gpu_check [--parts=kernels] [--tiny]

Prints a JSON object per case: errors of attention in bfloat16 against the float32 oracle with the time of each
implementation, then throughput of sampling and training at the sizes of LlamaGen-B and VAR-d16, and what masked
decoding saves (`benchmarks.masked`). A case that fails prints its error, and the others go on: time on a device is
scarce. It needs jax, flax, optax, orbax-checkpoint and jaxtyping alone. The exit code is 1 if a case failed or an error
is above the tolerance. `--tiny` runs anywhere.
"""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import attention, masked, measure, sampling, train_step
from benchmarks.networks import Network

PARTS = ("kernels", "sampling", "masked", "training")
TOLERANCE = 2e-2  # of bfloat16 results, relative to the largest value
LLAMAGEN_B = Network("ar", layers=12, width=768, side=16, vocab=16384, dtype="bfloat16")
VAR_D16 = Network("next_scale", layers=16, width=1024, side=16, vocab=4096, dtype="bfloat16")
MASKGIT = Network("maskgit", layers=24, width=768, side=16, vocab=1024, dtype="bfloat16")
MAR_B = Network("mar", layers=24, width=768, side=16, dtype="bfloat16")
TINY = dict(layers=1, width=64, side=4, vocab=64)

Case = tuple[str, Callable[[], dict[str, Any]]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU: does the script run at all?")
    parser.add_argument("--repeat", type=int, default=5, help="counted calls per case")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts={args.parts}: unknown {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    measure.use_fresh_cache()
    cases = dict(zip(PARTS, (kernel_cases, sampling_cases, masked_cases, training_cases)))
    failures = 0
    for part in parts:
        for name, run in cases[part](args.tiny, args.repeat):
            row = attempt(run)
            failures += "error" in row
            measure.report({"part": part, "case": name, **row}, as_json=True)
    device = jax.devices()[0]
    summary = {"part": "summary", "failures": failures, "device": device.device_kind, "platform": device.platform}
    measure.report(summary | {"jax": jax.__version__, "peak_bytes": measure.peak_bytes()}, as_json=True)
    return 1 if failures else 0


def attempt(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row of results, or of the error: one case that a device refuses must not cost the others."""
    try:
        return run()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def kernel_cases(tiny: bool, repeat: int) -> Iterator[Case]:
    sizes = dict(batch=1, heads=1, head_dim=8) if tiny else dict(batch=32, heads=16)
    for mask, name in itertools.product(attention.MASKS, attention.implementations("bfloat16")):
        for passes in ("forward", "both"):
            case = attention.Case(mask, name, passes, dtype="bfloat16", **sizes)
            yield f"{mask} {name} {passes}", lambda case=case: check_kernel(case, repeat)


def check_kernel(case: attention.Case, repeat: int) -> dict[str, Any]:
    """Speed of an implementation, and its largest errors against the oracle in float32 on the same numbers."""
    values = attention.inputs(case)
    exact = dataclasses.replace(case, implementation="reference", dtype="float32")
    got = jax.jit(lambda *x: attention.evaluate(case, *x))(*values)
    want = jax.jit(lambda *x: attention.evaluate(exact, *x))(*(x.astype(jnp.float32) for x in values))
    errors = {}
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, want):
        a, b = np.asarray(a, np.float32), np.asarray(b)
        errors[f"error_{name}"] = float(np.abs(a - b).max() / np.abs(b).max())
    row = attention.run(case, repeat) | errors
    if not max(errors.values()) < TOLERANCE:
        row["error"] = f"off by {max(errors.values()):.3g}, allowed {TOLERANCE}"
    return row


def networks(tiny: bool) -> tuple[Network, Network]:
    both = (LLAMAGEN_B, VAR_D16)
    return tuple(dataclasses.replace(n, **TINY) for n in both) if tiny else both


def sampling_cases(tiny: bool, repeat: int) -> Iterator[Case]:
    for network, batch in itertools.product(networks(tiny), (1, 2) if tiny else (1, 8, 64)):
        sampler = sampling.Sampler(batch, unroll=network.method == "ar")
        yield f"{network.method} batch {batch}", lambda n=network, s=sampler: sampling.run(n, s, repeat)


def masked_cases(tiny: bool, repeat: int) -> Iterator[Case]:
    sizes = {"maskgit": MASKGIT, "step": MASKGIT, "mar": MAR_B, "hmar": VAR_D16}
    for part, batch in itertools.product(masked.PARTS, (1,) if tiny else (1, 16)):
        network = dataclasses.replace(sizes[part], **TINY) if tiny else sizes[part]
        case = masked.Case(batch, **(dict(num_steps=4, refresh_every=2, head_steps=4) if tiny else {}))
        yield f"{part} batch {batch}", lambda p=part, n=network, c=case: {"rows": masked.run(p, n, c, repeat)}


def training_cases(tiny: bool, repeat: int) -> Iterator[Case]:
    for network, batch in itertools.product(networks(tiny), (2,) if tiny else (16, 64)):
        step = train_step.Step(batch)
        yield f"{network.method} batch {batch}", lambda n=network, s=step: train_step.run(n, s, repeat)


if __name__ == "__main__":
    sys.exit(main())
