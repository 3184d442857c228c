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


def digits_student(arg: str, *known: str, taught: bool = True) -> ConfigDict:
    """A few-step student of 8x8 digits: everything but the method.

    Args:
      arg: of `get_config`; "smoke" shortens training.
      known: its values besides "smoke".
      taught: whether the run of configs/flow_digits.py in out/flow_digits teaches; without it the section `model` is
        that run's.
    """
    check_argument(arg, "smoke", *known)
    config = base()
    config.data = {"name": "digits"}
    if taught:
        config.teacher = {"from_": "out/flow_digits"}
    else:
        config.model = {"num_layers": 4, "width": 96, "num_heads": 4, "patch_size": 2}
    config.optim = {
        "learning_rate": 1e-3,
        "schedule": {"name": "cosine", "warmup_steps": 100},
        "b2": 0.95,
        "weight_decay": 0.0,
        "ema": (0.995,),
    }
    config.train = {"num_steps": 1000, "batch_size": 32, "checkpoint_every": 500}
    config.eval = {"every": 500, "sample_every": 500, "reference": "digits", "ema": "0.995"}
    if arg == "smoke":
        if not taught:
            config.model.update({"num_layers": 2, "width": 32, "num_heads": 2})
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
