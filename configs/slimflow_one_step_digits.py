"""One step of the small rectified flow of 8x8 digits: 0.4M parameters.

    python -m jaxar.train --config=configs/slimflow_one_step_digits.py --workdir=out/slimflow_one_step_digits

Needs its teacher, the run of configs/slimflow_digits.py in out/slimflow_digits.

Cost: about 6 minutes on one CPU core that other work shares.
Expected: fd_digits 3.1 in 1 call (teacher 4.5, floor 0.86), class consistency 100 %.
"""

import slimflow_digits
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = slimflow_digits.get_config(arg)
    config.teacher.from_ = "out/slimflow_digits"
    config.method.distil = True
    if arg != "smoke":
        config.train.num_steps = 1500
    config.method.teacher = {}  # the first run has learnt the guided flow
    return config
