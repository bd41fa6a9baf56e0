"""Readers: the formats that records are stored in, one file each.

records   `Record`, the form that every reader gives, and `Records`, the protocol of readers
stored    records as TFDS builders store them: JSON and encoded images

A new format is a file here with a class that has `__len__` and `__getitem__`, and a source in `owl3_jax.data.sources` that
opens it. Readers run in the processes that load data, so they import neither jax nor grain.
"""
