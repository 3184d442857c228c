"""jaxar: autoregressive, masked-AR and distilled image generation in JAX."""

from typing import Any

__version__ = "0.1.0"


def load(workdir: str, **options: Any):
    """Opens a finished or running workdir for sampling and analysis; see `jaxar.run.load`."""
    from jaxar import run  # imported on call: `import jaxar` stays free of the data and checkpoint libraries

    return run.load(workdir, **options)
