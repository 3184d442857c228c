"""The configurations that are compared on one dataset: found by the name of their file, with the runs they build on."""

import dataclasses
import pathlib
from typing import Any

from jaxar import cli, settings
from jaxar.config import ConfigError, unknown

_PARENTS = ("tokenizer", "teacher", "init_from")


@dataclasses.dataclass(frozen=True)
class Suite:
    """Configurations NAME_DATASET.py of a folder.

    Attributes:
      folder: of the configurations.
      runs: where their runs lie, one folder per configuration.
      dataset: ends the names of the configurations and is the reference.
      argument: of all configurations ("smoke").
      methods: what is compared, without the dataset's name.
    """

    folder: pathlib.Path
    runs: pathlib.Path
    dataset: str
    argument: str
    methods: tuple[str, ...]

    def config(self, stem: str) -> dict[str, Any]:
        """The configuration in STEM.py, its parents being those in `runs`.

        Raises:
          ConfigError: no such file, or one that cannot be executed.
        """
        file = self.folder / f"{stem}.py"
        config = cli.load_config(f"{file}:{self.argument}" if self.argument else str(file))
        for section in _PARENTS:
            if (config.get(section) or {}).get("from_"):
                config[section]["from_"] = str(self.runs / pathlib.Path(config[section]["from_"]).name)
        return config

    def parents(self, stem: str) -> list[str]:
        """Configurations of all runs that STEM builds on, each after its own parents.

        Raises:
          ConfigError: a parent without configuration, or one that builds on itself.
        """
        return self._parents(stem, ())

    def teacher(self, stem: str) -> str | None:
        """The method of the suite that STEM learns from."""
        origin = (self.config(stem).get("teacher") or {}).get("from_")
        return pathlib.Path(origin).name.removesuffix(f"_{self.dataset}") if origin else None

    def _parents(self, stem: str, children: tuple[str, ...]) -> list[str]:
        found = []
        for parent in self._named(stem):
            if parent in (stem, *children):
                raise ConfigError(f"{self.folder / stem}.py builds on itself through {parent!r}; correct its parents")
            if not (self.folder / f"{parent}.py").is_file():
                raise ConfigError(
                    f"{self.folder / stem}.py builds on {parent!r}, and there is no {self.folder / parent}.py to train "
                    "it; add one"
                )
            found += [*self._parents(parent, (stem, *children)), parent]
        return list(dict.fromkeys(found))

    def _named(self, stem: str) -> list[str]:
        config = self.config(stem)
        origins = ((config.get(section) or {}).get("from_") for section in _PARENTS)
        return [pathlib.Path(origin).name for origin in origins if origin]


def find(
    folder: pathlib.Path, runs: pathlib.Path, dataset: str, argument: str = "", methods: tuple[str, ...] = ()
) -> Suite:
    """The suite of a dataset: all configurations that sample, or those of `methods`.

    Raises:
      ConfigError: none there, or an unknown method.
    """
    everything = Suite(folder, runs, dataset, argument, ())
    ending = f"_{dataset}"
    stems = [path.stem for path in sorted(folder.glob(f"*{ending}.py"))]
    known = [s.removesuffix(ending) for s in stems if settings.sampling_class(everything.config(s)) is not None]
    if not known:
        raise ConfigError(f"{folder.absolute()} has no configurations NAME{ending}.py; run in a checkout of jaxar")
    for method in methods:
        if method not in known:
            raise unknown("method of the suite", method, known)
    return dataclasses.replace(everything, methods=methods or tuple(known))
