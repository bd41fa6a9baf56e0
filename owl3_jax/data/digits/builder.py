"""TFDS builder of the embedded data set: conversations about tinted handwritten digits.

Records have the form that all data here takes: `messages` (JSON), `images` (encoded bytes, in text order) and `metadata`
(JSON). They are stored as ArrayRecord; tensorflow is not needed, hence bytes in scalar object features.
"""

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from owl3_jax.data.digits.images import Split, encoded_image, split_ids
from owl3_jax.data.digits.questions import conversation
from owl3_jax.data.digits.samples import FEW_IMAGES, IMAGE_COUNTS, MANY_IMAGES, DigitSample, draw_sample
from owl3_jax.data.readers.stored import StoredRecord

SEED = 0


class Part(NamedTuple):
    """A split of the data set."""

    samples: int
    pictures: Split
    counts: Mapping[int, int]  # images of a sample -> relative frequency


PARTS = {
    "train": Part(30_000, "train", IMAGE_COUNTS),
    "test": Part(300, "test", IMAGE_COUNTS),
    "few": Part(15_000, "train", FEW_IMAGES),  # to begin with
    "many": Part(5_000, "train", MANY_IMAGES),
}


class Digits(tfds.core.GeneratorBasedBuilder):
    """Train, few and many show 1438 of the pictures, test the other 359."""

    VERSION = tfds.core.Version("2.0.0")  # raise it when samples change: prepared data of another version is not reused

    def _info(self) -> tfds.core.DatasetInfo:
        encoded = tfds.features.Scalar(np.object_)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Conversations about scikit-learn's handwritten digits, each tinted in one of eight colours.",
            features=tfds.features.FeaturesDict(
                {"messages": encoded, "images": tfds.features.Sequence(encoded), "metadata": encoded}
            ),
            homepage="https://scikit-learn.org/stable/datasets/toy_dataset.html#digits-dataset",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, StoredRecord]]]:
        del dl_manager  # nothing to download
        return {split: self._generate_examples(split) for split in PARTS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, StoredRecord]]:
        part = PARTS[split]
        for key in range(part.samples):
            rng = np.random.default_rng([SEED, list(PARTS).index(split), key])
            yield key, make_record(draw_sample(rng, split_ids(part.pictures), part.counts))


def make_record(sample: DigitSample) -> StoredRecord:
    """A sample in record form."""
    metadata = {
        "kinds": [question.kind for question in sample.questions],
        "answers": [question.answer for question in sample.questions],
        "image_ids": [image.image_id for image in sample.images],
        "digits": [image.digit for image in sample.images],
        "colours": [image.colour for image in sample.images],
    }
    return {
        "messages": json.dumps(conversation(*sample)),
        "images": [encoded_image(image) for image in sample.images],
        "metadata": json.dumps(metadata),
    }
