"""Recomputes reference outputs of official code: python -m jaxar.interop.check FIXTURE.safetensors [...] [--json]

Each fixture's weights go through the converter of its family, and every output is computed anew by our models and
samplers. Exit code 1 if one differs by more than the fixture tolerates, 2 if a fixture cannot be checked.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxar import backend, cli
from jaxar.config import ConfigError, unknown
from jaxar.interop import base, fixtures
from jaxar.interop.fixtures import Fixture, Row
from jaxar.typing import Variables

EXCEEDED = 1


def check(fixture: Fixture) -> list[Row]:
    """One row per network, whose weights must survive the way to us and back, and one per output.

    Raises:
      ConfigError: an unknown family, weights that do not fit it, or a call that the family does not know.
    """
    family = base.family(fixture.family)
    # Accelerators multiply float32 matrices in shorter formats unless asked not to.
    with jax.default_matmul_precision("highest"):
        official = family.describe(fixture.models)
        variables, rows = _load(fixture, official)
        return [*rows, *_recompute(fixture, family.CALLS, official, variables)]


def _load(fixture: Fixture, official: base.Official) -> tuple[dict[str, Variables], list[Row]]:
    """Variables by player, and a row per network."""
    variables: dict[str, Variables] = {}
    rows = []
    for part in official.parts:
        weights = fixture.weights(part.model)
        converted = part.to_variables(weights, f"{fixture.path} ({part.model})")
        rows.append(_round_trip(part, converted, weights))
        kept = {name: weights[name] for name in part.table.kept if name in weights}
        variables[part.player] = {**converted, base.KEPT: kept}
    return variables, rows


def _round_trip(part: base.Part, variables: Variables, weights: dict[str, np.ndarray]) -> Row:
    back = part.to_official(variables)
    names = [name for name in weights if name not in part.table.kept]
    same = [np.array_equal(back[name].astype(weights[name].dtype), weights[name]) for name in names]
    largest = max((float(np.abs(back[n] - weights[n]).max()) for n, s in zip(names, same) if not s), default=0.0)
    return Row(f"param/{part.model}", largest, None, float(np.mean(same)), "exact", 0, all(same))


def _recompute(
    fixture: Fixture, calls: dict[str, base.Call], official: base.Official, variables: dict[str, Variables]
) -> Iterator[Row]:
    results: dict[str, base.Parts] = {}
    for output in fixture.outputs:
        if output.fn not in calls:
            raise unknown(f"function of family {fixture.family!r}", output.fn, calls)
        if output.call not in results:
            args = {name: fixture.resolve(value) for name, value in output.args.items()}
            results[output.call] = _call(calls, official, variables, output, args)
        parts = results[output.call]
        if output.part not in parts:
            raise unknown(f"part of {output.fn}", output.part, parts)
        mine = fixtures.selected(fixture, np.asarray(parts[output.part]), output.select)
        yield fixtures.compare(output.name, mine, fixture.tensors[output.name], output.tolerance)


def _call(
    calls: dict[str, base.Call],
    official: base.Official,
    variables: dict[str, Variables],
    output: fixtures.Output,
    args: dict[str, Any],
) -> base.Parts:
    args = jax.tree.map(lambda x: jax.numpy.asarray(x) if isinstance(x, np.ndarray) else x, args)
    try:
        return calls[output.fn](official, variables, **args)
    except ConfigError as error:
        raise ConfigError(f"{output.name}: {error}") from error


def command(argv: list[str]) -> int:
    parser = cli.Parser(__doc__, prog="python -m jaxar.interop.check")
    parser.add_argument("fixtures", nargs="+", metavar="FIXTURE.safetensors", help="with its .json beside it")
    parser.add_json()
    args = parser.parse_args(argv)
    backend.initialize()
    results = [_checked(path) for path in args.fixtures]
    passed = all(result["passed"] for result in results)
    cli.emit({"passed": passed, "fixtures": results}, "\n\n".join(map(_text, results)), args.json)
    errors = [result["error"] for result in results if result["error"]]
    if errors:
        raise ConfigError("; ".join(errors))
    return 0 if passed else EXCEEDED


def _checked(path: str) -> dict[str, Any]:
    """The result of one fixture; one that cannot be checked does not keep the others from being checked."""
    found: dict[str, Any] = {"fixture": path, "family": None, "passed": False, "error": None, "rows": []}
    try:
        fixture = fixtures.read(path)
        found |= {"fixture": fixture.name, "family": fixture.family}
        rows = check(fixture)
    except ConfigError as error:
        return found | {"error": str(error)}
    return found | {"passed": all(row.passed for row in rows), "rows": [dataclasses.asdict(row) for row in rows]}


def _text(result: dict[str, Any]) -> str:
    rows = result["rows"]
    lines = [f"{result['fixture']} ({result['family']}): {'passed' if result['passed'] else 'FAILED'}"]
    if result["error"]:
        return f"{lines[0]}, not checked"
    width = max(len(row["output"]) for row in rows)
    lines.append(f"  {'output':<{width}}  max error  over std     equal  tolerance")
    for row in rows:
        over = "       -" if row["error_over_std"] is None else f"{row['error_over_std']:8.1e}"
        rule = f"{row['kind']} {row['tolerance']:g}"
        verdict = "" if row["passed"] else "   FAILED"
        lines.append(
            f"  {row['output']:<{width}}  {row['max_error']:9.1e}  {over}  {row['equal']:7.1%}  {rule}{verdict}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    cli.main(command)
