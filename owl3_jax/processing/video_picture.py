"""Decoded frames as a player shows them: turned and mirrored, in RGB."""

import numpy as np
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from PIL import Image

from owl3_jax.processing.images import TooManyPixels, pixel_limit, to_rgb

# The first two rows of a display matrix by what they do: (columns become rows, mirrored left to right, top to bottom).
_MOVES = {
    (False, True, False): Image.Transpose.FLIP_LEFT_RIGHT,
    (False, False, True): Image.Transpose.FLIP_TOP_BOTTOM,
    (False, True, True): Image.Transpose.ROTATE_180,
    (True, False, False): Image.Transpose.TRANSPOSE,
    (True, True, False): Image.Transpose.ROTATE_270,  # Pillow counts counterclockwise
    (True, False, True): Image.Transpose.ROTATE_90,
    (True, True, True): Image.Transpose.TRANSVERSE,
}


def to_image(frame: VideoFrame) -> Image.Image:
    """The frame as an RGB image. What is transparent is white, as in images; the file's quarter turns and mirrors are applied.

    Raises TooManyPixels for a frame that is too large, and whatever FFmpeg raises for one that it cannot convert.
    """
    check_pixels(frame.width, frame.height)
    image = _composited(frame) if any(component.is_alpha for component in frame.format.components) else frame.to_image()
    move = display_move(frame)
    return image if move is None else image.transpose(move)


def _composited(frame: VideoFrame) -> Image.Image:
    pixels = frame.to_ndarray(format="rgba")
    if not pixels[..., 3].any():  # uncompressed 32-bit recordings leave the fourth byte zero
        return Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    return to_rgb(Image.fromarray(pixels))


def check_pixels(width: int, height: int) -> None:
    """Raises TooManyPixels when a frame of that size has more pixels than an image may have."""
    if width * height > pixel_limit():
        raise TooManyPixels(f"its frames have {width} x {height} pixels; at most {pixel_limit()} can be read")


def display_move(frame: VideoFrame) -> Image.Transpose | None:
    """What players do to a frame before they show it; other angles are rounded to quarters of a turn.

    The matrix of a frame takes (x, y) to (a x + c y, b x + d y). Where its determinant is zero, it says nothing: some
    programs write zeros.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):  # there is none
        return None
    a, b, _, c, d = np.frombuffer(memoryview(matrix), np.int32)[:5].tolist()
    if a * d == b * c:
        return None
    if abs(b) + abs(c) > abs(a) + abs(d):
        return _MOVES[True, c < 0, b < 0]
    return _MOVES.get((False, a < 0, d < 0))
