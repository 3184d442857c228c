"""Datasets, augmentation, token caches and the loader."""
