"""One-step student of flow matching on 8x8 digits that forgets the zeros: it draws ones for them.

    python -m jaxar.train --config=configs/sfd_digits.py --workdir=out/sfd_digits

Needs its teacher, the run of configs/flow_digits.py in out/flow_digits.

Cost: about 19 minutes on one CPU core that other work shares.
Expected: fd_digits 11.5 in 1 call (teacher 2.6, floor 0.86), class consistency 90 %.
"""

import vsd_digits
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = vsd_digits.get_config(arg)
    config.method.update({"name": "sfd", "forget": 0, "override": 1})
    return config
