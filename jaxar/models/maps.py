"""Networks over noised maps, told time and class: the section `model` of a method chooses one by `name`."""

from jaxar.models import dit, unet, vector

Sizes = dit.Sizes | unet.Sizes | vector.Sizes
Network = dit.DiT | unet.UNet | vector.VectorNetwork


def network(
    sizes: Sizes, shape: tuple[int, int, int], out_channels: int, num_classes: int, last_time: float = 1.0
) -> Network:
    """The network of these sizes for maps of `shape` (height, width, channels), told times of the order of `last_time`.

    Raises:
      ConfigError: maps that it cannot have.
    """
    if isinstance(sizes, dit.Sizes):
        sizes.grid(shape)  # refuses maps that the patches do not divide
        return dit.DiT(sizes, shape, out_channels, num_classes)
    if isinstance(sizes, unet.Sizes):
        sizes.check(shape)
        return unet.UNet(sizes, out_channels, num_classes)
    return vector.VectorNetwork(sizes, out_channels, num_classes, last_time)
