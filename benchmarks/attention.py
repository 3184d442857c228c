"""Implementations of attention side by side: python -m benchmarks.attention [--mask=causal,scales] [--json]

Masks: causal (256 tokens), scales (next-scale training at 256 px, 680 tokens), prefix (120 text and 256 image tokens).
Options take several values; all combinations are run. `--implementation=all` takes every one that the device runs.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.networks import VAR_SCALES
from jaxar.kernels.attention import attention
from jaxar.kernels.mask import MaskSpec
from jaxar.typing import Array

MASKS = {
    "causal": MaskSpec.causal(256),
    "scales": MaskSpec.block_causal(tuple(side**2 for side in VAR_SCALES[16])),
    "prefix": MaskSpec.prefix(120, 376),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One call; `passes` is "forward" or "both"."""

    mask: Literal["causal", "scales", "prefix"] = "causal"
    implementation: str = "all"
    passes: Literal["forward", "both"] = "forward"
    batch: int = 4
    heads: int = 4
    head_dim: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"


def implementations(dtype: str) -> tuple[str, ...]:
    """Those that the default device computes in this type; "auto" would be one of them once more."""
    own = {"gpu": ("cudnn",) if dtype == "bfloat16" else (), "tpu": ("flash_tpu",)}
    return ("reference", "xla", "sliced", *own.get(jax.default_backend(), ()))


def inputs(case: Case) -> list[Array]:
    """Queries, keys, values and the cotangent of the output, [b t h e] each."""
    shape = (case.batch, MASKS[case.mask].num_queries, case.heads, case.head_dim)
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), case.dtype) for _ in range(4)]


def evaluate(case: Case, q: Array, k: Array, v: Array, cotangent: Array) -> tuple[Array, ...]:
    """The output, and for "both" passes also the gradients of q, k and v."""

    def forward(q: Array, k: Array, v: Array) -> Array:
        return attention(q, k, v, MASKS[case.mask], implementation=case.implementation)

    if case.passes == "forward":
        return (forward(q, k, v),)
    out, pullback = jax.vjp(forward, q, k, v)
    return out, *pullback(cotangent)


def run(case: Case, repeat: int) -> dict[str, Any]:
    """One row of results."""
    mask = MASKS[case.mask]
    timing = measure.measure(lambda *args: evaluate(case, *args), inputs(case), repeat)
    products = {"forward": 2, "both": 7}[case.passes]  # the backward pass computes the logits again
    useful = products * 2 * case.batch * case.heads * case.head_dim * int(mask.dense().sum())
    return {
        **dataclasses.asdict(case),
        **dataclasses.asdict(timing),
        "tokens": mask.num_queries,
        "useful_gflops_per_s": useful / timing.wall_s / 1e9,
        "device": jax.devices()[0].device_kind,
    }


def main() -> None:
    args = measure.parser(__doc__, Case).parse_args()
    measure.use_fresh_cache()
    for case in measure.combinations(args, Case):
        names = implementations(case.dtype) if case.implementation == "all" else (case.implementation,)
        for name in names:
            measure.report(run(dataclasses.replace(case, implementation=name), args.repeat), args.json)


if __name__ == "__main__":
    main()
