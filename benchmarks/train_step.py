"""Speed of the train step: python -m benchmarks.train_step [--method=ar,next_scale] [--batch=2,4] [--remat=full]

Tokens come ready-made, as from a token cache; the step is the trainer's own, with AdamW and one average. Options take
several values; all combinations are run. LlamaGen-B: --layers=12 --width=768 --vocab=16384.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.networks import Network, num_parameters, random_variables
from jaxar import flops, optim, partition
from jaxar import state as state_lib
from jaxar.train_step import Plan, train_step


@dataclasses.dataclass(frozen=True)
class Step:
    """`batch` images per step, in `accumulate` parts."""

    batch: int = 2
    accumulate: int = 1


def run(network: Network, step: Step, repeat: int) -> dict[str, Any]:
    """One row of results."""
    method = network.build()
    optimizers = optim.build({"ema": (0.999,)}, method, num_steps=1000)
    plan = Plan(method, optimizers, accumulate=step.accumulate)
    variables = random_variables(method)
    frozen = {name: variables[name] for name in variables if name not in method.players()}
    state = state_lib.create(method, optimizers, partition.single_device_mesh(), jax.random.key(0))
    ids = np.random.default_rng(0).integers(network.vocab, size=(step.batch, network.num_tokens))
    batch = {"ids": jnp.asarray(ids, jnp.int32), "label": jnp.arange(step.batch)}
    fn = functools.partial(train_step, plan=plan, active=method.active(0))
    args = (state, frozen, batch, jax.random.key(1))
    operations = flops.count(fn, *args)
    timing = measure.measure(fn, args, repeat, lambda args, result, _: (result[0], *args[1:]), donate=(0,))
    peak = flops.peak_flops(jax.devices()[0])
    return {
        **dataclasses.asdict(network),
        **dataclasses.asdict(step),
        **dataclasses.asdict(timing),
        "parameters": num_parameters(variables),
        "images_per_s": step.batch / timing.wall_s,
        "tokens_per_s": step.batch * network.num_tokens / timing.wall_s,
        "tflops": operations / 1e12,
        "share_of_peak": operations / timing.wall_s / peak if peak else None,
        "peak_bytes": measure.peak_bytes(),
        "device": jax.devices()[0].device_kind,
    }


def main() -> None:
    args = measure.parser(__doc__, Network, Step).parse_args()
    measure.use_fresh_cache()
    for network in measure.combinations(args, Network):
        for step in measure.combinations(args, Step):
            measure.report(run(network, step, args.repeat), args.json)


if __name__ == "__main__":
    main()
