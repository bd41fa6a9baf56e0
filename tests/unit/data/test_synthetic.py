"""Made-up records through the real pipeline: every row is full."""

import numpy as np
import pytest

from owl3_jax.config import ConfigError, DataConfig, SourceConfig
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.data.pipeline import make_train_iterator
from owl3_jax.data.sources import open_source, prepare_sources
from owl3_jax.processing.processor import Processor

SOURCE = SourceConfig("synthetic")
CONFIG = DataConfig(sources=(SOURCE,), rows=3, tokens_per_row=101, images_per_row=5, prefetch=1)


def test_rows_are_full_of_tokens_and_images_and_all_differ():
    assert prepare_sources(CONFIG) == []
    iterator = make_train_iterator(CONFIG, Processor(make_tokenizer(), 19))
    batches = [next(iterator) for _ in range(2)]
    iterator.close()
    for batch in batches:
        assert (batch.segment_ids == 1).all() and batch.segment_ids.shape == (3, 101)
        assert (batch.image_segment_ids == 1).all() and batch.pixels.shape == (3, 5, 19, 19, 3)
        assert 0.4 < batch.loss_weights.mean() < 0.6
    rows = np.concatenate([batch.tokens for batch in batches])
    assert len(np.unique(rows, axis=0)) == 6
    assert len(np.unique(np.concatenate([batch.pixels.reshape(15, -1) for batch in batches]), axis=0)) == 30


def test_a_record_depends_on_its_index_alone():
    first, again = (open_source(SOURCE, CONFIG)[number] for number in (7, 7))
    assert first == again
    assert first.name == "synthetic/train[7]" and len(first.images) == 5


def test_rows_too_short_for_text_are_refused():
    with pytest.raises(ConfigError, match=r"tokens_per_row 21 leaves no room .* at least 17 tokens .* each of the 5 images"):
        open_source(SOURCE, DataConfig(tokens_per_row=21, images_per_row=5))
