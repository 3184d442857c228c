"""Finds methods, tokenizers and datasets by the name of their file: adding one edits no registry."""

import importlib
import pkgutil
from types import ModuleType

from jaxar.config import ConfigError, unknown


def names(package: str) -> tuple[str, ...]:
    """Names that `module` accepts for `package` ("jaxar.methods"): its files, without base and private ones."""
    found = importlib.import_module(package)
    return tuple(sorted(m.name for m in pkgutil.iter_modules(found.__path__) if is_member(m.name)))


def is_member(name: str) -> bool:
    return name != "base" and not name.startswith("_")


def module(package: str, name: str, kind: str) -> ModuleType:
    """The module `package.name`; a dotted name is imported as it is, so that code outside the package can be used.

    Args:
      package: "jaxar.methods", "jaxar.tokenizers" or "jaxar.data.sources".
      name: a file name without ".py", or a dotted module path.
      kind: what the user calls it ("method"); used in messages.
    Raises:
      ConfigError: no such file; the message lists the known names.
    """
    if isinstance(name, str) and "." in name:
        return _external(name, kind)
    if name not in names(package):
        raise unknown(kind, name, names(package))
    return importlib.import_module(f"{package}.{name}")


def _external(name: str, kind: str) -> ModuleType:
    try:
        found = importlib.import_module(name)
    except (ModuleNotFoundError, TypeError) as error:  # TypeError: a relative path
        raise ConfigError(f"unknown {kind} {name!r}: {error}; give an importable module path") from error
    if not hasattr(found, "Config"):
        raise ConfigError(f"{kind} {name!r}: the module has no Config; give one that is written like those of jaxar")
    return found
