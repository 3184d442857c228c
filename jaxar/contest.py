"""One method's line in a leaderboard: trained within a budget, or refused, and measured."""

import dataclasses
import hashlib
import json
import math
import pathlib
import sys
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxar import experiment, run, sampling, scoring, settings, train, workdir
from jaxar.config import ConfigError
from jaxar.methods.base import Method
from jaxar.suites import Suite

BATCHES = (1, 64)  # images at once whose latency is measured
CALLS = (1, 2, 4)  # numbers of steps at which few-step methods are compared
_REPEAT = 3
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What one method may use; `max_parameters` counts the network that samples, without parents."""

    max_parameters: int
    max_steps: int
    max_seconds: float


@dataclasses.dataclass(frozen=True)
class Measuring:
    """How samples are judged: `num` per seed, None for as many as there are training images."""

    num: int | None
    seeds: tuple[int, ...]


class Stopped(Exception):
    """SIGTERM ended a training after it was saved."""


def enter(
    suite: Suite,
    method: str,
    budget: Budget,
    measuring: Measuring,
    judge: scoring.Judge,
    latency_again: bool = False,
) -> Row:
    """The line of one method; what the suite's runs and rows hold already is not done again.

    Args:
      latency_again: but for "latency_ms".
    Returns:
      "method", "teacher" (the configuration that it learns from, or None), "parameters", "num_steps", "own_num_steps"
      (before it was cut), and unless "refused" says why not, "train_seconds" and what `measure` returns.
    Raises:
      ConfigError: mistakes in configurations; a run of other length than the budget now gives.
      Stopped: see there.
    """
    stem = f"{method}_{suite.dataset}"
    for parent in suite.parents(stem):
        train_once(suite.config(parent), suite.runs / parent)
    config, folder = suite.config(stem), suite.runs / stem
    own = config["train"]["num_steps"]
    config["train"]["num_steps"] = min(own, budget.max_steps)
    parameters = count_parameters(experiment.prepare(config, folder).method)
    row = {
        "method": method,
        "teacher": suite.teacher(stem),
        "parameters": parameters,
        "num_steps": config["train"]["num_steps"],
        "own_num_steps": own,
    }
    if parameters > budget.max_parameters:
        return row | {"refused": f"{parameters:,} parameters, {budget.max_parameters:,} are allowed"}
    train_once(config, folder)
    measured = _measured_once(folder, config["sample"], measuring, judge, latency_again)
    return row | {"train_seconds": train_seconds(folder)} | measured


def train_once(config: dict[str, Any], folder: pathlib.Path) -> None:
    """Trains or resumes a run that is not finished.

    Raises:
      ConfigError: the folder holds another run, also one of another length: its learning rate followed another course.
    """
    config = workdir.normalized(config)
    workdir.check_same_run(folder, config)
    steps = config["train"]["num_steps"]
    if workdir.started(folder):
        before = workdir.read_json(folder / "config.json")["train"]["num_steps"]
        if before != steps:
            raise ConfigError(
                f"{folder} is a run of {before} steps, asked for are {steps}; choose a new --out, or remove that folder"
            )
    if (folder / "DONE").is_file():
        return
    print(f"training {folder}", file=sys.stderr)
    if not train.train(config, folder):
        raise Stopped


def count_parameters(method: Method) -> int:
    """Of the network that samples, the first player."""
    first = next(iter(method.players()))
    params = nn.meta.unbox(jax.eval_shape(method.init, jax.random.key(0)))[first]["params"]
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def train_seconds(folder: pathlib.Path) -> float:
    """What the steps of a run took by its log, compilation, evaluation and saving excluded."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = {line["step"]: line["perf/step_time_s"] for line in lines if "perf/step_time_s" in line}
    steps = sorted(timed)
    return sum((step - before) * timed[step] for before, step in zip([0, *steps], steps))


def _measured_once(
    folder: pathlib.Path,
    options: dict[str, Any],
    measuring: Measuring,
    judge: scoring.Judge,
    latency_again: bool = False,
) -> Row:
    """`measure` with these sampling options, stored beside the run under a name of what it depends on."""
    what = [(folder / "DONE").stat().st_mtime_ns, options, dataclasses.astuple(measuring), judge.sha256]
    name = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]
    file = folder / "evaluations" / f"leaderboard_{name}.json"
    if not file.exists():
        print(f"measuring {folder}", file=sys.stderr)
        file.parent.mkdir(exist_ok=True)
        workdir.write_json(file, measure(sampled_with(run.load(folder), options), measuring, judge))
    elif latency_again:
        print(f"timing {folder}", file=sys.stderr)
        timed = {"latency_ms": latencies(sampled_with(run.load(folder), options))}
        workdir.write_json(file, workdir.read_json(file) | timed)
    return workdir.read_json(file)


def sampled_with(opened: run.Run, options: dict[str, Any]) -> run.Run:
    """The run with these sampling options in place of its own: those that training recorded may be out of date."""
    config = {**opened.config, "sample": options}
    return dataclasses.replace(opened, config=config, options=settings.build_sampling(config))


def measure(opened: run.Run, measuring: Measuring, judge: scoring.Judge) -> Row:
    """Quality, validation figures and latency of a run.

    Returns:
      What `scoring.evaluate_generator` returns for the configuration's own sampling options, with "validation", "step",
      "ema", "latency_ms" (milliseconds per image by batch size, on one device), and what `few_calls` returns.
    """
    latency = latencies(opened)
    result = _score(opened, measuring, judge, {})
    return {
        **result,
        "validation": scoring.validate(opened),
        "step": opened.step,
        "ema": opened.ema,
        "latency_ms": latency,
        "few_calls": few_calls(opened, measuring, judge, result),
    }


def few_calls(opened: run.Run, measuring: Measuring, judge: scoring.Judge, result: Row) -> dict[str, Any]:
    """Metrics by number of network calls, of a method whose samples take a few steps that can be chosen; else empty.

    Args:
      result: of its own number of steps, which is not measured again.
    """
    names = {field.name for field in dataclasses.fields(opened.options)}
    name = next((name for name in ("num_steps", "steps") if name in names), None)
    own = None if name is None else getattr(opened.options, name)
    if own is None or own > max(CALLS):
        return {}
    found = {}
    for count in CALLS:
        try:
            scored = result if count == own else _score(opened, measuring, judge, {name: count})
        except ConfigError:  # more calls than the student was trained for
            continue
        found[str(scored["network_calls"])] = scored["metrics"]
    return found


def _score(opened: run.Run, measuring: Measuring, judge: scoring.Judge, options: dict[str, Any]) -> Row:
    return scoring.evaluate_generator(
        opened, judge, num=measuring.num, seeds=measuring.seeds, batch_size=BATCHES[-1], options=options
    )


def latencies(opened: run.Run) -> dict[str, float]:
    """`latency_ms` by batch size."""
    return {str(size): latency_ms(opened, size) for size in BATCHES}


def latency_ms(opened: run.Run, batch_size: int) -> float:
    """Milliseconds per image, images on the host included: the best of a few calls after the one that compiles."""
    sampler = opened.sampler(batch_size)
    labels = sampling.balanced_labels(batch_size, opened.task.num_classes)
    cond = sampling.conditions(opened.task, labels, opened.captions)
    times = []
    for _ in range(_REPEAT + 1):
        before = sampler.run_seconds
        sampler(opened.variables, cond, np.arange(batch_size), 0)
        times.append(sampler.run_seconds - before)
    return 1000 * min(times[1:]) / batch_size
