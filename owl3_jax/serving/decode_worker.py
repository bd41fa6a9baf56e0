"""A process that decodes requests for a server, so that a hostile file meets no more than this process. It imports no jax.

    python -m owl3_jax.serving.decode_worker DESCRIPTOR

It answers messages on the socket that it inherits as DESCRIPTOR (`owl3_jax.serving.decode_wire`), and ends with that socket:

    <- {"checkpoint", "limits", "crop", "max_frames", "frame_rule"}      once
    -> {"image_size", "vocab_size"}, or {"failed": why}
    <- {"messages"}, sources                                             for each request
    -> {"images"}, input ids and image starts; then for each of them {"view": index}, pixels, or {"view": index, "same_as": one
       before}
    -> {"refused": code, "message"}                                      in place of any of these
"""

import contextlib
import dataclasses
import errno
import faulthandler
import gc
import os
import re
import resource
import signal
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from owl3_jax.config import FrameRule
from owl3_jax.processing.conversation import as_conversation
from owl3_jax.processing.images import TooManyPixels, UnreadableImage, check_header, limit_pixels
from owl3_jax.processing.media import Picture
from owl3_jax.processing.processor import Prepared, Processor
from owl3_jax.processing.video_file import UnreadableVideo
from owl3_jax.serving.decode_limits import DecodeLimits, DecodeRefused, allocated_bytes
from owl3_jax.serving.decode_request import too_many_images, unpack
from owl3_jax.serving.decode_wire import Received, WireError, receive, send

_ANY_SIZE = 1 << 62  # the server may say what it likes
_LEAST_ROOM = 64 << 20  # bytes beyond what a worker has at rest, with which small images can be read
_LATER = 5.0  # seconds after the server's own time limit
_PLACE = re.compile(r"cannot read (?:(image|video) (\d+)|(frame \d+) of video (\d+))")


def main() -> None:
    """Answers until the server closes the socket, or has gone."""
    _keep_log_for_ourselves()
    with socket.socket(fileno=int(sys.argv[1])) as connection, contextlib.suppress(ConnectionError, WireError):
        settings = receive(connection, max_said=_ANY_SIZE, max_blobs=0)
        if settings is not None:
            _serve(connection, settings.said)


