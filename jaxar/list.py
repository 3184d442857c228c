"""Lists what is there: python -m jaxar.list [methods|tokenizers|datasets|configs] [--json]

With --markdown, run in a checkout, it prints docs/methods.md: methods and tokenizers with their configurations, tests
and sources. The file of a method or tokenizer is where these are said: in the first line of its docstring and in the
paragraphs that begin with "Reference:" and "Golden:" (names in tests/golden). Distances on digits are those that
docs/leaderboard.json keeps of `python -m jaxar.leaderboard`.
"""

import ast
import dataclasses
import importlib
import json
import pathlib
from collections.abc import Iterable, Iterator

from jaxar import cli, lookup
from jaxar.config import ConfigError

PACKAGES = {"methods": "jaxar.methods", "tokenizers": "jaxar.tokenizers", "datasets": "jaxar.data.sources"}
_LABELS = ("Reference:", "Golden:")
_HEAD = """\
<!-- Written by `python -m jaxar.list --markdown > docs/methods.md`; tests/list_test.py compares. -->

# Methods and tokenizers

"Equals the official code": networks, losses or samples agree with numbers that the official implementation gave for
small random weights (`tests/golden`, each with source, commit and tolerance). "Own tests": held to formulas and exact
cases, since there are no such numbers. Besides the tests below, every method is tried through its configuration on
digits by `tests/conformance`: sharded against one device, resumed against uninterrupted, repeatable samples. For
methods that differ little from others a part of it runs in the slow suite (`bash launch/test.sh --slow`).

"On digits": fd_digits of the samples as the configuration draws them, and the network calls that one takes; see
[the leaderboard](leaderboard.md), of which these are lines.
"""
LEADERBOARD = "docs/leaderboard.json"


def described(package: str) -> dict[str, str]:
    """Name and first docstring line of every member of a package, without importing the members."""
    folder = pathlib.Path(importlib.import_module(package).__path__[0])
    return {name: _summary(folder / f"{name}.py") for name in lookup.names(package)}


