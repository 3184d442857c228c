"""Official weights in and back out: readers, name tables of official families, and recomputed reference outputs."""
