"""One step of the flow model of 8x8 digits, learnt from noise alone (BOOT).

    python -m jaxar.train --config=configs/boot_digits.py --workdir=out/boot_digits

Needs its teacher, the run of configs/flow_digits.py in out/flow_digits.

Cost: about 4 minutes on one CPU core that other work shares.
Expected: fd_digits 2.9 in 1 call (teacher 2.6, floor 0.86), class consistency 100 %.
"""

from common import digits_student
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = digits_student(arg)
    config.method = {"name": "boot", "teacher": {"guidance_scale": 1.5}}
    if arg == "smoke":
        config.method.gap = 0.5
    return config
