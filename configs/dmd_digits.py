"""One-step student of flow matching on 8x8 digits by distribution matching and regression.

    python -m jaxar.train --config=configs/dmd_digits.py --workdir=out/dmd_digits

Needs its teacher, the run of configs/flow_digits.py in out/flow_digits. The teacher solves its
ODE in every step, no pairs are stored.
"""

import vsd_digits
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = vsd_digits.get_config(arg)
    config.method.update({"name": "dmd", "calls": (1.0,)})
    return config
