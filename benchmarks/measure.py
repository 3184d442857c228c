"""What the benchmarks share: timing of compiled programs, options that take several values, lines of results."""

import argparse
import dataclasses
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one program costs.

    Attributes:
      compile_s: seconds to trace, lower and compile it with an empty cache.
      warm_compile_s: the same once more, when the persistent cache holds the executable.
      wall_s, cpu_s: of the best call, on the clock and of the processors together; where the machine is shared and has
        no accelerator, the second is the figure to compare.
      temp_bytes: memory beside arguments and results.
    """

    compile_s: float
    warm_compile_s: float
    wall_s: float
    cpu_s: float
    temp_bytes: int


def use_fresh_cache() -> None:
    """Points JAX's persistent compilation cache at an empty folder, so that first compilations are cold ones."""
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp(prefix="benchmark-cache-"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def measure(
    fn: Callable[..., Any],
    args: Sequence[Any],
    repeat: int,
    following: Callable[[Sequence[Any], Any, int], Sequence[Any]] = lambda args, result, call: args,
    donate: tuple[int, ...] = (),
) -> Timing:
    """Compiles `fn` twice, cold and from the persistent cache, then times `repeat` calls after one that is not counted.

    Args:
      following: (arguments and result of a call, its number) -> arguments of the next call.
      donate: positions of arguments that a call consumes.
    Raises:
      RuntimeError: a counted call traced `fn` again.
    """
    traces = 0

    def counted(*args: Any) -> Any:
        nonlocal traces
        traces += 1
        return fn(*args)

    program = jax.jit(counted, donate_argnums=donate)
    begun = time.perf_counter()
    compiled = program.lower(*args).compile()
    compile_s = time.perf_counter() - begun
    temp_bytes = compiled.memory_analysis().temp_size_in_bytes
    del compiled
    jax.clear_caches()
    begun = time.perf_counter()
    program.lower(*args).compile()
    warm_compile_s = time.perf_counter() - begun
    walls, cpus = [], []
    for call in range(repeat + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(program(*args))
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        if call == 0:
            traces = 0
        args = following(args, result, call)
    if traces:
        raise RuntimeError(f"{traces} of {repeat} calls traced the program again")
    return Timing(compile_s, warm_compile_s, min(walls[1:]), min(cpus[1:]), temp_bytes)


def side_by_side(
    programs: Mapping[str, tuple[Callable[..., Any], Sequence[Any]]], repeat: int
) -> dict[str, dict[str, float]]:
    """Compiles all programs, then calls them in turn, so that a busy machine slows all of them alike.

    Args:
      programs: functions and their arguments.
      repeat: counted rounds, after one that is not counted.
    Returns:
      For each program the medians `wall_s` and `cpu_s`, in seconds.
    """
    compiled = {name: (jax.jit(fn).lower(*args).compile(), args) for name, (fn, args) in programs.items()}
    seconds = {name: [] for name in programs}
    for _ in range(repeat + 1):
        for name, (program, args) in compiled.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(program(*args))
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {key: statistics.median(values) for key, values in zip(("wall_s", "cpu_s"), zip(*rounds[1:]))}
        for name, rounds in seconds.items()
    }


def peak_bytes() -> int | None:
    """Most memory that this process has held on its first device, None where the platform does not say (CPUs)."""
    stats = jax.local_devices()[0].memory_stats()
    return stats.get("peak_bytes_in_use") if stats else None


def parser(doc: str | None, *cases: type) -> argparse.ArgumentParser:
    """Options `--repeat` and `--json`, and one per field of the dataclasses that make up a case."""
    result = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in itertools.chain(*map(dataclasses.fields, cases)):
        result.add_argument(f"--{field.name}", default=str(field.default), help=f"default {field.default}")
    result.add_argument("--repeat", type=int, default=3, help="counted calls per case")
    result.add_argument("--json", action="store_true", help="one JSON object per case")
    return result


def combinations(args: argparse.Namespace, case: type) -> Iterable[Any]:
    """All instances of a dataclass that the options describe; several values of one are separated by commas."""
    fields = dataclasses.fields(case)
    values = [[_convert(field, text) for text in getattr(args, field.name).split(",")] for field in fields]
    for chosen in itertools.product(*values):
        yield case(**{field.name: value for field, value in zip(fields, chosen)})


def _convert(field: dataclasses.Field, text: str) -> Any:
    if field.type is bool:
        return {"true": True, "false": False}[text.lower()]
    return field.type(text) if field.type in (int, float) else text


def report(row: dict[str, Any], as_json: bool) -> None:
    """Prints one line: JSON, or name=value pairs with three significant digits."""
    if as_json:
        print(json.dumps(row), flush=True)
        return
    shown = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items() if v is not None}
    print("  ".join(f"{k}={v}" for k, v in shown.items()), flush=True)
