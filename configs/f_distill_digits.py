"""One-step student of flow matching on 8x8 digits by Jensen-Shannon divergence, one of eight.

    python -m jaxar.train --config=configs/f_distill_digits.py --workdir=out/f_distill_digits

Needs its teacher, the run of configs/flow_digits.py in out/flow_digits. Every other step trains the
generator.

Cost: about 22 minutes on one CPU core that other work shares.
Expected: fd_digits 2.7 in 1 call (teacher 2.6, floor 0.86), class consistency 100 %.
"""

import vsd_digits
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = vsd_digits.get_config(arg)
    config.method.update({"name": "f_distill", "generator_every": 2, "discriminator_width": 64})
    if arg != "smoke":
        config.train.num_steps = 1500
    return config
