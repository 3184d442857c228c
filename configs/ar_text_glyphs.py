"""Raster autoregression over the tokens of 32x32 glyphs, conditional on captions.

    python -m jaxar.train --config=configs/ar_text_glyphs.py --workdir=out/ar_text_glyphs

Needs the tokenizer of configs/vq_glyphs.py in out/vq_glyphs. Captions of up to 13 words ("a bold red italic serif
letter G tilted left on a white background") become hashed word features, padded on the left, and stand before the
image tokens. Their rotary rows are "identity", so that image tokens attend to words by content; LlamaGen's own "zero"
rows weigh all words alike.
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "glyphs", "text": {"length": 16, "width": 128}}
    config.tokenizer = {"from_": "out/vq_glyphs"}
    config.model = {
        "num_layers": 8,
        "width": 384,
        "num_heads": 6,
        "hidden_multiple": 64,
        "prefix_rotary": "identity",
        "dtype": "bfloat16",
    }
    config.method = {"name": "ar"}
    config.optim = {
        "learning_rate": 5e-4,
        "schedule": {"name": "cosine", "warmup_steps": 500},
        "ema": (0.999,),
    }
    config.train = {"num_steps": 30_000, "batch_size": 256}
    config.sample = {"guidance_scale": 2.0}
    config.eval = {"every": 2000, "sample_every": 10_000, "ema": "0.999"}
    if arg == "smoke":
        config.model.update({"num_layers": 2, "width": 32, "num_heads": 2, "dtype": "float32"})
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
