"""Prepared data gives the samples of its sources; a stopped preparation goes on, and ends with the same bytes."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from owl3_jax.cli.data_prepare import main
from owl3_jax.config import DataConfig, SourceConfig
from owl3_jax.data import prepare as module
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.data.prepare import ShardWriter, shrink
from owl3_jax.data.samples import Candidate, consider
from owl3_jax.data.sources import open_source
from owl3_jax.processing.images import UnreadableImage
from owl3_jax.processing.processor import Processor
from tests.videos import write_video

RECORDS = 23


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files: text, images, a clip, a clip as frames; and one record with a missing image."""
    folder = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=70 + number)
    write_video(folder / "clip.mp4", 12)
    turns = lambda asked, answer: [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    kinds = [
        lambda n: {"messages": turns("How many images?", f"{n}")},
        lambda n: {"messages": turns("<image>Which digit is red?<image>", f"red {n}"), "images": [f"{n % 4}.jpg", "1.jpg"]},
        lambda n: {"messages": turns("<video>How many images?", f"{n}"), "videos": ["clip.mp4"]},
        lambda n: {"messages": turns("<video>How many images?", f"{n}"), "videos": [["2.jpg", "3.jpg"]], "id": n},
    ]
    records = [kinds[n % 4](n) for n in range(RECORDS)]
    missing = {"messages": turns("<image>Which digit is red?", "red 7"), "images": ["gone.jpg"]}
    for name, part in {"a.jsonl": [*records[:15], missing], "b.jsonl": records[15:]}.items():
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in part))
    return [folder / "a.jsonl", folder / "b.jsonl"]


def samples_of(paths: list[Path]) -> list[tuple[np.ndarray, ...]]:
    """All samples, in an order that does not depend on that of the records."""
    config = DataConfig(sources=tuple(SourceConfig(str(path)) for path in paths))
    processor, found = Processor(make_tokenizer(), 28), []
    for source in config.sources:
        records = open_source(source, config)
        considered = [consider(records[index], config, source, processor) for index in range(len(records))]
        for each in considered:
            with contextlib.suppress(UnreadableImage):
                found += [each.read()] if isinstance(each, Candidate) else []
    return sorted(found, key=lambda sample: sample.input_ids.tolist())


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_prepared_records_give_the_samples_of_their_sources(sources, tmp_path, capsys):
    main([*map(str, sources), "--to", str(tmp_path / "out"), "--shards", "3", "--workers", "1"])
    assert "23 of 24 records are in" in capsys.readouterr().out
    expected, found = samples_of(sources), samples_of([tmp_path / "out"])
    assert len(found) == RECORDS and sum(len(sample.pixel_values) for sample in found) > RECORDS
    for sample, other in zip(found, expected, strict=True):
        for array, wanted in zip(sample, other, strict=True):
            np.testing.assert_array_equal(array, wanted)
    (skipped,) = map(json.loads, (tmp_path / "out" / "skipped.jsonl").read_text().splitlines())
    assert (skipped["record"], skipped["kind"]) == ("record 15 of source 0", "missing-file")
    assert "gone.jpg" in skipped["detail"]


def test_a_stopped_preparation_goes_on_to_the_same_bytes(sources, tmp_path, monkeypatch):
    command = lambda name, workers: [*map(str, sources), "--to", str(tmp_path / name), "--shards", "5", "--workers", workers]
    main(command("straight", "1"))

    write, stop_at = ShardWriter.__call__, 3

    def stopping(self: ShardWriter, shard: int) -> object:
        if shard == stop_at:
            (self.folder / f".{self.path(shard).name}").write_bytes(b"half of a shard")
            raise KeyboardInterrupt
        return write(self, shard)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ShardWriter, "__call__", stopping)
        main(command("stopped", "1"))
    begun = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "stopped").glob("owl3-train*")}
    assert len(begun) == stop_at and not (tmp_path / "stopped" / "dataset_info.json").exists()
    with pytest.raises(SystemExit, match="was not begun from these sources and settings"):
        main([str(sources[0]), "--to", str(tmp_path / "stopped")])
    main(command("stopped", "2"))
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "straight")
    assert {name: (tmp_path / "stopped" / name).stat().st_mtime_ns for name in begun} == begun, "none is written again"
    with pytest.raises(SystemExit, match="holds a data set already"):
        main(command("stopped", "1"))


