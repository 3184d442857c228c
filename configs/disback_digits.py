"""One-step student of flow matching on 8x8 digits by distribution backtracking.

    python -m jaxar.train --config=configs/disback_digits.py --workdir=out/disback_digits

Needs its teacher, the run of configs/flow_digits.py in out/flow_digits. The first 400 steps train the score
alone.

Cost: about 6 minutes on one CPU core that other work shares.
Expected: fd_digits 3.4 in 1 call (teacher 2.6, floor 0.86), class consistency 100 %.
"""

import vsd_digits
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = vsd_digits.get_config(arg)
    config.method.update({"name": "disback", "records": 4, "record_every": 100, "return_every": 150})
    if arg == "smoke":
        config.method.update({"records": 2, "record_every": 1, "return_every": 1})
        config.train.num_steps = 4
    else:
        config.train.num_steps = 1300
    return config
