"""One step of the rectified flow of 8x8 digits (InstaFlow).

    python -m jaxar.train --config=configs/instaflow_digits.py --workdir=out/instaflow_digits

Needs its teacher, the run of configs/reflow_digits.py in out/reflow_digits.

Cost: about 4 minutes on one CPU core that other work shares.
Expected: fd_digits 2.4 in 1 call (teacher 3.0, floor 0.86), class consistency 100 %.
"""

import reflow_digits
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = reflow_digits.get_config(arg)
    config.teacher.from_ = "out/reflow_digits"
    config.method.distil = True
    config.method.teacher = {}  # the first run has learnt the guided flow
    return config
