"""Phased consistency distillation of the flow model of 8x8 digits: four phases, four calls.

    python -m jaxar.train --config=configs/pcm_digits.py --workdir=out/pcm_digits

Needs its teacher, the run of configs/flow_digits.py in out/flow_digits. The argument `adversarial` adds the
published discriminator.

Cost: about 2 minutes on one CPU core that other work shares.
Expected: fd_digits 2.2 in 4 calls (teacher 2.6, floor 0.86), class consistency 100 %.
"""

from common import digits_student
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = digits_student(arg, "adversarial")
    config.method = {"name": "pcm", "phases": 4, "levels": 24, "teacher": {"guidance_scale": 1.5}}
    if arg in ("adversarial", "smoke"):
        config.method.adversarial = {"weight": 0.1}
    if arg == "smoke":
        config.method.update({"phases": 2, "levels": 2})
    return config
