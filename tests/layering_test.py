"""Imports point one way, the core stays free of tensorflow and torch, and the networks of tfds and ml_collections."""

import ast
import pathlib
import subprocess
import sys

import pytest

import jaxar

ROOT = pathlib.Path(jaxar.__file__).parent
# Lowest first; a module may import from its own layer and from those before it.
LAYERS = (
    ("typing", "config", "lookup", "partition"),
    ("kernels",),
    ("nn",),
    ("tokenizers.base", "methods.base"),
    ("tokenizers", "models"),
    ("decoding", "diffusion"),
    ("methods",),
    ("optim", "state", "train_step", "checkpoints", "data", "metrics", "flops", "logs", "workdir"),
    ("editing", "sampling"),
    ("settings",),
    ("weights",),
    ("cli", "parents"),
    ("experiment", "run", "backend"),
    ("meter", "evaluation"),
    ("interop", "scoring"),
    ("train", "sample", "evaluate", "encode", "pairs", "convert", "list", "reference", "sweep", "suites"),
    ("contest",),
    ("leaderboard",),
)
# Commands that live in a package of a lower layer.
COMMANDS = ("data.__main__", "metrics.train_classifier")
# They run where only jax, flax, optax, orbax are.
BARE = ("kernels", "nn", "models", "tokenizers", "decoding", "diffusion", "methods")


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(name):
    """Position of the longest prefix of `name` in LAYERS."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        for index, members in enumerate(LAYERS):
            if prefix in members:
                return index
    raise AssertionError(f"jaxar.{name} has no layer; place it in LAYERS of {__file__}")


def imports(path):
    """Imported modules, jaxar's without their prefix, wherever in the file they stand."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = (ROOT.parent / full.replace(".", "/")).with_suffix(".py").exists()
                is_package = (ROOT.parent / full.replace(".", "/")).is_dir()
                yield full if is_module or is_package else node.module


def wrong_edges(name, path):
    if name in COMMANDS or not name:
        return []
    inner = [m.removeprefix("jaxar.") for m in imports(path) if m.startswith("jaxar.")]
    return [f"jaxar.{name} -> jaxar.{other}" for other in inner if layer(other) > layer(name)]


FILES = {module_name(p): p for p in sorted(ROOT.rglob("*.py"))}


def test_imports_point_one_way():
    edges = [edge for name, path in FILES.items() for edge in wrong_edges(name, path)]
    assert not edges, edges


def test_an_import_that_points_up_is_found(tmp_path):
    upward = tmp_path / "attention.py"
    upward.write_text("from jaxar.methods import ar\n")
    assert wrong_edges("nn.attention", upward) == ["jaxar.nn.attention -> jaxar.methods.ar"]
    lazy = tmp_path / "mask.py"
    lazy.write_text("def f():\n    from jaxar import train\n")
    assert wrong_edges("kernels.mask", lazy) == ["jaxar.kernels.mask -> jaxar.train"]


@pytest.mark.parametrize("package", BARE)
def test_networks_and_methods_import_no_data_or_config_library(package):
    banned = ("tensorflow_datasets", "ml_collections", "grain", "sklearn", "tensorboardX")
    files = {name: path for name, path in FILES.items() if name.split(".")[0] == package}
    assert files
    found = [(name, m) for name, path in files.items() for m in imports(path) if m.split(".")[0] in banned]
    assert not found


def test_importing_everything_loads_neither_tensorflow_nor_torch():
    names = [f"jaxar.{name}" for name in FILES if name and not name.endswith("__main__")]
    code = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
loaded = [m for m in ("tensorflow", "torch") if m in sys.modules]
sys.exit(f"loaded: {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
