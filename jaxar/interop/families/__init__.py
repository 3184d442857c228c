"""One file per family of official networks; `jaxar.interop.base` says what such a file holds."""