def _keep_log_for_ourselves() -> None:
    """A traceback and the place of a crash go to the server's log; what libraries have to say of each damaged file does not."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    faulthandler.enable(sys.stderr)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # to which libraries in C write


def _serve(connection: socket.socket, settings: Mapping[str, object]) -> None:  # JSON that the server wrote
    try:
        limits = DecodeLimits(**cast(dict[str, int], settings["limits"]))
        processor = _processor(settings, limits)
        _confine(limits)
    except (ValueError, OSError) as error:
        send(connection, {"failed": str(error)})
        return
    send(connection, {"image_size": processor.image_size, "vocab_size": processor.tokenizer.vocab_size})
    gc.freeze()  # what is there now stays, and need not be looked at again and again
    while request := receive(connection, max_said=_ANY_SIZE, max_blobs=_ANY_SIZE):
        # Ends this process, whatever it hangs in, if the server has gone and cannot.
        signal.setitimer(signal.ITIMER_REAL, limits.timeout + _LATER)
        _answer(connection, processor, limits, request)
        del request
        gc.collect()  # cycles hold decoders, with threads and frames of which Python does not know how large they are
        signal.setitimer(signal.ITIMER_REAL, 0)


def _processor(settings: Mapping[str, object], limits: DecodeLimits) -> Processor:
    processor = Processor.from_pretrained(str(settings["checkpoint"]))
    video = processor.video_sampling
    video = dataclasses.replace(
        video,
        max_frames=min(cast(int | None, settings["max_frames"]) or video.max_frames, limits.max_frames),
        rule=cast(FrameRule | None, settings["frame_rule"]) or video.rule,
    )
    crop = processor.crop if settings["crop"] is None else cast(bool, settings["crop"])
    return dataclasses.replace(processor, video_sampling=video, crop=crop)


def _confine(limits: DecodeLimits) -> None:
    limit_pixels(limits.max_pixels)
    warnings.simplefilter("ignore")
    # Pillow refuses twice as many pixels, and warns of fewer: it looks at images within images too.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    least = allocated_bytes() + _LEAST_ROOM
    if limits.max_bytes_of_memory < least:
        raise ValueError(f"max_bytes_of_memory is {limits.max_bytes_of_memory}; a worker needs at least {least}")
    resource.setrlimit(resource.RLIMIT_DATA, (limits.max_bytes_of_memory, limits.max_bytes_of_memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold a client's images


def _answer(connection: socket.socket, processor: Processor, limits: DecodeLimits, request: Received) -> None:
    try:
        sources = list(map(bytes, request.blobs))
        request.blobs.clear()
        prepared = _prepare(processor, limits, unpack(request.said["messages"], sources))
        arrays = (prepared.input_ids.astype("<i4"), prepared.image_starts.astype("<i4"))
        send(connection, {"images": prepared.num_images}, [array.data for array in arrays])
        for index, view in enumerate(_views(prepared, limits)):
            if isinstance(view, int):
                send(connection, {"view": index, "same_as": view})
            else:
                send(connection, {"view": index}, [np.ascontiguousarray(view).data])
    except DecodeRefused as refused:
        send(connection, {"refused": refused.code, "message": str(refused)})
    except MemoryError:
        send(connection, {"refused": "image_too_large", "message": "the request needs more memory than it may have"})


def _prepare(processor: Processor, limits: DecodeLimits, messages: object) -> Prepared:
    """Everything but the pixels. Raises DecodeRefused."""
    try:
        conversation = as_conversation(messages)
        for index, image in enumerate(conversation.images):
            check_header(image, str(index))
        prepared = processor.prepare(*conversation)
    except (UnreadableImage, UnreadableVideo) as error:
        raise _refusal(error, limits) from error
    except ValueError as error:  # our own words
        raise DecodeRefused("invalid_messages", str(error)) from error
    if prepared.num_images > limits.max_images:
        raise too_many_images(limits)
    return prepared


def _views(prepared: Prepared, limits: DecodeLimits) -> Iterator[np.ndarray | int]:
    """The pixels of each view; of a picture that was there before, the index of the same view then."""
    index, shown = 0, dict[int, int]()  # the first view of each picture
    try:
        for medium in prepared.media:
            first = shown.setdefault(id(medium.source), index) if isinstance(medium, Picture) else index
            if first < index:
                yield from range(first, first + medium.num_views)
            else:
                yield from medium.views(prepared.image_size)
            index += medium.num_views
    except (UnreadableImage, UnreadableVideo) as error:
        raise _refusal(error, limits) from error


def _refusal(error: UnreadableImage | UnreadableVideo, limits: DecodeLimits) -> DecodeRefused:
    """The same in words of our own: the error's may be a library's, and name a path or an address."""
    place, causes = _place(error), list(_causes(error))
    bombs = (TooManyPixels, Image.DecompressionBombError, Image.DecompressionBombWarning)
    if any(isinstance(cause, bombs) for cause in causes):
        return DecodeRefused("image_too_large", f"{place} has more than {limits.max_pixels} pixels")
    if any(isinstance(cause, MemoryError) or getattr(cause, "errno", None) == errno.ENOMEM for cause in causes):
        return DecodeRefused("image_too_large", f"{place} needs more memory than a request may have")
    why = "it is damaged, or in a format that is not supported"
    if isinstance(error, UnreadableImage):
        return DecodeRefused("unreadable_image", f"{place} cannot be read: {why}")
    return DecodeRefused("unreadable_video", f"{place} cannot be read: {why}")


def _place(error: UnreadableImage | UnreadableVideo) -> str:
    """Which image or video of the request it is, from our own beginning of the message."""
    found = _PLACE.match(str(error))
    if not found:
        return "an image or a video"
    kind, index, frame, video = found.groups()
    return f"{kind} {index} (counted from 0)" if kind else f"{frame} of video {video} (both counted from 0)"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


if __name__ == "__main__":
    main()
