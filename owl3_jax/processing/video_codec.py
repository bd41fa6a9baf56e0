"""What the codec of a video is called for which FFmpeg has no decoder."""

import re
from collections.abc import Callable

import av
from av.container import InputContainer


def undecodable_codec(reopen: Callable[[], InputContainer], index: int) -> str:
    """The name that the file gives the codec of stream `index`: a tag of four letters, or a name of Matroska's.

    PyAV tells nothing about such a stream, but FFmpeg writes it to its log, which PyAV turns off unless asked.
    """
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture() as logs, reopen() as container:
            streams = container.dumps_format()  # type: ignore[attr-defined]  # missing in PyAV's stub
    finally:
        av.logging.set_level(level)
    said = "\n".join(message for _, _, message in logs)
    tag = re.search(rf"Stream #0:{index}\b.*?Video: (?:none \((.+?) /|(?!none)([^,\n]+))", streams)
    unknown = re.search(r"AVCodecID (\S+?)\.?$", said, re.MULTILINE)
    return next((name for found in (tag, unknown) if found for name in found.groups() if name), "unknown")
