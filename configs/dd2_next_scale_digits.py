"""One-step generator of 8x8 digits, distilled from the next-scale model: Distilled Decoding 2.

    python -m jaxar.train --config=configs/dd2_next_scale_digits.py --workdir=out/dd2_next_scale_digits

Needs its teacher, the run of configs/next_scale_digits.py in out/next_scale_digits. Denoisers that correct the laws of
the teacher's own head, and a generator that is called at t = 0.6, give 3.6 where the published ones gave 5.3.

Cost: about 17 minutes on one CPU core that other work shares.
Expected: fd_digits 3.6 in 1 call (teacher 2.5, floor 0.86), class consistency 99 %.
"""

import dd2_digits
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = dd2_digits.get_config(arg)
    config.teacher = {"from_": "out/next_scale_digits"}
    config.model.mixture = True
    config.method.call = 0.6
    config.method.teacher = {"guidance_scale": 1.5, "guidance_schedule": "linear", "temperature": 0.8}
    if arg != "smoke":
        config.method.init_steps = 500
    return config
