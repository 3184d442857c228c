"""One-step student of the next-scale model of 8x8 digits: Distilled Decoding 1.

    python -m jaxar.pairs --config=configs/dd1_next_scale_digits.py --out=out/dd1_next_scale_pairs --num=16384
    python -m jaxar.train --config=configs/dd1_next_scale_digits.py --workdir=out/dd1_next_scale_digits \\
        --config.data.cache=out/dd1_next_scale_pairs

Needs its teacher, the run of configs/next_scale_digits.py in out/next_scale_digits.

Cost: about 20 minutes on one CPU core that other work shares.
Expected: fd_digits 3.2 in 1 call (teacher 2.5, floor 0.86), class consistency 100 %.
"""

import dd1_digits
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = dd1_digits.get_config(arg)
    config.teacher = {"from_": "out/next_scale_digits"}
    config.method.teacher = {"guidance_scale": 1.5, "guidance_schedule": "linear", "temperature": 0.8}
    return config
