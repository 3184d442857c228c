"""Every shipped configuration, with each argument that it knows, builds: sections, method, shapes of the state."""

import ast
import functools
import math
import pathlib
import re

import jax
import pytest

from jaxar import cli, experiment, optim, parents, settings, state
from jaxar.config import ConfigError, parse
from jaxar.data import datasets
from tests.conformance import cases

CONFIGS = sorted(p.stem for p in cases.CONFIGS.glob("*.py") if p.stem != "common")


@functools.cache
def arguments(name):
    """The arguments that a configuration knows, as the message about an unknown one lists them; "" for none."""
    with pytest.raises(ConfigError, match="unknown argument of the configuration '-'; known: ") as error:
        cli.load_config(f"{cases.CONFIGS / name}.py:-")
    return ("", *re.search("known: (.*)", str(error.value))[1].split(", "))


# Published numbers of parameters, in millions; those above a thousand were rounded, or cut, to hundreds.
PUBLISHED = {
    ("ar_imagenet256", ""): 111,
    ("ar_imagenet256", "l"): 343,
    ("ar_imagenet384", ""): 343,
    ("ar_imagenet384", "xl"): 775,
    ("ar_imagenet384", "xxl"): 1_400,
    ("ar_imagenet384", "3b"): 3_100,
    ("hmar_imagenet256", ""): 310,
    ("hmar_imagenet256", "d20"): 600,
    ("hmar_imagenet256", "d24"): 1_000,
    ("hmar_imagenet256", "d30"): 2_000,
    ("mar_imagenet256", ""): 208,
    ("mar_imagenet256", "l"): 479,
    ("mar_imagenet256", "h"): 943,
    ("meanflow_imagenet256_b4", ""): 131,
    ("next_scale_imagenet256", ""): 310,
    ("next_scale_imagenet256", "d20"): 600,
    ("next_scale_imagenet256", "d24"): 1_000,
    ("next_scale_imagenet256", "d30"): 2_000,
    ("next_scale_imagenet512", ""): 2_300,
}


def marks(name, arg):
    """Slow: what neither is a default nor has a published size."""
    return () if arg == "" or (name, arg) in PUBLISHED else pytest.mark.slow


CASES = [
    pytest.param(name, arg, id=f"{name}:{arg}", marks=marks(name, arg)) for name in CONFIGS for arg in arguments(name)
]


@pytest.mark.parametrize("name", [name for name in CONFIGS if "smoke" in arguments(name)])
def test_smoke_trainings_take_seconds(name):
    train = cli.load_config(f"{cases.CONFIGS / name}.py:smoke")["train"]
    assert train["num_steps"] <= 4 and train["batch_size"] <= 16


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A folder with the classes of ImageNet, for configurations that want its root; nothing opens its images."""
    root = tmp_path_factory.mktemp("imagenet")
    for split in ("train", "val"):
        for label in range(1000):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            (folder / "0.JPEG").touch()
    return root


@pytest.fixture
def load(imagenet):
    def load(name, arg):
        config = cli.load_config(f"{cases.CONFIGS / name}.py" + f":{arg}" * bool(arg))
        if config["data"]["name"] == "imagenet":
            config["data"]["root"] = str(imagenet)
        return config

    return load


@pytest.fixture
def build(load):
    """Parses every section as a training run does; returns the method, its optimizers and the mesh."""

    def build(name, arg, changes=lambda config: None):
        def load_any(other):
            config = load(other, arg if arg in arguments(other) else "")
            if other == name:
                changes(config)
            return config

        config = load_any(name)
        settings.check_sections(config)
        train = parse(settings.TrainConfig, config["train"], "train")
        evals = parse(settings.EvalConfig, config["eval"], "eval")
        mesh = settings.mesh_of(config)
        experiment.check_relations(train, evals, mesh)
        parents.sections(config, pathlib.Path("child"))
        datasets.configure(config["data"])
        method = settings.build_method(config, settings.build_task(cases.described(name, load_any)))
        settings.build_sampling(config)
        return method, optim.build(config["optim"], method, train.num_steps), mesh

    return build


@pytest.mark.parametrize("name, arg", CASES)
def test_configurations_build(name, arg, build):
    method, optimizers, mesh = build(name, arg)
    shapes = state.abstract(method, optimizers, mesh)
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(shapes))
    counts = {player: _count(shapes.players[player].params) for player in method.players()}
    assert min(counts.values()) > 0
    count = next(iter(counts.values()))
    if arg == "":
        _compare_with_docstring(name, count)
    if (name, arg) in PUBLISHED:
        published = PUBLISHED[name, arg]
        assert count / 1e6 == pytest.approx(published, abs=1 if published < 1_000 else 60), f"{count:,}"
    if arg == "smoke":
        assert sum(counts.values()) < 1_000_000


def _count(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _compare_with_docstring(name, count):
    """The number of parameters of the first player, where the docstring gives it."""
    for text in re.findall(r"([\d.]+)M parameters", docstring(name)):
        digits = len(text.partition(".")[2])
        assert round(count / 1e6, digits) == float(text), f"{name} has {count:,} parameters"


def docstring(name):
    return ast.get_docstring(ast.parse((cases.CONFIGS / f"{name}.py").read_text())) or ""


@pytest.mark.parametrize(
    "section", ["data", "tokenizer", "model", "method", "optim", "mesh", "train", "sample", "eval"]
)
@pytest.mark.parametrize("name", ["ar_digits", "vq_digits"])
def test_stale_keys_are_refused(name, section, build):
    def add(config):
        config[section]["stale"] = 1

    with pytest.raises(ConfigError, match=f"unknown key '{section}.stale'|sample={{'stale': 1}} is set"):
        build(name, "smoke", add)


def test_stale_sections_are_refused(build):
    with pytest.raises(ConfigError, match="unknown section 'stale'"):
        build("vq_digits", "smoke", lambda config: config.update(stale={}))


def test_the_first_line_of_the_docstring_tells_a_configuration_from_all_others():
    titles = [docstring(name).partition("\n")[0] for name in CONFIGS]
    assert all(len(title) > 20 and title.endswith(".") for title in titles), titles
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_docstring_gives_the_command(name):
    assert f"python -m jaxar.train --config=configs/{name}.py --workdir=" in docstring(name)


@pytest.mark.parametrize("name", CONFIGS)
def test_parents_are_the_runs_of_configurations(name):
    config = cli.load_config(f"{cases.CONFIGS / name}.py")
    for section in ("tokenizer", "teacher", "init_from"):
        origin = config[section].get("from_")
        assert origin is None or (pathlib.Path(origin).name in CONFIGS and origin in docstring(name))
