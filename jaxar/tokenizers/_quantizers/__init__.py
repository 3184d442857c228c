"""Quantizers: how a tokenizer turns features into codes. A file is a quantizer, its section `quantizer` names it."""

from jaxar.tokenizers._quantizers.bsq import BSQ
from jaxar.tokenizers._quantizers.fsq import FSQ
from jaxar.tokenizers._quantizers.lfq import LFQ
from jaxar.tokenizers._quantizers.simvq import SimVQ
from jaxar.tokenizers._quantizers.vq import L2VQ, VQ

AnyQuantizer = VQ | L2VQ | SimVQ | FSQ | LFQ | BSQ

__all__ = ["BSQ", "FSQ", "L2VQ", "LFQ", "VQ", "AnyQuantizer", "SimVQ"]
