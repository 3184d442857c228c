"""One-step student of flow matching on 8x8 digits by score implicit matching with the pseudo-Huber distance.

    python -m jaxar.train --config=configs/sim_digits.py --workdir=out/sim_digits

Needs its teacher, the run of configs/flow_digits.py in out/flow_digits.

Cost: about 12 minutes on one CPU core that other work shares.
Expected: fd_digits 3.5 in 1 call (teacher 2.6, floor 0.86), class consistency 100 %.
"""

import vsd_digits
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = vsd_digits.get_config(arg)
    config.method.name = "sim"
    return config
