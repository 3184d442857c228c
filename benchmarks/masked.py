"""What makes masked decoding cheaper, side by side: python -m benchmarks.masked [--parts=step,mar] [--batch=8] [--json]

Parts: step, one step of MaskGIT with and without reuse of keys and values, by the number of tokens that are known;
maskgit, whole samples of it; mar, MAR with and without reuse and with and without annealing of its head's steps (DiSA);
hmar, Markovian against next-scale prediction with a network of the same size. The programs of a part are called in
turn, and their times are medians.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import measure
from benchmarks.networks import NUM_CLASSES, Network, random_variables
from jaxar.decoding import logits as lg
from jaxar.decoding import mask_schedules, masked
from jaxar.methods import _token_heads as heads
from jaxar.methods import hmar, mar, maskgit, next_scale
from jaxar.methods.base import Method
from jaxar.typing import Array, Bool, Int

PARTS = ("step", "maskgit", "mar", "hmar")
FRESH = 8  # tokens that the step before the measured one decided
REFINED = ((1,), (1, 3), (1, 1, 2, 5))  # the schedule of mask passes that was published with HMAR
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """What is sampled.

    `refresh_every` and `segments` are those of reuse; annealing lets the `head_steps` of MAR's head fall to a tenth.
    """

    batch: int = 1
    guidance: float = 1.0
    num_steps: int = 32
    refresh_every: int = 8
    segments: int = 4
    head_steps: int = 50


def run(part: str, network: Network, case: Case, repeat: int) -> list[Row]:
    """Rows with the name of a variant, its medians, and `share`, its processor time over that of the first one."""
    measured = {"step": _step, "maskgit": _maskgit, "mar": _mar, "hmar": _hmar}[part]
    return measured(network, case, repeat)


def _step(network: Network, case: Case, repeat: int) -> list[Row]:
    """Pairs of rows, without and with reuse, for shares of the tokens that are known."""
    method = dataclasses.replace(network, method="maskgit").build()
    n = method.network.num_tokens
    rows = []
    for known in (0, n // 4, n // 2, 3 * n // 4, 7 * n // 8):
        programs = {name: _one_step(method, case, every, known) for name, every in _reuse(case)}
        pair = _rows(measure.side_by_side(programs, repeat))
        computed = (n + 1, min(n, n - known + FRESH))
        rows += [{"known": known, "computed": count, **row} for count, row in zip(computed, pair)]
    return rows


def _reuse(case: Case) -> tuple[tuple[str, int | None], ...]:
    return ("all computed", None), ("reuse", case.refresh_every)


def _one_step(method: maskgit.MaskGIT, case: Case, refresh_every: int | None, known: int) -> tuple[Any, tuple]:
    """The step after the first, which does not refresh, and its arguments."""
    n = method.network.num_tokens
    options = maskgit.Sampling(num_steps=2, guidance_scale=case.guidance, refresh_every=refresh_every)
    segment = mask_schedules.unbounded(2, n)._replace(due=min(n, n - known + FRESH))
    is_known = jnp.broadcast_to(jnp.arange(n) < known, (case.batch, n))
    variables, cond = random_variables(method), {"label": jnp.arange(case.batch) % NUM_CLASSES}

    def advance(variables: Any, ids: Int[Array, "b n"], step: Int[Array, ""], keys: Any) -> Bool[Array, "b n"]:
        law, memory = method.rules(variables["model"], cond, options, lg.guidance_scales(options, 2))
        if memory is not None:
            settled = jnp.arange(n) < known - FRESH
            memory = memory._replace(settled=jnp.broadcast_to(settled, memory.settled.shape))
        keep = masked.most_confident(lambda masked, step, keys: masked // 2, options.confidence_noise())
        return masked.advance(law, masked.State(ids, is_known, memory), step, keys, segment, keep=keep)[0].tokens

    ids = jnp.zeros((case.batch, n), jnp.int32)
    return advance, (variables, ids, jnp.int32(1), jax.random.split(jax.random.key(0), case.batch))


def _maskgit(network: Network, case: Case, repeat: int) -> list[Row]:
    method = dataclasses.replace(network, method="maskgit").build()
    common = dict(num_steps=case.num_steps, guidance_scale=case.guidance, segments=case.segments)
    options = {name: maskgit.Sampling(refresh_every=every, **common) for name, every in _reuse(case)}
    return _samples({name: (method, each) for name, each in options.items()}, case, repeat)


def _mar(network: Network, case: Case, repeat: int) -> list[Row]:
    method = dataclasses.replace(network, method="mar").build()
    samplers = {}
    for name, every in _reuse(case):
        for annealed in (False, True):
            last = max(2, case.head_steps // 10) if annealed else None
            head = heads.Steps(case.head_steps, last=last, start=950 if annealed else None)
            common = dict(guidance_scale=case.guidance, segments=case.segments, refresh_every=every)
            samplers[name + ", DiSA" * annealed] = method, mar.Sampling(case.num_steps, head, **common)
    return _samples(samplers, case, repeat)


def _hmar(network: Network, case: Case, repeat: int) -> list[Row]:
    other, markov = (dataclasses.replace(network, method=name).build() for name in ("next_scale", "hmar"))
    common = dict(guidance_scale=case.guidance)
    samplers = {
        "next_scale": (other, next_scale.Sampling(**common)),
        "hmar": (markov, hmar.Sampling(**common)),
        "hmar, 4 mask passes": (markov, hmar.Sampling(mask_schedule=REFINED, **common)),
    }
    return _samples(samplers, case, repeat)


def _samples(samplers: dict[str, tuple[Method, Any]], case: Case, repeat: int) -> list[Row]:
    """One row for each pair of method and options; methods of one kind have the same weights."""
    cond = {"label": jnp.arange(case.batch) % NUM_CLASSES}
    keys = jax.random.split(jax.random.key(0), case.batch)

    def program(method: Method, options: Any) -> tuple[Any, tuple]:
        return lambda variables, keys: method.sample(variables, cond, keys, options), (random_variables(method), keys)

    return _rows(measure.side_by_side({name: program(*each) for name, each in samplers.items()}, repeat))


def _rows(timings: dict[str, dict[str, float]]) -> list[Row]:
    first = next(iter(timings.values()))
    return [{"variant": name, **row, "share": row["cpu_s"] / first["cpu_s"]} for name, row in timings.items()]


def main() -> None:
    parser = measure.parser(__doc__, Network, Case)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of " + ", ".join(PARTS))
    args = parser.parse_args()
    for network in measure.combinations(args, Network):
        for case in measure.combinations(args, Case):
            for part in args.parts.split(","):
                for row in run(part, network, case, args.repeat):
                    measure.report({"part": part, **row}, args.json)


if __name__ == "__main__":
    main()
