"""Student of flow matching on 8x8 digits in four calls by trajectory distribution matching.

    python -m jaxar.train --config=configs/tdm_digits.py --workdir=out/tdm_digits

Needs its teacher, the run of configs/flow_digits.py in out/flow_digits.
"""

import vsd_digits
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = vsd_digits.get_config(arg)
    config.method = {"name": "tdm", "guidance_scale": 1.5}
    config.sample = {"steps": 4}
    return config
