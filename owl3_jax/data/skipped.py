"""What training does with a record that has an unreadable image: skip it, name it, count it."""

import logging
import threading

_logger = logging.getLogger(__name__)


class UnreadableImages:
    """How many records the pipeline has skipped since it was made; safe to share between threads.

    It counts what was read, which is up to `data.prefetch` batches ahead of training, and the same record again in every
    epoch. It is not part of the iterator's state: after a resume it starts at zero.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    @property
    def count(self) -> int:
        """Records skipped so far."""
        return self._count

    def skip(self, record: str, error: Exception) -> None:
        """Counts one record and logs its name with the cause."""
        with self._lock:
            self._count += 1
        _logger.warning("skipped %s: %s", record, error)
