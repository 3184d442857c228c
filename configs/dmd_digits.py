"""One-step student of flow matching on 8x8 digits by distribution matching and regression.

    python -m jaxar.train --config=configs/dmd_digits.py --workdir=out/dmd_digits

Needs its teacher, the run of configs/flow_digits.py in out/flow_digits. The teacher solves its
ODE in every step, no pairs are stored.

Cost: about 23 minutes on one CPU core that other work shares.
Expected: fd_digits 2.8 in 1 call (teacher 2.6, floor 0.86), class consistency 100 %.
"""

import vsd_digits
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = vsd_digits.get_config(arg)
    config.method.update({"name": "dmd", "calls": (1.0,)})
    return config
