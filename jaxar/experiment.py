"""One training run from its configuration: checked, parents adopted, plan built. Whatever fails, fails here."""

import dataclasses
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxar import checkpoints, optim, parents, partition, settings, weights, workdir
from jaxar import state as state_lib
from jaxar.config import ConfigError, parse, unknown
from jaxar.data import datasets
from jaxar.data.base import DataConfig, DataInfo, make_folder
from jaxar.methods.base import Method, Task
from jaxar.metrics import classifier
from jaxar.tokenizers.base import Encoder
from jaxar.train_step import Plan
from jaxar.typing import Variables


@dataclasses.dataclass(frozen=True)
class Setup:
    """One training run, fully checked: nothing after this point depends on what the user typed."""

    folder: pathlib.Path
    config: dict[str, Any]
    described: dict[str, Any]
    train: settings.TrainConfig
    eval: settings.EvalConfig
    data: DataConfig
    info: DataInfo
    mesh: Mesh
    task: Task
    method: Method
    plan: Plan
    frozen: dict[str, Variables]


def prepare(config: dict[str, Any], folder: pathlib.Path) -> Setup:
    """Checks the configuration, adopts parents and builds the plan.

    Raises:
      ConfigError: any mistake in the configuration, before anything is compiled.
    """
    config = workdir.normalized(config)
    settings.check_sections(config)
    train = parse(settings.TrainConfig, config.get("train") or {}, "train")
    evals = parse(settings.EvalConfig, config.get("eval") or {}, "eval")
    data = datasets.configure(config.get("data") or {})
    mesh = settings.mesh_of(config)
    check_relations(train, evals, mesh)
    workdir.check_same_run(folder, config)
    make_folder(folder, "--workdir")
    info = datasets.info(data)
    adopted = {name: parents.adopt(folder, name, p, mesh) for name, p in parents.sections(config, folder).items()}
    if jax.process_count() > 1:  # process 0 wrote what the others read next
        multihost_utils.sync_global_devices("parents are adopted")
    described = describe(config, info, adopted)
    task = settings.build_task(described)
    method = settings.build_method(config, task)
    if not method.losses():
        name = config["method"]["name"]
        raise ConfigError(f"method.name={name!r} has nothing to train; give it as teacher.method to one that has")
    if (options := settings.build_sampling(config)) is not None:
        method.network_calls(options)  # refuses options that do not fit the method
    plan = Plan(
        method=method,
        optimizers=optim.build(config.get("optim") or {}, method, train.num_steps),
        prepare=Encoder(task.tokenizer) if "tokenizer" in adopted and info.tokens is None else None,
        accumulate=train.accumulate,
    )
    _check_tokenizer(config, method, adopted, info)
    _check_pairs(config, method, adopted, info)
    weights.check_average(config, method, next(iter(method.players())), evals.ema, "value of eval.ema")
    abstract = state_lib.abstract(method, plan.optimizers, mesh)  # raises for sizes that the mesh does not divide
    _check_start(config, train, folder, abstract, mesh)
    frozen = {**parents.load_adopted(folder, task, mesh), **jax.device_put(method.frozen(), partition.replicated(mesh))}
    return Setup(folder, config, described, train, evals, data, info, mesh, task, method, plan, frozen)


def describe(config: dict[str, Any], info: DataInfo, adopted: dict[str, Any]) -> dict[str, Any]:
    """The contents of `task.json`: what data and parents fix."""
    tokenizer = config.get("tokenizer") or {}
    if "tokenizer" in adopted:
        tokenizer = adopted["tokenizer"]["described"]
    elif tokenizer:
        if "name" not in tokenizer:
            raise ConfigError(
                f"tokenizer={tokenizer!r} needs from_ (the workdir of a trained tokenizer) or name (one to train)"
            )
        tokenizer = {"name": tokenizer["name"], "options": {k: v for k, v in tokenizer.items() if k != "name"}}
    described = {
        "image": dataclasses.asdict(info.image),
        "num_classes": info.num_classes,
        "class_names": list(info.class_names),
        "captions": list(info.captions),
        "text": dataclasses.asdict(info.text) if info.text else None,
        "tokens": dataclasses.asdict(info.tokens) if info.tokens else None,
        "tokenizer": tokenizer or None,
        "teacher": None,
    }
    return {**described, "teacher": _describe_teacher(config.get("teacher") or {}, adopted, described)}