def configs(folder: pathlib.Path) -> dict[str, str]:
    """Path and first docstring line of every configuration in `folder`."""
    return {str(p): _summary(p) for p in sorted(folder.glob("*.py")) if p.stem not in ("__init__", "common")}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method or tokenizer of a checkout; files are given relative to it.

    Attributes:
      measured: what the leaderboard says of its configurations, a line for each.
    """

    name: str
    file: str
    summary: str
    reference: str
    golden: tuple[str, ...]
    configs: tuple[str, ...]
    tests: tuple[str, ...]
    measured: tuple[str, ...]

    @property
    def status(self) -> str:
        return "equals the official code" if self.golden else "own tests"


def catalogue(root: pathlib.Path) -> dict[str, list[Entry]]:
    """The methods and tokenizers of the checkout `root`.

    Raises:
      ConfigError: `root` is no checkout.
    """
    if not all((root / folder).is_dir() for folder in ("jaxar", "configs", "tests")):
        raise ConfigError(f"--markdown: {root.absolute()} has no jaxar/, configs/ and tests/; run it in a checkout")
    loaded = {pathlib.Path(path): cli.load_config(path) for path in configs(root / "configs")}
    rows = _rows(root / LEADERBOARD)
    return {
        kind: [_entry(root, kind, section, name, loaded, rows) for name in lookup.names(PACKAGES[kind])]
        for kind, section in (("methods", "method"), ("tokenizers", "tokenizer"))
    }


def _rows(file: pathlib.Path) -> dict[str, str]:
    """What the leaderboard measured, by the stem of the configuration."""
    if not file.is_file():
        return {}
    report = json.loads(file.read_text())
    suite = report["suite"]
    return {
        f"{row['method']}_{suite}": (
            f"{row['method']}: {row['metrics'][f'fd_{suite}']['mean']:.2f}, {row['network_calls']} "
            f"call{'s' * (row['network_calls'] > 1)}"
        )
        for row in report["rows"]
        if "metrics" in row
    }


def _entry(
    root: pathlib.Path, kind: str, section: str, name: str, loaded: dict[pathlib.Path, dict], rows: dict[str, str]
) -> Entry:
    file = f"jaxar/{kind}/{name}.py"
    tree = ast.parse((root / file).read_text())
    paragraphs = [" ".join(text.split()) for text in (ast.get_docstring(tree) or "").split("\n\n")]
    said = {label: text.removeprefix(label) for text in paragraphs for label in _LABELS if text.startswith(label)}
    modules = dict.fromkeys((f"{kind}.{name}", *_parts(tree)))  # one may be imported from twice
    own = [path for path, config in loaded.items() if _named(config, section) == name]
    mirrored = (f"tests/{module.replace('.', '/')}_test.py" for module in modules)
    return Entry(
        name=name,
        file=file,
        summary=paragraphs[0],
        reference=said.get("Reference:", "").strip(),
        golden=tuple(f"tests/golden/{fixture}.json" for fixture in said.get("Golden:", "").replace(",", " ").split()),
        configs=tuple(f"configs/{path.name}" for path in own),
        tests=tuple(test for test in mirrored if (root / test).is_file()),
        measured=tuple(rows[path.stem] for path in own if path.stem in rows and kind == "methods"),
    )


def _named(config: dict, section: str) -> str | None:
    return (config.get(section) or {}).get("name")


def _parts(tree: ast.Module) -> Iterator[str]:
    """The networks and decoding loops that a file imports: "models.causal", "decoding.ar"."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module in ("jaxar.models", "jaxar.decoding"):
            yield from (f"{node.module.removeprefix('jaxar.')}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module.startswith(("jaxar.models.", "jaxar.decoding.")):
            yield node.module.removeprefix("jaxar.")


def markdown(found: dict[str, list[Entry]]) -> str:
    """The contents of docs/methods.md."""
    lines = [_HEAD]
    for kind, entries in found.items():
        table = [["Name", "Status", "Configurations", "On digits", "Proof", "Source"]]
        table += [
            [
                f"[{entry.name}](../{entry.file})<br>{entry.summary}",
                entry.status,
                _links(entry.configs),
                "<br>".join(entry.measured),
                _links((*entry.tests, *entry.golden)),
                entry.reference,
            ]
            for entry in entries
        ]
        if not any(entry.measured for entry in entries):
            table = [[cell for cell, name in zip(row, table[0], strict=True) if name != "On digits"] for row in table]
        head, *body = (" | ".join(cell.replace("|", r"\|") for cell in row) for row in table)
        lines += [f"## {kind.capitalize()}", ""]
        lines += [f"| {row} |" for row in (head, " | ".join(["---"] * len(table[0])), *body)]
        lines.append("")
    return "\n".join(lines).rstrip()


def _links(files: Iterable[str]) -> str:
    """A line per file, named without its first folder and suffix."""
    return "<br>".join(f"[{file.partition('/')[2].rpartition('.')[0]}](../{file})" for file in files)


def _summary(path: pathlib.Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return docstring.strip().splitlines()[0] if docstring.strip() else ""


def command(argv: list[str]) -> None:
    parser = cli.Parser(__doc__, prog="python -m jaxar.list")
    parser.add_argument("kind", nargs="?", choices=[*PACKAGES, "configs"], help="default: all of them")
    parser.add_argument("--markdown", action="store_true", help="methods and tokenizers as docs/methods.md")
    parser.add_json()
    args = parser.parse_args(argv)
    if args.markdown:
        print(markdown(catalogue(pathlib.Path())))
        return
    found = {kind: described(package) for kind, package in PACKAGES.items()} | {
        "configs": configs(pathlib.Path("configs"))
    }
    if args.kind:
        found = {args.kind: found[args.kind]}
    width = max((len(name) for members in found.values() for name in members), default=0)
    lines = []
    for kind, members in found.items():
        lines += [f"{kind}:", *(f"  {name:<{width}}  {summary}" for name, summary in members.items()), ""]
    cli.emit(found, "\n".join(lines).rstrip(), args.json)


if __name__ == "__main__":
    cli.main(command)
