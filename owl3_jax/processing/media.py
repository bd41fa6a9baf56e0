"""Pictures and videos of a conversation: what their placeholders become in the text, and the views the model sees.

A placeholder in the text marks one image or video of the call; each `<|image|>` of the result marks one view: a crop, a whole
image or a video frame. There are two sets of templates:

* `words` (7B-240728): `Cut to 2 rows 3 columns with a global view` and `subimg(0,0)<|image|>` for every crop; a video is one
  `<|image|>` per frame and nothing else.
* `markers` (7B-241101 and the 1B and 2B of 241014): `<|start_cut|>2*3` ... `<|end_cut|>`, and `<|start_video_frame|>` ...
  `<|end_video_frame|>` around the frames of a video.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from owl3_jax.config import MediaStyle
from owl3_jax.processing import crops
from owl3_jax.processing.chat import CUT_END, CUT_START, IMAGE, VIDEO_END, VIDEO_START, Chunk
from owl3_jax.processing.crops import Grid
from owl3_jax.processing.images import ImageSource, load_image, squash
from owl3_jax.processing.video import Video

_VIEW = Chunk(IMAGE, "image")


@dataclasses.dataclass(frozen=True)
class Picture:
    """One image, which is decoded when its views are read."""

    source: ImageSource
    name: str  # for messages
    grid: Grid | None = None  # of its crops, if it has any
    draft: bool = False  # whether a large JPEG file is decoded at a fraction of its size (see `load_image`)

    @property
    def num_views(self) -> int:
        """Its crops and the whole image."""
        return 1 + (self.grid.rows * self.grid.columns if self.grid else 0)

    def chunks(self, style: MediaStyle) -> list[Chunk]:
        """What its placeholder becomes, with one image chunk per view."""
        if self.grid is None:
            return [_VIEW]
        return _crops_in_words(self.grid) if style == "words" else _crops_in_markers(self.grid)

    def views(self, size: int) -> Iterator[UInt8[np.ndarray, "S S 3"]]:
        """The crops row by row, then the whole image, each with S = `size`. Raises UnreadableImage."""
        columns, rows = (self.grid.columns, self.grid.rows) if self.grid else (1, 1)
        draft = (columns * size, rows * size) if self.draft else None
        return crops.views(load_image(self.source, self.name, draft), self.grid, size)


@dataclasses.dataclass(frozen=True)
class Clip:
    """One video, whose frames are decoded one by one. Frames are never cropped."""

    video: Video

    @property
    def num_views(self) -> int:
        """Its frames."""
        return self.video.num_frames

    def chunks(self, style: MediaStyle) -> list[Chunk]:
        """What its placeholder becomes, with one image chunk per frame."""
        frames = [_VIEW] * self.video.num_frames
        return (
            frames
            if style == "words" or self.video.is_bare
            else [Chunk(VIDEO_START, "media"), *frames, Chunk(VIDEO_END, "media")]
        )

    def views(self, size: int) -> Iterator[UInt8[np.ndarray, "S S 3"]]:
        """The frames in order, each with S = `size`. Raises UnreadableVideo."""
        video, cache = self.video, self.video.cache
        if cache is None:
            yield from (squash(frame, size) for frame in video.frames())
            return
        keys = [(video.name, index, size) for index in video.indices]
        kept = [cache.get(key) for key in keys]
        if all(view is not None for view in kept):
            yield from kept
            return
        for key, frame in zip(keys, video.frames(), strict=True):
            view = squash(frame, size)
            cache.put(key, view)
            yield view


def _crops_in_words(grid: Grid) -> list[Chunk]:
    chunks = [Chunk(f"Cut to {grid.rows} rows {grid.columns} columns with a global view\n")]
    for row, column in np.ndindex(grid):
        chunks += [Chunk(f"subimg({row},{column})"), _VIEW, _after_crop(column, grid)]
    return [*chunks, Chunk("global_view"), _VIEW]


def _crops_in_markers(grid: Grid) -> list[Chunk]:
    chunks = [Chunk(CUT_START, "media"), Chunk(f"{grid.rows}*{grid.columns}\n")]
    for _, column in np.ndindex(grid):
        chunks += [_VIEW, _after_crop(column, grid)]
    return [*chunks, _VIEW, Chunk(CUT_END, "media")]


def _after_crop(column: int, grid: Grid) -> Chunk:
    return Chunk("\n" if column == grid.columns - 1 else " ")