def test_a_source_that_changed_meanwhile_is_refused(sources, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(sources[1].read_text())
    command = [str(path), "--to", str(tmp_path / "out"), "--shards", "2", "--workers", "1"]
    main([*command, "--part", "0/2"])
    path.write_text(path.read_text().replace("How many", "How much", 1))
    with pytest.raises(SystemExit, match="was not begun from these sources and settings"):
        main(command)


def test_a_folder_where_nothing_can_be_written_is_named(sources, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"error: --to .*file/out: .*file is not a folder"):
        main([str(sources[1]), "--to", str(tmp_path / "file" / "out")])


@pytest.mark.parametrize("place", ["answer", "metadata", "image"])
def test_text_that_cannot_be_stored_is_a_skipped_record(place, tmp_path):
    half = lambda kind: "\ud800" if place == kind else ""
    turns = [{"role": "user", "content": "<image>digit"}, {"role": "assistant", "content": f"7{half('answer')}"}]
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    bad = {"messages": turns, "images": [f"0.png{half('image')}"], "id": half("metadata")}
    (tmp_path / "a.jsonl").write_text(
        json.dumps(bad) + "\n" + json.dumps({"messages": [{**turns[0], "content": "digit"}, turns[1]]})
    )
    main([str(tmp_path / "a.jsonl"), "--to", str(tmp_path / "out"), "--workers", "1"])
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert len(skipped) == (2 if place == "answer" else 1)
    assert "surrogate" in json.dumps(skipped[0])


@pytest.mark.parametrize(
    "mode, kind", [("P", "png"), ("P", "gif"), ("1", "png"), ("CMYK", "tiff"), ("YCbCr", "tiff"), ("LA", "png")]
)
def test_images_of_all_modes_shrink_to_their_mean(mode, kind):
    """A fine texture becomes its mean, where choosing pixels would keep its extremes."""
    grey = np.where(np.add.outer(np.arange(400), np.arange(400)) % 2, 255, 0).astype(np.uint8)
    output = io.BytesIO()
    Image.fromarray(grey).convert("RGB").convert(mode).save(output, kind)
    with Image.open(io.BytesIO(shrink(output.getvalue(), 50, "image 0"))) as image:
        assert image.size == (50, 50)
        assert np.abs(np.asarray(image.convert("RGB"), float) - 127.5).max() < 8


def test_machines_that_share_a_folder_write_the_bytes_of_one(sources, tmp_path, capsys):
    command = lambda name: [*map(str, sources), "--to", str(tmp_path / name), "--shards", "5", "--workers", "1"]
    main(command("alone"))
    for part in ("2/3", "0/3"):
        main([*command("shared"), "--part", part])
        assert f"part {part} is in" in capsys.readouterr().out
    shards = [path.name for path in (tmp_path / "shared").glob("owl3-*")]
    assert sorted(name.split("-")[2] for name in shards) == ["00000", "00002", "00003"]  # 1 and 4 are those of machine 1
    main(command("shared"))  # writes what is missing too
    assert "23 of 24 records are in" in capsys.readouterr().out
    assert files_of(tmp_path / "shared") == files_of(tmp_path / "alone")


@pytest.mark.parametrize("part", ["3/3", "1", "-1/2", "0/0", "a/b"])
def test_a_part_that_is_none_is_refused(sources, tmp_path, part):
    with pytest.raises(SystemExit, match="it must be K/N with K from 0 to N - 1"):
        main([str(sources[0]), "--to", str(tmp_path / "out"), f"--part={part}"])
    assert not (tmp_path / "out").exists()


def encoded(size: tuple[int, int], form: str, **options: object) -> bytes:
    output = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(output, form, **options)
    return output.getvalue()


@pytest.mark.parametrize(("form", "options"), [("jpeg", {"quality": 42, "subsampling": 0}), ("png", {}), ("webp", {})])
def test_large_images_are_shrunk_and_a_jpeg_keeps_its_quality(form, options):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded((400, 300), form, exif=exif.tobytes(), **options)
    before, after = Image.open(io.BytesIO(content)), Image.open(io.BytesIO(shrink(content, 100, "x")))
    assert after.size == (100, 75) and after.getexif()[0x0112] == 6
    if form == "jpeg":
        assert after.quantization == before.quantization and after.format == "JPEG"
        assert module.JpegImagePlugin.get_sampling(after) == 0
    expected = before.convert("RGB").resize((100, 75), Image.Resampling.LANCZOS)
    if form == "jpeg":  # lossy once more, as much as before
        output = io.BytesIO()
        expected.save(output, "jpeg", **options)
        expected = Image.open(output)
    np.testing.assert_array_equal(np.asarray(after.convert("RGB")), np.asarray(expected))


def test_small_images_keep_their_bytes():
    content = encoded((100, 75), "jpeg")
    assert shrink(content, 100, "x") == content


def test_shrinking_reaches_all_frames_and_names_what_cannot_be_decoded(sources, tmp_path):
    main([*map(str, sources), "--to", str(tmp_path / "small"), "--shards", "1", "--workers", "1", "--longest", "20"])
    records = open_source(SourceConfig(str(tmp_path / "small")), DataConfig())
    media = [
        image
        for index in range(len(records))
        for image in [
            *records[index].images,
            *(frame for video in records[index].videos if isinstance(video, list) for frame in video),
        ]
    ]
    assert len(media) > 20 and {Image.open(io.BytesIO(image)).size for image in media} == {(20, 15)}
    (tmp_path / "bad.jpg").write_bytes(encoded((400, 300), "jpeg")[:500])
    turns = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "bad.jsonl").write_text(json.dumps({"messages": turns, "images": ["bad.jpg"]}) + "\n")
    main([str(tmp_path / "bad.jsonl"), "--to", str(tmp_path / "none"), "--longest", "20"])
    assert json.loads((tmp_path / "none" / "skipped.jsonl").read_text())["kind"] == "unreadable-image"


@pytest.mark.parametrize("flags", [["--longest", "0"], ["--shards", "-1"], ["--workers", "-2"]])
def test_impossible_numbers_are_refused(sources, tmp_path, flags):
    with pytest.raises(SystemExit, match="must be positive"):
        main([str(sources[0]), "--to", str(tmp_path / "x"), *flags])
    assert not (tmp_path / "x").exists()
