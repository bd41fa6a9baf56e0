"""Video files written here: the frames of every kind, how few are decoded, and what is said of damaged ones."""

import io
import os
import re
import resource
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from owl3_jax.processing import video_file
from owl3_jax.processing.video_file import UnreadableVideo, decode_frames, read_frame_table
from tests import h264
from tests.videos import B_FRAMES, HEIGHT, NO_OPTIONS, WIDTH, number_image, number_of, read_packets, write_packets, write_video

FRAMES = 41
OPEN_GOP = {"x264-params": "open-gop=1:scenecut=0:b-adapt=0"}
INDEX_FIRST = {"movflags": "faststart"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
WRAP = 2**33 // 90  # milliseconds after which the times of a transport stream start over
ONE = 1 << 16  # in a display matrix
LAST_ROW = (0, 0, 1 << 30)
FOUR_COLOURS = Image.fromarray(np.uint8([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]])).resize((64, 32), 0)
# Where headers state a duration, and how.
STATED_DURATIONS = {
    "held.flv": (b"duration\0", lambda seconds: struct.pack(">d", seconds)),
    "held.mkv": (b"\x44\x89\x88", lambda seconds: struct.pack(">d", seconds * 1000)),
    "held.asf": (b"\xb1\x9d\x01", lambda seconds: struct.pack("<QQ", 5, seconds * 10**7)),
}

