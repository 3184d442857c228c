"""Datasets, found by file name; `jaxar.data.base` says what such a file holds."""
