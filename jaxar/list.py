"""Lists what is there: python -m jaxar.list [methods|tokenizers|datasets|configs] [--json]"""

import ast
import importlib
import pathlib

from jaxar import cli, lookup

PACKAGES = {"methods": "jaxar.methods", "tokenizers": "jaxar.tokenizers", "datasets": "jaxar.data.sources"}


def described(package: str) -> dict[str, str]:
    """Name and first docstring line of every member of a package, without importing the members."""
    folder = pathlib.Path(importlib.import_module(package).__path__[0])
    return {name: _summary(folder / f"{name}.py") for name in lookup.names(package)}


def configs(folder: pathlib.Path) -> dict[str, str]:
    """Path and first docstring line of every configuration in `folder`."""
    return {str(p): _summary(p) for p in sorted(folder.glob("*.py")) if p.stem not in ("__init__", "common")}


def _summary(path: pathlib.Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return docstring.strip().splitlines()[0] if docstring.strip() else ""


def command(argv: list[str]) -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("kind", nargs="?", choices=[*PACKAGES, "configs"], help="default: all of them")
    parser.add_json()
    args = parser.parse_args(argv)
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
