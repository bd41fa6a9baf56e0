"""Damages small files of every format that Pillow and FFmpeg write here, and reads them as the processor does."""

from media_fuzz.run import Report, Settings, replay, run
from media_fuzz.seeds import Seed, image_seeds, video_seeds
from media_fuzz.trial import Outcome, Trial, try_file

__all__ = ["Outcome", "Report", "Seed", "Settings", "Trial", "image_seeds", "replay", "run", "try_file", "video_seeds"]
