"""What every configuration shares: all sections, so that each of them can be overridden on the command line."""

from ml_collections import ConfigDict

from jaxar.config import unknown


def base() -> ConfigDict:
    """Empty sections, and the mesh that takes every device for data parallelism."""
    sections = ("data", "tokenizer", "teacher", "init_from", "model", "method", "optim", "train", "sample", "eval")
    config = ConfigDict({name: ConfigDict() for name in sections})
    config.mesh = ConfigDict({"data": None, "fsdp": 1, "tensor": 1})
    return config


def check_argument(arg: str, *known: str) -> None:
    """Refuses an argument of `get_config` that the configuration does not know.

    Raises:
      ConfigError: neither empty nor one of `known`.
    """
    if arg and arg not in known:
        raise unknown("argument of the configuration", arg, known)