KINDS = {
    "keyframes.mp4": {"gop": 1},
    "one_group.mp4": {"gop": 250},
    "b_frames.mp4": {"b_frames": 3, "options": B_FRAMES},
    "b_frames.mkv": {"b_frames": 3, "options": B_FRAMES},
    "b_frames.ts": {"b_frames": 3, "options": B_FRAMES},
    "b_frames.flv": {"b_frames": 3, "options": B_FRAMES},
    "b_frames.avi": {"b_frames": 3, "options": B_FRAMES},  # has no times but those of decoding
    "b_frames.asf": {"b_frames": 3, "options": B_FRAMES},
    "untimed.mpg": {"b_frames": 3, "options": B_FRAMES},  # few packets have a time at all
    "mpeg4.avi": {"b_frames": 2, "codec": "mpeg4"},
    "mpeg4.mkv": {"b_frames": 2, "codec": "mpeg4"},
    "keyframes.avi": {"codec": "mjpeg", "options": {"strict": "-1"}},
    "wrap.ts": {"start": WRAP - 2000, "b_frames": 3, "options": B_FRAMES},
    "vp8.ogv": {"codec": "libvpx", "options": NO_OPTIONS},
    "b_frames.mpg": {"b_frames": 2, "codec": "mpeg2video", "durations": (40,), "options": NO_OPTIONS},
    "fragments.mp4": {"container_options": FRAGMENTS},
    "open_groups.mkv": {"b_frames": 3, "options": OPEN_GOP},
    "variable_rate.mkv": {"durations": (10, 200, 33), "b_frames": 2},
    "late_start.mp4": {"start": 5000, "b_frames": 2},
    "vp9.webm": {"codec": "libvpx-vp9", "options": NO_OPTIONS},
}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Fills with the times of the frames that come out of the decoder."""
    times: list[int | None] = []
    decode = video_file._decode

    def counting(*args) -> Iterator[av.VideoFrame]:
        for frame in decode(*args):
            times.append(frame.pts)
            yield frame

    monkeypatch.setattr(video_file, "_decode", counting)
    return times


def numbers(path: Path, wanted: list[int]) -> list[int]:
    table = read_frame_table(path, "clip")
    return [number_of(image) for image in decode_frames(path, table, wanted, "clip")]


@pytest.mark.parametrize("name", KINDS)
def test_frames_equal_those_of_a_full_decode(name, tmp_path):
    path = write_video(tmp_path / name, FRAMES, **KINDS[name])
    with av.open(str(path)) as container:
        everything = [frame.to_image().tobytes() for frame in container.decode(video=0)]
    table = read_frame_table(path, "clip")
    assert table.num_frames == len(everything) == FRAMES
    for wanted in ([0], [FRAMES - 1], [10, 11, 12, 13], [3, 17, 38], list(range(FRAMES))):
        images = list(decode_frames(path, table, wanted, "clip"))
        assert [number_of(image) for image in images] == wanted
        assert [image.tobytes() for image in images] == [everything[number] for number in wanted]


@pytest.mark.parametrize(
    ("kind", "wanted", "expected"),
    [
        ({"gop": 1}, [3, 17, 38], 3),
        ({"gop": 250}, [3], 4),
        ({"gop": 12}, [3, 17, 38], 4 + 6 + 3),
        ({"gop": 12}, [0, 12, 24], 3),
        ({"gop": 12}, [1, 5], 6),
    ],
)
def test_nothing_is_decoded_in_vain(kind, wanted, expected, tmp_path, decoded):
    path = write_video(tmp_path / "clip.mp4", FRAMES, **kind)
    assert numbers(path, wanted) == wanted
    assert len(decoded) == expected


def test_counting_decodes_nothing(tmp_path, decoded):
    assert read_frame_table(write_video(tmp_path / "clip.mkv", FRAMES), "clip").num_frames == FRAMES
    assert not decoded


def test_frames_are_decoded_when_their_turn_comes(tmp_path, decoded):
    path = write_video(tmp_path / "clip.mp4", FRAMES, gop=1)
    frames = decode_frames(path, read_frame_table(path, "clip"), list(range(FRAMES)), "clip")
    next(frames), next(frames)
    assert len(decoded) == 2


def test_b_frames_before_a_keyframe_are_decoded_from_the_one_before(tmp_path):
    path = write_video(tmp_path / "clip.mkv", FRAMES, b_frames=3, options=OPEN_GOP)
    table = read_frame_table(path, "clip")
    frames = enumerate(table.positions)
    leading = [number for number, place in frames for key in table.keys if number < table.positions.index(key) and place > key]
    assert leading
    for number in leading:
        assert numbers(path, [number]) == [number]


def test_what_an_edit_list_cuts_away_does_not_count(tmp_path):
    path = write_video(tmp_path / "trimmed.mp4", FRAMES, start=-1000, gop=4)  # ten frames before time zero
    assert read_frame_table(path, "clip").num_frames == FRAMES - 10
    assert numbers(path, [0, 1, 30]) == [10, 11, 40]


def test_a_recording_that_starts_within_a_group_counts_from_its_first_keyframe(tmp_path):
    encoded = write_video(tmp_path / "whole.ts", FRAMES).read_bytes()
    cut = tmp_path / "tail.ts"
    packet = 188  # bytes; the first three tell what the file holds
    cut.write_bytes(encoded[: 3 * packet] + encoded[len(encoded) // packet // 8 * packet :])
    with av.open(str(cut)) as container:
        assert not next(container.demux(video=0)).is_keyframe
    assert numbers(cut, [0, 1]) == [12, 13]


def test_joined_recordings_whose_times_start_over_are_counted(tmp_path):
    part = write_video(tmp_path / "part.ts", 15, b_frames=2).read_bytes()
    (tmp_path / "twice.ts").write_bytes(part + part)
    assert read_frame_table(tmp_path / "twice.ts", "clip").times is None
    assert numbers(tmp_path / "twice.ts", [0, 14, 15, 29]) == [0, 14, 0, 14]


def test_frames_that_vp8_hides_do_not_count(tmp_path):
    path = write_video(tmp_path / "shown.webm", FRAMES, codec="libvpx", options=NO_OPTIONS)
    hidden = tmp_path / "hidden.webm"
    with av.open(str(path)) as source, av.open(str(hidden), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            encoded = bytearray(packet)
            if number == 7:
                encoded[0] &= ~0x10  # the bit that says "show this frame"
            copy = av.Packet(bytes(encoded))
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.is_keyframe, copy.stream = packet.is_keyframe, stream
            target.mux(copy)
    assert read_frame_table(hidden, "clip").num_frames == FRAMES - 1
    assert numbers(hidden, [6, 7]) == [6, 8]


@pytest.mark.parametrize(("turn", "quarters"), [(90, 1), (180, 2), (-90, 3)])
def test_turns_are_applied(turn, quarters, tmp_path):
    path = write_video(tmp_path / "phone.mp4", 3, turn=turn)
    [image] = decode_frames(path, read_frame_table(path, "clip"), [1], "clip")
    assert image.size == ((WIDTH, HEIGHT) if turn == 180 else (HEIGHT, WIDTH))
    as_stored = np.rot90(np.asarray(image), -quarters)
    assert number_of(Image.fromarray(as_stored)) == 1


def test_a_portrait_video_of_a_phone_is_turned_clockwise(tmp_path):
    path = write_video(tmp_path / "phone.mp4", 3, turn=-90)
    clockwise = bytes.fromhex("00000000 00010000 00000000 ffff0000 00000000")  # the matrix that phones write
    assert clockwise in path.read_bytes()
    [image] = decode_frames(path, read_frame_table(path, "clip"), [1], "clip")
    assert number_of(image.transpose(Image.Transpose.ROTATE_90)) == 1


def test_colours_are_red_green_blue(tmp_path):
    path = tmp_path / "red.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (32, 32), (220, 30, 40)))))
        container.mux(stream.encode(None))
    [image] = decode_frames(path, read_frame_table(path, "clip"), [0], "clip")
    assert image.mode == "RGB"
    assert ((np.asarray(image) > 127) == (True, False, False)).all()  # coded colours are not exact


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        ((-ONE, 0, 0, 0, ONE), lambda pixels: pixels[:, ::-1]),
        ((ONE, 0, 0, 0, -ONE), lambda pixels: pixels[::-1]),
        ((-ONE, 0, 0, 0, -ONE), lambda pixels: pixels[::-1, ::-1]),
        ((0, ONE, 0, -ONE, 0), lambda pixels: np.rot90(pixels, -1)),
        ((0, -ONE, 0, ONE, 0), np.rot90),
        ((0, ONE, 0, ONE, 0), lambda pixels: pixels.swapaxes(0, 1)),
        ((0, -ONE, 0, -ONE, 0), lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1)),
        ((2 * ONE, 0, 0, 0, 2 * ONE), lambda pixels: pixels),
        ((ONE, ONE // 4, 0, -ONE // 4, ONE), lambda pixels: pixels),  # 14 degrees
        ((ONE // 4, ONE, 0, -ONE, ONE // 4), lambda pixels: np.rot90(pixels, -1)),  # 76 degrees
        ((0, 0, 0, 0, 0), lambda pixels: pixels),
        ((ONE, 0, 0, ONE, 0), lambda pixels: pixels),
    ],
)
def test_frames_are_turned_and_mirrored_as_players_do(rows, shown, tmp_path):
    plain, moved = tmp_path / "plain.mp4", tmp_path / "moved.mp4"
    for path, matrix in ((plain, None), (moved, (*rows, 0, *LAST_ROW))):
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=5)
            stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
            if matrix:
                stream.set_display_matrix(matrix)
            container.mux(stream.encode(av.VideoFrame.from_image(FOUR_COLOURS)))
            container.mux(stream.encode(None))
    [before], [after] = (decode_frames(path, read_frame_table(path, "clip"), [0], "clip") for path in (plain, moved))
    assert np.array_equal(np.asarray(after), shown(np.asarray(before)))


def test_a_packed_bitstream_is_counted(tmp_path):
    """DivX put a P-frame and the B-frame after it into one packet, and a placeholder into the next."""
    plain = write_video(tmp_path / "plain.avi", FRAMES, codec="mpeg4", b_frames=1, gop=250)
    first, *others = [re.sub(b"Lavc[0-9.]+", b"DivX503b1393p", packet) for packet in read_packets(plain)]
    placeholder = b"\0\0\1\xb6\x50\x9f"
    pairs = [p_frame + b_frame for p_frame, b_frame in zip(others[::2], others[1::2], strict=True)]
    packets = [first, *(packet for pair in pairs for packet in (pair, placeholder))]
    path = write_packets(tmp_path / "packed.avi", packets, plain)
    assert read_frame_table(path, "clip").num_frames == FRAMES
    assert numbers(path, [0, 5, 10, 39]) == [0, 5, 10, 39]


@pytest.mark.parametrize("name", ["fields.ts", "fields.mkv", "fields.mpg", "fields.avi"])
@pytest.mark.parametrize("apart", [True, False])
def test_two_fields_are_one_frame(name, apart, tmp_path):
    template = tmp_path / "fields.h264"
    fields = [h264.field(number, bottom=bottom) for number in range(20) for bottom in (False, True)]
    if not apart:
        fields = [top + bottom for top, bottom in zip(fields[::2], fields[1::2], strict=True)]
    packets = [h264.headers() + field for field in fields]
    template.write_bytes(b"".join(packets))
    tick = Fraction(1, 20 if apart else 10)
    path = write_packets(tmp_path / name, packets, template, keys=range(0, len(packets), 1 + apart), tick=tick)
    table = read_frame_table(path, "clip")
    assert table.num_frames == 20
    assert table.fps == pytest.approx(10, rel=0.06)
    assert numbers(path, list(range(20))) == list(range(20))
    assert numbers(path, [7, 19]) == [7, 19]


@pytest.mark.parametrize("name", ["slides.mkv", "slides.flv"])
def test_a_rate_that_is_nonsense_follows_from_the_times(name, tmp_path):
    path = write_video(tmp_path / name, FRAMES, durations=(1, 999))  # twenty seconds
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 1000
    assert read_frame_table(path, "clip").fps == pytest.approx(2, rel=0.01)


def test_a_rate_that_the_times_confirm_is_exact(tmp_path):
    path = write_video(tmp_path / "film.mkv", FRAMES, durations=(33,))
    with av.open(str(path)) as container:
        stated = container.streams.video[0].average_rate
    assert read_frame_table(path, "clip").fps == stated == Fraction(1000, 33)


@pytest.mark.parametrize(("name", "duration"), STATED_DURATIONS.items())
def test_a_last_frame_that_is_held_is_no_truncation(name, duration, tmp_path):
    path = write_video(tmp_path / name, 5, codec="flv" if "flv" in name else "mpeg4", durations=(100, 3000))
    field, seconds = duration
    start = path.read_bytes().index(field) + len(field)
    with path.open("r+b") as file:
        file.seek(start)
        file.write(seconds(60))
    with av.open(str(path)) as container:
        assert container.duration == pytest.approx(60 * av.time_base, rel=0.1)
    assert read_frame_table(path, "clip").num_frames == 5
    assert numbers(path, [0, 4]) == [0, 4]


@pytest.mark.parametrize("name", ["clip.avi", "clip.flv", "clip.asf", "clip.mkv"])
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_a_file_that_is_shorter_than_it_states_is_named(name, share, tmp_path):
    path = write_video(tmp_path / name, 250, codec="flv" if "flv" in name else "mpeg4", gop=1)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UnreadableVideo, match=r"cannot read video clip: it is truncated: .* (are|is) there; if a video player"):
        read_frame_table(path, "clip")


def test_a_fragment_that_is_cut_off_is_named(tmp_path):
    path = write_video(tmp_path / "clip.mp4", FRAMES, gop=5, container_options=FRAGMENTS)
    encoded = path.read_bytes()
    path.write_bytes(encoded[: encoded.rindex(b"mdat") + 8])
    with pytest.raises(UnreadableVideo, match=r"it is truncated: \d+ of \d+ frames are there"):
        read_frame_table(path, "clip")


@pytest.mark.parametrize("share", [0.95, 0.6, 0.4])
def test_an_mp4_that_is_cut_off_is_named(share, tmp_path):
    path = write_video(tmp_path / "clip.mp4", FRAMES, b_frames=2, container_options=INDEX_FIRST)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(
        UnreadableVideo, match=r"cannot read video clip: it is truncated: \d+ of 41 frames are there; if a video"
    ):
        read_frame_table(path, "clip")


def test_an_mp4_that_lost_its_index_is_named(tmp_path):
    path = write_video(tmp_path / "clip.mp4", FRAMES)  # the index stands last
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableVideo, match=r"cannot read video clip: .*; if a video player shows it"):
        read_frame_table(path, "clip")


@pytest.mark.parametrize("share", [0.7, 0.5])
def test_a_matroska_file_that_is_cut_off_is_named(share, tmp_path):
    path = write_video(tmp_path / "clip.mkv", FRAMES)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(
        UnreadableVideo, match=r"cannot read video clip: it is truncated: \d\.\d of 4\.1 seconds are there; if a video"
    ):
        read_frame_table(path, "clip")


def test_a_recording_that_breaks_off_is_read_up_to_there(tmp_path):
    path = write_video(tmp_path / "clip.ts", FRAMES, gop=1)  # a transport stream states no length
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    kept = read_frame_table(path, "clip").num_frames
    assert FRAMES // 4 < kept < FRAMES
    assert numbers(path, [0, kept - 1]) == [0, kept - 1]


def test_damage_before_the_last_wanted_frame_is_named_and_later_damage_does_not_matter(tmp_path):
    path = write_video(tmp_path / "clip.mp4", FRAMES, gop=1)
    with av.open(str(path)) as container:
        place, size = next((packet.pos, packet.size) for index, packet in enumerate(container.demux(video=0)) if index == 20)
    encoded = bytearray(path.read_bytes())
    encoded[place : place + size] = bytes(size)
    path.write_bytes(encoded)
    assert numbers(path, [5, 19]) == [5, 19]
    with pytest.raises(UnreadableVideo, match="cannot read video clip: "):
        numbers(path, [5, 20])


def test_a_missing_frame_is_named(tmp_path):
    path = write_video(tmp_path / "clip.mp4", FRAMES)
    table = read_frame_table(path, "clip")
    write_video(path, 20)  # the file changes behind our back
    with pytest.raises(UnreadableVideo, match="cannot read video clip: frame 30 of 41 is damaged; if a video player shows it"):
        list(decode_frames(path, table, [3, 30], "clip"))


@pytest.mark.parametrize("content", [b"", b"not a video\n" * 100, b"#EXTM3U\n#EXTINF:1,\n/etc/hosts\n", bytes(4096)])
def test_what_is_no_video_is_named(content, tmp_path):
    (tmp_path / "notes.mp4").write_bytes(content)
    with pytest.raises(UnreadableVideo, match=r"cannot read video clip: .*; if a video player shows it"):
        read_frame_table(tmp_path / "notes.mp4", "clip")


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UnreadableVideo, match="cannot read video clip: it has no video stream"):
        read_frame_table(path, "clip")


def test_a_video_without_frames_is_named(tmp_path):
    path = write_video(tmp_path / "empty.mkv", 0)
    with pytest.raises(UnreadableVideo, match="cannot read video clip: "):
        read_frame_table(path, "clip")


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.avi"])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(damage=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=20))
def test_whatever_is_damaged_it_decodes_or_is_unreadable(name, damage, tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / name
    encoded = bytearray(write_video(path, 10, codec="mpeg4", gop=5).read_bytes())
    for place, value in damage:
        encoded[int(place * len(encoded))] = value
    path.write_bytes(encoded)
    try:
        table = read_frame_table(path, "clip")
        images = list(decode_frames(path, table, [0, table.num_frames - 1][: table.num_frames], "clip"))
    except UnreadableVideo as error:
        assert "video clip" in str(error)
    else:
        assert all(image.mode == "RGB" for image in images)


@pytest.mark.parametrize(
    ("name", "codec", "tag", "other"),
    [
        ("clip.avi", "mpeg4", b"FMP4", b"ZZQ9"),
        ("clip.mov", "mjpeg", b"jpeg", b"ZZQ9"),
        ("clip.mkv", "mpeg4", b"V_MPEG4/ISO/ASP", b"V_ZZQ94/ISO/ASP"),
    ],
)
def test_a_codec_without_a_decoder_is_named(name, codec, tag, other, tmp_path):
    path = write_video(tmp_path / name, 3, codec=codec, options={"strict": "-1"})
    path.write_bytes(path.read_bytes().replace(tag, other))
    with pytest.raises(
        UnreadableVideo, match=f"cannot read video clip: FFmpeg has no decoder for its codec, {other.decode()}; if a video"
    ):
        read_frame_table(path, "clip")
    assert av.logging.get_level() is None  # FFmpeg is as silent as before


@pytest.mark.parametrize(
    "cause", [MemoryError(), AttributeError("no attribute"), RuntimeError(), KeyError("x"), RecursionError()]
)
def test_whatever_a_decoder_raises_the_video_is_named(cause, tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", 3)
    table = read_frame_table(path, "clip")

    def fail(*_args):
        raise cause

    monkeypatch.setattr(video_file, "to_image", fail)
    with pytest.raises(UnreadableVideo, match=r"cannot read video clip: .+; if a video player shows it"):
        next(decode_frames(path, table, [1], "clip"))
    monkeypatch.setattr(video_file, "_scan", fail)
    os.utime(path, (1, 1))  # tables of files are kept until these change
    with pytest.raises(UnreadableVideo, match=r"cannot read video clip: .+; if a video player shows it"):
        read_frame_table(path, "clip")


def test_an_interruption_is_none_of_these(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", 3)
    table = read_frame_table(path, "clip")

    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(video_file, "to_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(decode_frames(path, table, [1], "clip"))


def test_no_file_stays_open(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", FRAMES, container_options=INDEX_FIRST)
    table = read_frame_table(whole, "clip")
    cut, unknown, text = tmp_path / "cut.mp4", tmp_path / "unknown.avi", tmp_path / "text.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    unknown.write_bytes(write_video(unknown, 3, codec="mpeg4").read_bytes().replace(b"FMP4", b"ZZQ9"))
    text.write_text("not a video\n" * 100)
    before = _open_files()
    for path in (cut, unknown, text, tmp_path / "missing.mp4"):
        with pytest.raises(UnreadableVideo):
            read_frame_table(path, "clip")
    frames = decode_frames(whole, table, [3, 30], "clip")
    next(frames)
    assert _open_files() - before == {str(whole)}
    frames.close()
    with pytest.raises(UnreadableVideo):
        list(decode_frames(cut, table, [3, 40], "clip"))
    assert _open_files() == before


def _open_files() -> set[str]:
    return {str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}


def test_the_content_of_a_file_is_as_good_as_the_file(tmp_path):
    encoded = write_video(tmp_path / "clip.mp4", FRAMES, b_frames=3, options=B_FRAMES).read_bytes()
    table = read_frame_table(encoded, "clip")
    assert [number_of(image) for image in decode_frames(encoded, table, [0, 17, 40], "clip")] == [0, 17, 40]
    with pytest.raises(UnreadableVideo, match="cannot read video clip: "):
        read_frame_table(encoded[: len(encoded) // 2], "clip")


@pytest.mark.parametrize("name", ["clip.avi", "clip.mkv", "clip.mov"])
def test_frames_may_change_their_size(name, tmp_path):
    template = write_video(tmp_path / "template.avi", 2, codec="mjpeg", options={"strict": "-1"})
    sizes = [(128, 32), (256, 64), (64, 16), (128, 32)]
    pictures = [_jpeg(number, size) for number, size in enumerate(sizes)]
    path = write_packets(tmp_path / name, pictures, template, keys=range(4))
    images = list(decode_frames(path, read_frame_table(path, "clip"), [0, 1, 2, 3], "clip"))
    assert [image.size for image in images] == sizes
    assert [number_of(image) for image in images] == [0, 1, 2, 3]


def test_frames_of_an_absurd_size_are_never_decoded(tmp_path):
    template = write_video(tmp_path / "template.avi", 2, codec="mjpeg", options={"strict": "-1"})
    picture = _jpeg(1, (128, 32))
    start = picture.index(b"\xff\xc0") + 5
    absurd = picture[:start] + (30_000).to_bytes(2, "big") * 2 + picture[start + 4 :]
    path = write_packets(tmp_path / "clip.avi", [picture, absurd, picture], template, keys=range(3))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert numbers(path, [0, 2]) == [1, 1]
    with pytest.raises(UnreadableVideo, match="cannot read video clip: "):
        numbers(path, [0, 1])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 500_000  # kB; the picture would take 1.3 GB


def _jpeg(number: int, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(number_image(number)).resize(size).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(("alpha", "colour"), [(0, (0, 0, 255)), (255, (255, 0, 0))])
def test_what_is_transparent_is_white_unless_everything_is(alpha, colour, tmp_path):
    """The left half is opaque blue where `alpha` is 255; a recording that leaves alpha zero has no transparency."""
    pixels = np.zeros((32, 64, 4), np.uint8)
    pixels[:, :32] = (0, 0, 255, alpha)
    pixels[:, 32:] = (255, 0, 0, 0)
    path = tmp_path / "clip.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("qtrle", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "argb"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
        container.mux(stream.encode(None))
    [image] = decode_frames(path, read_frame_table(path, "clip"), [0], "clip")
    assert image.getpixel((5, 5)) == (0, 0, 255)
    assert image.getpixel((60, 5)) == ((255, 255, 255) if alpha else (255, 0, 0))


def test_an_animation_is_sampled_by_its_delays(tmp_path):
    path = tmp_path / "clip.gif"
    images = [Image.fromarray(number_image(number)) for number in range(FRAMES)]
    for delay in (20, 100, 500):
        images[0].save(path, save_all=True, append_images=images[1:], duration=delay)
        table = read_frame_table(path, "clip")
        assert (table.num_frames, table.fps) == (FRAMES, Fraction(1000, delay))
        assert numbers(path, [0, 10, 40]) == [0, 10, 40]


@pytest.mark.parametrize("has_video", [True, False])
def test_a_cover_is_no_video(has_video, tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1, options={"strict": "-1"})
        cover.disposition = Disposition.attached_pic
        pictures = [(cover, 9)]
        if has_video:
            film = container.add_stream("mpeg4", rate=10)
            pictures += [(film, number) for number in range(5)]
        else:
            container.add_stream("aac", rate=8000)
        for stream in container.streams.video:
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p" if stream is cover else "yuv420p"
        for stream, number in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(number_image(number), format="rgb24")))
        for stream in container.streams.video:
            container.mux(stream.encode(None))
    if has_video:
        assert read_frame_table(path, "clip").num_frames == 5
        assert numbers(path, [0, 4]) == [0, 4]
    else:
        with pytest.raises(UnreadableVideo, match="cannot read video clip: it has no video stream"):
            read_frame_table(path, "clip")


@pytest.mark.parametrize("name", ["one.mp4", "one.avi", "one.mkv", "one.ts", "one.flv"])
def test_a_single_frame_is_a_video(name, tmp_path):
    path = write_video(tmp_path / name, 1)
    assert read_frame_table(path, "clip").num_frames == 1
    assert numbers(path, [0]) == [0]


def test_times_may_repeat(tmp_path):
    plain = write_video(tmp_path / "plain.mkv", 6, codec="mpeg4")
    path = write_packets(tmp_path / "clip.mkv", read_packets(plain), plain, times=[0, 1, 1, 2, 3, 3])
    table = read_frame_table(path, "clip")
    assert (table.num_frames, table.times) == (6, None)
    assert numbers(path, [1, 2, 5]) == [1, 2, 5]


def test_an_image_is_told_from_a_video(tmp_path):
    Image.fromarray(number_image(1)).save(tmp_path / "clip.png")
    with pytest.raises(
        UnreadableVideo, match=r"cannot read video clip: it is none of the formats asf, avi, .*, or its header is"
    ):
        read_frame_table(tmp_path / "clip.png", "clip")
