"""MAR with a flow-matching head on 8x8 digits, the teacher of configs/ardit_digits.py.

    python -m jaxar.train --config=configs/mar_flow_digits.py --workdir=out/mar_flow_digits

Needs the tokenizer of configs/kl_digits.py in out/kl_digits. As configs/mar_digits.py:flow.

Cost: about 29 minutes on one CPU core that other work shares.
Expected: fd_digits 5.6 (floor 0.86), class consistency 99 %.
"""

import mar_digits


def get_config(arg: str = ""):
    config = mar_digits.get_config(arg)
    config.method.head = "flow"
    config.sample.head.update({"first": 10 if arg == "smoke" else 25, "start": None})
    return config
