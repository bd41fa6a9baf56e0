"""Data sets and the pipeline that reads them."""

from owl3_jax.data.datasets import load_tokenizer as load_tokenizer
