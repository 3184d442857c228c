"""Trains like `jaxar.train` and gets a signal at a chosen moment: python interruption.py SIGNAL MOMENT STEP [options].

MOMENT is `step` (STEP was dispatched, nothing of it is saved), `save` (its checkpoint is being written) or `never`.
"""

import os
import signal
import sys

from jaxar import checkpoints, cli, meter, train


def main(name: str, moment: str, step: str, *options: str) -> None:
    if moment != "never":
        plant(getattr(signal, name), moment, int(step))
    cli.main(train.command, options)


def plant(number: int, moment: str, step: int) -> None:
    """Lets the process send itself a signal."""
    cls, method = {"step": (meter.Meter, "step"), "save": (checkpoints.Checkpoints, "save")}[moment]
    original = getattr(cls, method)

    def interrupted(self, first, *rest):
        original(self, first, *rest)
        if int(getattr(first, "step", first)) == step:
            os.kill(os.getpid(), number)

    setattr(cls, method, interrupted)


if __name__ == "__main__":
    main(*sys.argv[1:])
