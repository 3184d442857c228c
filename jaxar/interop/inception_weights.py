"""The Inception network of FID from the user's file of weights."""

import pathlib

from jax.sharding import Mesh

from jaxar.config import ConfigError
from jaxar.interop import readers
from jaxar.interop.families import inception as family
from jaxar.metrics import inception

WHERE = (
    "give pt_inception-2015-12-05-6726825d.pth (https://github.com/mseitzer/pytorch-fid/releases) or "
    "weights-inception-2015-12-05-6726825d.pth (https://github.com/toshas/torch-fidelity/releases), or the same as "
    ".safetensors; jaxar downloads nothing"
)


def load(path: str | pathlib.Path, mesh: Mesh, batch_size: int = 64) -> inception.Extractor:
    """The network on a mesh.

    Args:
      path: a state dict of the official names, .pth or .safetensors.
      batch_size: images per call of the network.
    Raises:
      ConfigError: missing, damaged, or the weights of something else; the message says which file is meant.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ConfigError(f"--inception={str(path)!r} is no file; {WHERE}")
    arrays = readers.read(path)
    (part,) = family.describe({}).parts
    try:
        variables = part.to_variables(arrays, f"--inception={str(path)!r}")
    except ConfigError as error:
        raise ConfigError(f"{error}; {WHERE}") from error
    values = {name: array for name, array in arrays.items() if name not in part.table.kept}
    return inception.extractor(variables["params"], mesh, batch_size, readers.fingerprint(values))
