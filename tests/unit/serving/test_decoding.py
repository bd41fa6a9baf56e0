"""Decoding in worker processes: what it gives is the processor's, and what breaks a worker costs one request."""

import asyncio
import contextlib
import dataclasses
import io
import re
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from owl3_jax.inference.feature_cache import key_of
from owl3_jax.processing.chat import escape_placeholders
from owl3_jax.processing.images import UnreadableImage, load_image
from owl3_jax.processing.processor import Processor
from owl3_jax.serving.decode_request import pack
from owl3_jax.serving.decoder_process import DecoderDiedError, DecoderProcess
from owl3_jax.serving.decoding import DecodedPrompt, DecodeLimits, DecoderCounts, DecodeRefused, Decoders, DecoderStartError
from tests.videos import write_video

DIGITS = Path("digits")
LIMITS = DecodeLimits(max_images=8, max_pixels=100_000, max_frames=6, timeout=120.0)
MEGABYTE = 1 << 20


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(seed: int, width: int = 37, height: int = 23) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def image(source: object) -> dict[str, object]:
    return {"type": "image", "image": source}


def video(source: object) -> dict[str, object]:
    return {"type": "video", "video": source}


def asking(*parts: dict[str, object], text: str = "Which digit is red?") -> list[dict[str, object]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


GOOD = asking(image(encode(picture(0))))
TEXT = [{"role": "user", "content": "Hello"}]


def worker_processes() -> set[psutil.Process]:
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("decode_worker" in argument for argument in child.cmdline()):
                found.add(child)
    return found


class Shared:
    """Decoders that several tests ask, on a loop that stays between them."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        before = worker_processes()
        self.decoders = Decoders(DIGITS, 2, LIMITS, text_workers=0)
        self.runner.run(self.decoders.start())
        self.processes = worker_processes() - before

    def decode(self, messages: list[dict[str, object]]) -> DecodedPrompt:
        return self.runner.run(self.decoders.decode(messages))

    def refusal(self, messages: list[dict[str, object]]) -> DecodeRefused:
        with pytest.raises(DecodeRefused) as caught:
            self.decode(messages)
        return caught.value

    def close(self) -> None:
        self.runner.run(self.decoders.close())
        self.runner.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    decoders = Shared()
    yield decoders
    assert decoders.decoders.counts().started == 2  # none of the tests that share them has cost a worker
    decoders.close()


@pytest.fixture(scope="module")
def processor() -> Processor:
    processor = Processor.from_pretrained(DIGITS)
    return dataclasses.replace(
        processor, video_sampling=dataclasses.replace(processor.video_sampling, max_frames=LIMITS.max_frames)
    )


def assert_same(prompt: DecodedPrompt, processor: Processor, messages: list[dict[str, object]]) -> None:
    expected = processor(messages)
    assert prompt.input_ids == expected.input_ids.tolist()
    assert prompt.image_starts == expected.image_starts.tolist()
    assert len(prompt.views) == len(expected.pixel_values)
    for view, pixels in zip(prompt.views, expected.pixel_values, strict=True):
        np.testing.assert_array_equal(view.pixels, pixels)
        assert view.key == key_of(pixels)


@contextlib.asynccontextmanager
async def decoding(
    workers: int, limits: DecodeLimits, checkpoint: Path = DIGITS, *, text_workers: int = 0, **changes: object
) -> AsyncIterator[tuple[Decoders, list[psutil.Process]]]:
    """Decoders of a test's own, and their processes."""
    before = worker_processes()
    async with Decoders(checkpoint, workers, limits, text_workers=text_workers, **changes) as decoders:
        yield decoders, list(worker_processes() - before)


async def until(condition: Callable[[DecoderCounts], bool], decoders: Decoders) -> None:
    """Waits for what `condition` says of the counts."""
    async with asyncio.timeout(120):
        while not condition(decoders.counts()):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000"])
def test_an_image_is_what_the_processor_makes_of_it(shared, processor, kind):
    messages = asking(image(encode(picture(1), kind)))
    assert_same(shared.decode(messages), processor, messages)


def test_a_conversation_of_all_roles_and_media_is_what_the_processor_makes_of_it(shared, processor, tmp_path):
    film = write_video(tmp_path / "film.mp4", 20, durations=(500,))
    photograph = tmp_path / "photograph.png"
    photograph.write_bytes(encode(picture(2)))
    messages = [
        {"role": "system", "content": f"Be brief about {escape_placeholders('<|image|>')}."},
        *asking(image(photograph), video([encode(picture(3)), photograph])),
        {"role": "assistant", "content": "red 7"},
        *asking(image(encode(picture(4))), text=escape_placeholders("<|video|> 好 \U0001f600?")),
    ]
    assert_same(shared.decode(messages), processor, messages)
    for source in (film, film.read_bytes()):
        messages = asking(video(source))
        prompt = shared.decode(messages)
        assert len(prompt.views) == LIMITS.max_frames
        assert_same(prompt, processor, messages)


def test_text_alone_needs_no_views(shared, processor):
    messages = [{"role": "user", "content": "How many images?"}]
    assert shared.decode(messages).views == []
    assert_same(shared.decode(messages), processor, messages)


def test_the_settings_of_the_command_line_are_followed(processor, tmp_path):
    film = write_video(tmp_path / "film.mp4", 20, durations=(500,))
    sampling = dataclasses.replace(processor.video_sampling, max_frames=3, rule="middle")
    changed = dataclasses.replace(processor, crop=True, video_sampling=sampling)

    async def ask() -> None:
        async with decoding(1, LIMITS, crop=True, max_frames=3, frame_rule="middle") as (decoders, _):
            for messages in (GOOD, asking(video(film))):
                assert_same(await decoders.decode(messages), changed, messages)
            with pytest.raises(DecodeRefused) as caught:  # two crops each at least, and the whole image
                await decoders.decode(asking(*[image(encode(picture(0)))] * 3))
            assert caught.value.code == "too_many_images"

    asyncio.run(ask())


def png_of(width: int, height: int, content: bytes = b"") -> bytes:
    """A black and white PNG file whose header claims so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def patched(content: bytes, at: int, form: str, *values: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into(form, changed, at, *values)
    return bytes(changed)


def gif_bomb() -> bytes:
    frames = [picture(seed, 8, 8) for seed in range(20)]
    encoded = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    return patched(encoded, 6, "<HH", 65535, 65535)


def webp_bomb() -> bytes:
    frames = [picture(seed, 8, 8) for seed in range(3)]
    encoded = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    at = encoded.index(b"VP8X") + 12  # two times 24 bits, less one
    return encoded[:at] + (16383).to_bytes(3, "little") * 2 + encoded[at + 6 :]


def tiff_bomb() -> bytes:
    encoded = encode(picture(0, 8, 8), "TIFF")
    for tag in (256, 257):  # width and height
        at = next(at for at in range(8, len(encoded)) if encoded[at : at + 2] == struct.pack("<H", tag))
        encoded = patched(encoded, at + 2, "<HII", 4, 1, 60_000)
    return encoded


def jpeg2000_bomb() -> bytes:
    encoded = encode(picture(0, 8, 8), "JPEG2000", no_jp2=True)
    at = encoded.index(b"\xff\x51") + 6  # the marker, its length, the capabilities
    return patched(encoded, at, ">II", 60_000, 60_000)


BOMBS = {
    "PNG": image(png_of(60_000, 60_000)),
    "GIF": image(gif_bomb()),
    "WebP": image(webp_bomb()),
    "TIFF": image(tiff_bomb()),
    "JPEG2000": image(jpeg2000_bomb()),
    "a list": video([encode(picture(0)), png_of(60_000, 60_000)]),
    "GIF as a video": video(gif_bomb()),
}


def assert_is_for_clients(refused: DecodeRefused) -> None:
    """No address, path or library's words."""
    assert not re.search(r"0x|/|Error|Pillow|FFmpeg|PIL|line \d", str(refused)), str(refused)


def peak_bytes(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


@pytest.mark.parametrize("kind", BOMBS)
def test_a_file_that_claims_too_many_pixels_is_refused_before_they_have_memory(shared, kind):
    refused = shared.refusal(asking(BOMBS[kind]))
    assert refused.code in ("image_too_large", "unreadable_image", "unreadable_video")
    assert_is_for_clients(refused)
    assert max(map(peak_bytes, shared.processes)) < 300 * MEGABYTE


def avi_of(tmp_path: Path, width: int, height: int) -> bytes:
    """An uncompressed video whose header claims such frames."""
    encoded = write_video(tmp_path / "film.avi", 3, codec="rawvideo").read_bytes()
    at = encoded.index(b"strf") + 12
    return patched(encoded, at, "<ii", width, height)


def test_a_video_that_claims_too_many_pixels_is_refused_before_they_have_memory(shared, tmp_path):
    refused = shared.refusal(asking(video(avi_of(tmp_path, 400, 300))))
    assert (refused.code, str(refused)) == ("image_too_large", "video 0 (counted from 0) has more than 100000 pixels")
    for width, height in ((60_000, 60_000), (2**31 - 1, 2**31 - 1), (-5, 0)):
        refused = shared.refusal(asking(video(avi_of(tmp_path, width, height))))
        assert refused.code in ("image_too_large", "unreadable_video")
        assert_is_for_clients(refused)
    assert max(map(peak_bytes, shared.processes)) < 300 * MEGABYTE


@pytest.mark.parametrize(
    ("messages", "code", "words"),
    [
        ([], "invalid_messages", "at least one user message"),
        ([{"role": "bot", "content": "Hi"}], "invalid_messages", "message 0 has role 'bot'"),
        ([{"content": "Hi"}], "invalid_messages", "message 0 has no role"),
        ([{"role": "user", "content": None}], "invalid_messages", "message 0 has no content"),
        ([{"role": "user", "content": "<|image|>"}], "invalid_messages", "1 <|image|> placeholders, but 0 images"),
        ([{"role": "user", "content": "\ud800"}], "invalid_messages", "half of a surrogate pair"),
        (asking(image("/etc/passwd")), "invalid_messages", "part 0 of message 0 has no content"),
        (asking(image(None)), "invalid_messages", "part 0 of message 0 has no content"),
        (asking({"type": "image_url", "image_url": {"url": "a.png"}}), "invalid_messages", "neither text, nor an image"),
        (asking({"type": "text"}), "invalid_messages", "part 0 of message 0 has no text"),
        (asking(*[image(encode(picture(0)))] * 9), "too_many_images", "may have 8 images"),
        (asking(video([encode(picture(0))] * 7)), "too_many_frames", "a video of 7 frames; a video may have 6"),
        (asking(image(encode(picture(0))), image(encode(picture(0, 400, 300)))), "image_too_large", "image 1"),
        (asking(video([encode(picture(0)), encode(picture(0, 400, 300))])), "image_too_large", "frame 1 of video 0"),
        (asking(image(encode(picture(0))), image(b"no image")), "unreadable_image", "image 1 (counted from 0)"),
        (asking(image(b"")), "unreadable_image", "image 0"),
        (asking(image(encode(picture(0))[:-400])), "unreadable_image", "image 0"),
        (asking(image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")), "unreadable_image", "image 0"),
        (asking(video(b"no video")), "unreadable_video", "video 0 (counted from 0)"),
        (asking(video([])), "unreadable_video", "video 0"),
        (asking(video([encode(picture(0)), b"no image"])), "unreadable_video", "frame 1 of video 0"),
    ],
)
def test_what_cannot_be_decoded_is_refused_in_words_for_clients(shared, messages, code, words):
    refused = shared.refusal(messages)
    assert (refused.code, words in str(refused)) == (code, True), str(refused)
    assert_is_for_clients(refused)


def test_what_libraries_say_of_damaged_files_does_not_fill_the_log(capfd):
    encoded = encode(picture(0), "TIFF", compression="tiff_adobe_deflate")
    at = encoded.index(b"\x78")  # the compressed pixels
    damaged = encoded[:at] + bytes(40) + encoded[at + 40 :]

    async def ask() -> None:
        async with decoding(1, LIMITS) as (decoders, _):
            with pytest.raises(DecodeRefused):
                await decoders.decode(asking(image(damaged)))

    asyncio.run(ask())
    assert capfd.readouterr().err == ""
    with pytest.raises(UnreadableImage):
        load_image(damaged, "0")
    assert capfd.readouterr().err != ""  # it would


def test_refusals_of_local_files_name_no_path(shared, tmp_path):
    text = tmp_path / "secret.txt"
    text.write_text("secret words")
    for source in (text, tmp_path / "missing.png", tmp_path):
        for part in (image(source), video(source), video([source])):
            refused = shared.refusal(asking(part))
            assert refused.code in ("unreadable_image", "unreadable_video")
            assert_is_for_clients(refused)
            assert "secret" not in str(refused) and "missing" not in str(refused)


def test_many_requests_share_the_workers(shared, processor):
    requests = [asking(image(encode(picture(seed)))) for seed in range(50)]

    async def ask() -> list[DecodedPrompt]:
        return await asyncio.gather(*(shared.decoders.decode(request) for request in requests))

    for prompt, request in zip(shared.runner.run(ask()), requests, strict=True):
        assert_same(prompt, processor, request)


def test_an_image_that_needs_too_much_memory_is_refused_and_the_worker_goes_on(processor):
    rows = bytes(20_000 * (1 + 20_000 // 8))
    bomb = png_of(20_000, 20_000, zlib.compress(rows, 1))  # 400 MB once it is decoded
    limits = dataclasses.replace(LIMITS, max_pixels=20_000**2, max_bytes_of_memory=256 * MEGABYTE)

    async def ask() -> None:
        async with decoding(1, limits) as (decoders, processes):
            with pytest.raises(DecodeRefused, match=r"image 1 .* more memory") as caught:
                await decoders.decode(asking(image(encode(picture(0))), image(bomb)))
            assert caught.value.code == "image_too_large"
            assert peak_bytes(processes[0]) < 256 * MEGABYTE
            assert_same(await decoders.decode(GOOD), processor, GOOD)
            assert decoders.counts().started == 1

    asyncio.run(ask())


def test_a_worker_that_is_killed_costs_one_request(processor):
    async def ask() -> None:
        async with decoding(2, LIMITS) as (decoders, processes):
            for process in processes:
                process.suspend()
            answers = [asyncio.create_task(decoders.decode(GOOD)) for _ in range(4)]
            await until(lambda counts: (counts.in_use, counts.waiting) == (2, 2), decoders)
            processes[0].kill()
            processes[1].resume()
            results = await asyncio.gather(*answers, return_exceptions=True)
            refused = [result for result in results if isinstance(result, DecodeRefused)]
            assert [error.code for error in refused] == ["decoder_died"]
            assert_is_for_clients(refused[0])
            for prompt in results:
                if prompt is not refused[0]:
                    assert_same(prompt, processor, GOOD)
            await until(lambda counts: (counts.started, counts.died, counts.in_use) == (3, 1, 0), decoders)

    asyncio.run(ask())


def test_a_worker_that_dies_while_idle_costs_no_request(processor):
    async def ask() -> None:
        async with decoding(1, LIMITS) as (decoders, processes):
            processes[0].send_signal(signal.SIGSEGV)
            await until(lambda counts: (counts.started, counts.died) == (2, 1), decoders)
            assert_same(await decoders.decode(GOOD), processor, GOOD)

    asyncio.run(ask())


def test_a_request_that_takes_too_long_is_refused_and_its_worker_replaced(processor):
    async def ask() -> None:
        async with decoding(1, dataclasses.replace(LIMITS, timeout=5.0)) as (decoders, processes):
            processes[0].suspend()
            with pytest.raises(DecodeRefused, match="may take 5 s") as caught:
                await decoders.decode(GOOD)
            assert caught.value.code == "decode_timeout"
            await until(lambda counts: counts.started == 2, decoders)
            assert_same(await decoders.decode(GOOD), processor, GOOD)
            counts = decoders.counts()
            assert (counts.timed_out, counts.died, counts.abandoned) == (1, 0, 0)

    asyncio.run(ask())


def test_a_client_that_goes_frees_its_worker_and_its_place_in_the_queue(processor):
    async def ask() -> None:
        async with decoding(1, LIMITS) as (decoders, processes):
            processes[0].suspend()
            answers = [asyncio.create_task(decoders.decode(GOOD)) for _ in range(3)]
            await until(lambda counts: (counts.in_use, counts.waiting) == (1, 2), decoders)
            for answer in answers[:2]:
                answer.cancel()
            assert_same(await answers[2], processor, GOOD)  # of the worker that follows
            assert all(answer.cancelled() for answer in answers[:2])
            counts = decoders.counts()
            assert (counts.started, counts.abandoned, counts.timed_out, counts.died) == (2, 1, 0, 0)

    asyncio.run(ask())


def test_a_client_that_goes_does_not_cost_a_worker_that_is_soon_done(processor, monkeypatch):
    monkeypatch.setattr("owl3_jax.serving.decoding._GRACE", 120.0)

    async def ask() -> None:
        async with decoding(1, LIMITS) as (decoders, processes):
            processes[0].suspend()
            answer = asyncio.create_task(decoders.decode(GOOD))
            await until(lambda counts: counts.in_use == 1, decoders)
            answer.cancel()
            processes[0].resume()
            assert_same(await decoders.decode(GOOD), processor, GOOD)
            assert decoders.counts().started == 1

    asyncio.run(ask())


def test_requests_without_media_do_not_wait_for_those_with_some(processor):
    async def ask() -> None:
        async with decoding(1, LIMITS, text_workers=1) as (decoders, processes):
            for process in processes:
                process.suspend()
            answers = [asyncio.create_task(decoders.decode(GOOD)) for _ in range(3)]
            await until(lambda counts: (counts.in_use, counts.waiting) == (1, 2), decoders)
            answered = asyncio.create_task(decoders.decode(TEXT))
            await until(lambda counts: (counts.in_use, counts.waiting) == (2, 2), decoders)
            for process in processes:
                process.resume()
            assert_same(await answered, processor, TEXT)
            for answer in answers:
                assert_same(await answer, processor, GOOD)

    asyncio.run(ask())


def test_requests_without_media_leave_workers_to_those_with_some(processor):
    async def ask() -> None:
        async with decoding(1, LIMITS, text_workers=1) as (decoders, processes):
            for process in processes:
                process.suspend()
            many = [asyncio.create_task(decoders.decode(TEXT, str(number))) for number in range(30)]
            await until(lambda counts: (counts.in_use, counts.waiting) == (2, 28), decoders)  # nobody else wants them
            answer = asyncio.create_task(decoders.decode(GOOD))
            await until(lambda counts: counts.waiting == 29, decoders)
            order = []
            for task in (*many, answer):
                task.add_done_callback(order.append)
            for process in processes:
                process.resume()
            assert_same(await answer, processor, GOOD)
            await asyncio.gather(*many)
            assert order.index(answer) < 29  # not behind all of them

    asyncio.run(ask())


def test_a_client_with_many_requests_delays_its_own(processor):
    async def ask() -> None:
        async with decoding(1, LIMITS) as (decoders, processes):
            processes[0].suspend()
            answered = []

            async def answer(client: str) -> None:
                assert_same(await decoders.decode(GOOD, client), processor, GOOD)
                answered.append(client)

            many = [asyncio.create_task(answer("one")) for _ in range(5)]
            await until(lambda counts: counts.waiting == 4, decoders)
            await asyncio.sleep(0.5)  # however much later the other comes
            other = asyncio.create_task(answer("two"))
            await until(lambda counts: counts.waiting == 5, decoders)
            processes[0].resume()
            await asyncio.gather(*many, other)
            assert answered.index("two") <= 2

    asyncio.run(ask())


def test_a_request_without_media_is_not_to_blame_for_a_worker_that_is_killed(processor):
    async def ask() -> None:
        async with decoding(1, LIMITS) as (decoders, processes):
            processes[0].suspend()
            answer = asyncio.create_task(decoders.decode(TEXT))
            await until(lambda counts: counts.in_use == 1, decoders)
            processes[0].kill()
            assert_same(await answer, processor, TEXT)
            assert decoders.counts().died == 1

    asyncio.run(ask())


def test_a_text_that_workers_die_of_is_given_up(monkeypatch):
    def dies(process: DecoderProcess, request: object) -> DecodedPrompt:
        raise DecoderDiedError("of it")

    async def ask() -> None:
        async with decoding(1, LIMITS) as (decoders, _):
            monkeypatch.setattr(DecoderProcess, "decode", dies)
            with pytest.raises(DecodeRefused) as caught:
                await decoders.decode(TEXT)
            assert caught.value.code == "decoder_unavailable"
            await until(lambda counts: (counts.started, counts.died) == (3, 2), decoders)

    asyncio.run(ask())


def test_a_picture_that_is_shown_twice_is_decoded_once(shared, processor):
    source, other = encode(picture(1)), encode(picture(2))
    messages = asking(image(source), image(other), image(source), video([source, other]), image(source))
    prompt = shared.decode(messages)
    assert_same(prompt, processor, messages)
    assert prompt.views[2] is prompt.views[0] and prompt.views[5] is prompt.views[0]
    assert len(pack(messages, LIMITS).blobs) == 2


def test_workers_are_replaced_after_many_requests(processor, monkeypatch):
    monkeypatch.setattr("owl3_jax.serving.decoder_process._MOST_REQUESTS", 2)

    async def ask() -> None:
        async with decoding(1, LIMITS) as (decoders, _):
            answered = []

            async def answer(number: int) -> None:
                assert_same(await decoders.decode(GOOD), processor, GOOD)
                answered.append(number)

            await asyncio.gather(*map(answer, range(5)))
            assert answered == list(range(5))  # first come, first served
            await until(lambda counts: (counts.started, counts.died) == (3, 0), decoders)

    asyncio.run(ask())


def test_a_worker_that_keeps_memory_is_replaced(processor, monkeypatch):
    allocated = iter([100 * MEGABYTE, (LIMITS.max_bytes_of_memory + 101 * MEGABYTE) // 2])
    monkeypatch.setattr("owl3_jax.serving.decoder_process.allocated_bytes", lambda pid: next(allocated, 0))

    async def ask() -> None:
        async with decoding(1, LIMITS) as (decoders, _):
            for _ in range(3):
                assert_same(await decoders.decode(GOOD), processor, GOOD)
            counts = decoders.counts()
            assert (counts.started, counts.died) == (2, 0)

    asyncio.run(ask())


def test_videos_leave_no_memory_behind(tmp_path):
    film = write_video(tmp_path / "film.mp4", 20, b_frames=2).read_bytes()

    async def ask() -> None:
        async with decoding(1, dataclasses.replace(LIMITS, max_bytes_of_memory=400 * MEGABYTE)) as (decoders, processes):
            first = None
            for _ in range(30):
                await decoders.decode(asking(video(film)))
                used = processes[0].memory_info().data
                first = first or used
                assert used < first + 64 * MEGABYTE  # a decoder's threads alone have some of it each
            assert decoders.counts().started == 1

    asyncio.run(ask())


def test_requests_are_refused_while_no_worker_starts_and_answered_once_one_does(processor, tmp_path):
    checkpoint, elsewhere = tmp_path / "checkpoint", tmp_path / "elsewhere"
    checkpoint.mkdir()
    processor.save(checkpoint)

    async def ask() -> None:
        async with decoding(1, LIMITS, checkpoint) as (decoders, [process]):
            checkpoint.rename(elsewhere)
            process.suspend()
            answers = [asyncio.create_task(decoders.decode(GOOD)) for _ in range(2)]
            await until(lambda counts: (counts.in_use, counts.waiting) == (1, 1), decoders)
            process.kill()
            results = await asyncio.gather(*answers, return_exceptions=True)
            assert [error.code for error in results] == ["decoder_died", "decoder_unavailable"]
            assert_is_for_clients(results[1])
            elsewhere.rename(checkpoint)
            await until(lambda counts: counts.started == 2, decoders)
            assert_same(await decoders.decode(GOOD), processor, GOOD)

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("checkpoint", "limits", "words"),
    [
        (Path("no such checkpoint"), LIMITS, "no such checkpoint"),
        (DIGITS, dataclasses.replace(LIMITS, max_bytes_of_memory=MEGABYTE), "max_bytes_of_memory is 1048576; a worker needs"),
    ],
)
def test_workers_that_cannot_start_say_why_and_none_is_left(checkpoint, limits, words):
    before = worker_processes()
    with pytest.raises(DecoderStartError, match=words):
        asyncio.run(Decoders(checkpoint, 2, limits).start())
    assert worker_processes() == before


def test_nothing_is_left_after_closing():
    process = psutil.Process()

    async def ask() -> set[psutil.Process]:
        async with decoding(2, LIMITS) as (decoders, processes):
            await asyncio.gather(*(decoders.decode(GOOD) for _ in range(4)))
            processes[0].kill()
            await until(lambda counts: counts.started == 3, decoders)
            for each in worker_processes():
                each.suspend()
            waiting = [asyncio.create_task(decoders.decode(GOOD)) for _ in range(3)]
            await until(lambda counts: (counts.in_use, counts.waiting) == (2, 1), decoders)
            await decoders.close()
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert [error.code for error in results] == ["decoder_unavailable"] * 3
            with pytest.raises(DecodeRefused, match="stopping"):
                await decoders.decode(GOOD)
        return set(processes)

    before, descriptors = worker_processes(), []
    for _ in range(3):
        asyncio.run(ask())
        assert worker_processes() == before
        descriptors.append(process.num_fds())
    assert len(set(descriptors)) == 1


SERVER = """
import asyncio
from pathlib import Path
from owl3_jax.serving.decoding import DecodeLimits, Decoders

async def main():
    async with Decoders(Path("digits"), 1, DecodeLimits()):
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_workers_end_with_a_killed_server():
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE) as server:
        assert server.stdout.readline() == b"ready\n"
        processes = psutil.Process(server.pid).children()
        server.kill()
    assert len(processes) == 2
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(DecodeLimits)])
def test_limits_must_be_positive(field):
    zero = type(getattr(LIMITS, field))(0)
    with pytest.raises(ValueError, match=f"{field} must be positive, got 0"):
        dataclasses.replace(LIMITS, **{field: zero})
