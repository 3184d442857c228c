"""Student of flow matching on 8x8 digits in four calls by trajectory distribution matching.

    python -m jaxar.train --config=configs/tdm_digits.py --workdir=out/tdm_digits

Needs its teacher, the run of configs/flow_digits.py in out/flow_digits.

Cost: about 20 minutes on one CPU core that other work shares.
Expected: fd_digits 2.7 in 4 calls (teacher 2.6, floor 0.86), class consistency 100 %.
"""

import vsd_digits
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = vsd_digits.get_config(arg)
    config.method = {"name": "tdm", "guidance_scale": 1.5}
    config.sample = {"steps": 4}
    return config