def _describe_teacher(section: dict[str, Any], adopted: dict[str, Any], task: dict[str, Any]) -> dict[str, Any] | None:
    """The teacher's method and task: of another run, or for this run's own task in closed form (`teacher.method`)."""
    if "teacher" in adopted:
        return adopted["teacher"]["described"]
    for key in section:
        if key not in ("method", "model"):
            raise unknown("key", f"teacher.{key}", ("teacher.method", "teacher.model"))
    return (
        {"config": {"method": section["method"], "model": section.get("model") or {}}, "task": task}
        if section
        else None
    )


def check_relations(train: settings.TrainConfig, evals: settings.EvalConfig, mesh: Mesh) -> None:
    """Refuses sections that are right by themselves but not together."""
    _check_batches(train, evals, mesh)
    _check_retention(train, evals)
    _check_reference(evals)


def _check_batches(train: settings.TrainConfig, evals: settings.EvalConfig, mesh: Mesh) -> None:
    ways = partition.batch_ways(mesh)
    micro = train.batch_size // train.accumulate
    if micro % ways:
        raise ConfigError(
            f"train.batch_size={train.batch_size} / train.accumulate={train.accumulate} = {micro} is not divisible by "
            f"mesh data*fsdp={ways}; use a multiple of {ways * train.accumulate}"
        )
    if evals.batch_size % ways and (evals.every or evals.sample_every):
        raise ConfigError(
            f"eval.batch_size={evals.batch_size} is not divisible by mesh data*fsdp={ways}; use a multiple of {ways}"
        )


def _check_retention(train: settings.TrainConfig, evals: settings.EvalConfig) -> None:
    """A checkpoint can only be the best if its metric was measured at its step."""
    if train.keep.metric is None:
        return
    every = evals.every if train.keep.metric.startswith("eval/test/") else evals.sample_every
    if every is None or train.checkpoint_every % every:
        raise ConfigError(
            f"train.keep.metric={train.keep.metric!r} is measured every {every} steps and checkpoints are saved every "
            f"train.checkpoint_every={train.checkpoint_every}; make it a multiple of the former (eval.every for "
            "eval/test/..., eval.sample_every for others)"
        )


def _check_reference(evals: settings.EvalConfig) -> None:
    if evals.reference is not None and evals.reference not in classifier.names():
        raise unknown("value of eval.reference", evals.reference, classifier.names())


def _check_start(
    config: dict[str, Any],
    train: settings.TrainConfig,
    folder: pathlib.Path,
    abstract: state_lib.TrainState,
    mesh: Mesh,
) -> None:
    """What a run goes on from, its own checkpoint or `init_from`, must fit it and leave something to train."""
    saved = checkpoints.list_saved(folder / "checkpoints")
    if saved and saved[-1].step > train.num_steps:
        raise ConfigError(
            f"train.num_steps={train.num_steps}, but {folder} has done {saved[-1].step} steps; ask for at least as "
            "many, or choose a new --workdir"
        )
    if saved or not config.get("init_from"):
        return  # a run that has begun no longer needs its source
    source = weights.open_source(config["init_from"])
    weights.common_players(source, abstract, mesh)
    if source.state and source.step >= train.num_steps:
        raise ConfigError(
            f"train.num_steps={train.num_steps}, but init_from.state=True goes on at step {source.step} of "
            f"{source.folder}; ask for more steps, or take its weights alone with init_from.state=False"
        )


def _check_tokenizer(config: dict, method: Method, adopted: dict[str, Any], info: DataInfo) -> None:
    if config.get("tokenizer") and "tokenizer" not in adopted and "tokenizer" not in method.players():
        raise ConfigError(
            f"tokenizer.name={config['tokenizer'].get('name')!r}: method.name={config['method']['name']!r} does not "
            "train a tokenizer; train one with configs/vq_digits.py, say, and give its workdir as tokenizer.from_"
        )
    if info.tokenizer and "tokenizer" in adopted and info.tokenizer != adopted["tokenizer"]["digest"]:
        raise ConfigError(
            f"data.cache={config['data']['cache']!r} was encoded by tokenizer {info.tokenizer}, tokenizer.from_ gives "
            f"{adopted['tokenizer']['digest']}; encode again or name the tokenizer that wrote it"
        )


def _check_pairs(config: dict, method: Method, adopted: dict[str, Any], info: DataInfo) -> None:
    """Stored pairs must be those that the method would make."""
    law = method.pair_law()
    if info.pairs is None or law is None:
        return
    for what, stored, own in (
        ("the teacher", info.pairs.teacher, adopted["teacher"]["digest"]),
        ("the law", info.pairs.law, law),
    ):
        if stored != own:
            raise ConfigError(
                f"data.cache={config['data']['cache']!r} holds pairs of {what} {stored}, this configuration has {own}; "
                "make them again with python -m jaxar.pairs, or change it to fit"
            )
