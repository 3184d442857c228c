"""Shortcut model over the pixels of 8x8 digits: any number of steps that is a power of two, trained without a teacher.

python -m jaxar.train --config=configs/shortcut_digits.py --workdir=out/shortcut_digits

Cost: about 15 minutes on one CPU core that other work shares.
Expected: fd_digits 7.5 in 1 call (floor 0.86), class consistency 96 %.
"""

from common import digits_student
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = digits_student(arg, taught=False)
    config.method = {"name": "shortcut", "shortest": 32, "bootstrap_share": 0.25, "guidance_scale": 1.5}
    config.method.target_decay = 0.99
    config.optim.learning_rate = 2e-3
    if arg != "smoke":
        config.train.num_steps = 3000
    return config
