"""The same conversations from files of every format, by index."""

import io
import json
import pickle
import re
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from owl3_jax.cli.data_prepare import main as prepare_main
from owl3_jax.config import ConfigError, DataConfig, SourceConfig
from owl3_jax.data.readers.json_files import JsonFileError, JsonTrees
from owl3_jax.data.readers.records import BadRecord, Record, Records
from owl3_jax.data.sources import fingerprint, open_source
from owl3_jax.processing.images import load_image
from tests.unit.processing.test_images import encode, gradient

COUNT = 7


def picture(index: int) -> bytes:
    return encode(gradient(3 + index, 5))


def conversation(index: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"<image>What is {index} in Köln?"},
        {"role": "assistant", "content": f"No. {index} ☕"},
    ]


def tree(index: int) -> dict[str, object]:
    return {"messages": conversation(index), "images": [f"{index}.png"]}


def write_images(folder: Path) -> None:
    for index in range(COUNT):
        (folder / f"{index}.png").write_bytes(picture(index))


def lines(path: Path) -> None:
    text = [json.dumps(tree(index), ensure_ascii=index % 2 == 0) for index in range(COUNT)]
    path.write_text("\ufeff" + "\n\n".join(text) + "\n", encoding="utf-8")


def json_list(path: Path) -> None:
    path.write_text(json.dumps([tree(index) for index in range(COUNT)], ensure_ascii=False, indent=1), encoding="utf-8")


def rows() -> pa.Table:
    stored = [{"bytes": picture(index), "path": None} for index in range(COUNT)]
    return pa.table({"messages": [conversation(index) for index in range(COUNT)], "image": stored})


def write_parquet(path: Path) -> None:
    parquet.write_table(rows(), path, row_group_size=3)


def write_arrow(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, ipc.new_stream(file, rows().schema) as writer:
        writer.write_table(rows(), max_chunksize=2)


def write_arrow_file(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, ipc.new_file(file, rows().schema) as writer:
        writer.write_table(rows())


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for index in range(COUNT):
            described = json.dumps({"messages": conversation(index)}).encode()
            for name, content in ((f"a/{index:03}.png", picture(index)), (f"a/{index:03}.json", described)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


WRITERS = {
    "data.jsonl": lines,
    "data.json": json_list,
    "data.parquet": write_parquet,
    "data.arrow": write_arrow,
    "file.arrow": write_arrow_file,
    "data.tar": write_tar,
}


def open_path(path: object, **fields: object) -> Records:
    return open_source(SourceConfig(str(path), **fields), DataConfig())


def assert_is(record: Record, index: int) -> None:
    assert record.messages == [
        {"role": "user", "content": f"<|image|>What is {index} in Köln?"},
        {"role": "assistant", "content": f"No. {index} ☕"},
    ]
    (image,) = record.images
    assert load_image(image, "it").size == (3 + index, 5)


@pytest.mark.parametrize("name", WRITERS)
def test_records_are_read_in_any_order_and_by_other_processes(name, tmp_path):
    write_images(tmp_path)
    WRITERS[name](tmp_path / name)
    records = open_path(tmp_path / name)
    assert len(records) == COUNT
    for each in (records, pickle.loads(pickle.dumps(records))):
        for index in np.random.default_rng(0).permutation(COUNT).tolist():
            assert_is(each[index], index)
    assert records[3].name == f"{tmp_path / name}[3]"


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet", "data.arrow", "data.tar"])
def test_files_elsewhere_are_read_through_fsspec(name, tmp_path):
    WRITERS[name](tmp_path / name)
    memory = fsspec.filesystem("memory")
    memory.pipe(f"/bucket/{name}", (tmp_path / name).read_bytes())
    for index in range(COUNT):
        memory.pipe(f"/bucket/{index}.png", picture(index))
    records = open_path(f"memory://bucket/{name}")
    for index in (5, 0):
        assert_is(records[index], index)


def test_media_root_goes_before_relative_paths(tmp_path):
    (tmp_path / "photos").mkdir()
    write_images(tmp_path / "photos")
    lines(tmp_path / "data.jsonl")
    assert_is(open_path(tmp_path / "data.jsonl", media_root=str(tmp_path / "photos"))[2], 2)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "tar"])
def test_a_pattern_is_all_files_that_match(suffix, tmp_path):
    write_images(tmp_path)
    for part in "ba":
        WRITERS[f"data.{suffix}"](tmp_path / f"part-{part}.{suffix}")
    records = open_path(f"{tmp_path}/part-*.{suffix}")
    assert len(records) == 2 * COUNT
    assert_is(records[COUNT + 2], 2)


def test_a_folder_of_tables_has_splits(tmp_path):
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet")
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet")
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    assert len(open_path(tmp_path)) == 2 * COUNT and len(open_path(tmp_path, split="test")) == COUNT


def test_a_tar_of_pictures_with_captions(tmp_path):
    with tarfile.open(tmp_path / "captions.tar", "w") as archive:
        for name, content in (("x.jpg", encode(gradient(4, 5), "jpeg")), ("x.txt", b"a gradient\n"), ("y.png", picture(1))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        member = tarfile.TarInfo("z.txt")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"caf\xe9"))
    records = open_path(tmp_path / "captions.tar")
    assert records[0].messages == [{"role": "user", "content": "<|image|>"}, {"role": "assistant", "content": "a gradient"}]
    with pytest.raises(BadRecord, match=r"neither \.json nor \.txt"):
        records[1]
    with pytest.raises(BadRecord, match="its text is not in UTF-8"):
        records[2]


@pytest.mark.parametrize("listing", ["metadata.jsonl", "metadata.csv", None])
def test_a_folder_of_media_with_captions(listing, tmp_path):
    write_images(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"not opened here")
    captions = {**{f"{index}.png": f"picture, {index}" for index in range(COUNT)}, "clip.mp4": "a film"}
    if listing == "metadata.jsonl":
        (tmp_path / listing).write_text("".join(json.dumps({"file_name": n, "text": t}) + "\n" for n, t in captions.items()))
    elif listing:
        (tmp_path / listing).write_text("file_name,text\n" + "".join(f'{n},"{t}"\n' for n, t in captions.items()))
    else:
        for name, text in captions.items():
            (tmp_path / name).with_suffix(".txt").write_text(text)
    records = open_path(tmp_path)
    assert len(records) == COUNT + 1
    for index in range(COUNT):
        assert records[index].messages[-1]["content"] == f"picture, {index}"
        assert records[index].images == [str(tmp_path / f"{index}.png")]
    film = records[COUNT]
    assert film.messages[0]["content"] == "<|video|>" and film.videos == [str(tmp_path / "clip.mp4")]


def first_shard(folder: Path) -> Path:
    return min(folder.glob("*array_record-00000*"))


def rename_features(folder: Path) -> None:
    path = folder / "features.json"
    path.write_text(path.read_text().replace('"messages"', '"dialogue"'))


def test_damage_in_one_record_leaves_the_others(tmp_path):
    write_images(tmp_path)
    lines(tmp_path / "data.jsonl")
    stored = (tmp_path / "data.jsonl").read_bytes().split(b"\n")
    stored[4] = stored[4][:-9]
    (tmp_path / "data.jsonl").write_bytes(b"\n".join(stored))
    records = open_path(tmp_path / "data.jsonl")
    with pytest.raises(BadRecord, match="not valid JSON"):
        records[2]
    assert_is(records[3], 3)


@pytest.mark.parametrize("content", [b'[{"a": 1}]\n[{"a": 2}]\n', b'[{"a": 1}] end', b"[] []"])
def test_nothing_may_follow_a_list(content, tmp_path):
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(
        JsonFileError, match=r"data\.jsonl is not a valid JSON list: its list ends before '.*', at character \d+"
    ):
        JsonTrees([str(tmp_path / "data.jsonl")])


def write_tar(path: Path, names: str) -> None:
    with tarfile.open(path, "w") as archive:
        for name in names:
            for suffix, content in (("png", picture(0)), ("txt", b"zero")):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("damage", ["in a header", "at a member", "a header", "two in one", "one block"])
def test_a_tar_that_ends_too_early_is_an_error(damage, tmp_path):
    write_tar(tmp_path / "a.tar", "abc")
    content = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        offsets = [member.offset for member in archive]
        end = archive.offset
    flipped = bytearray(content)
    flipped[offsets[4] + 3] ^= 255
    damaged = {
        "in a header": content[: offsets[4] + 300],
        "at a member": content[: offsets[4]],
        "a header": bytes(flipped),
        "two in one": content + content,
        "one block": content[: end + tarfile.BLOCKSIZE],  # which is enough
    }
    (tmp_path / "b.tar").write_bytes(damaged[damage])
    if damage == "one block":
        assert len(open_path(tmp_path / "b.tar")) == 3
        return
    with pytest.raises(ConfigError, match=r"b\.tar is cut off, damaged or followed by another one at byte \d+"):
        open_path(tmp_path / "b.tar")


def test_a_list_that_is_cut_off_is_named(tmp_path):
    json_list(tmp_path / "data.json")
    (tmp_path / "data.json").write_bytes((tmp_path / "data.json").read_bytes()[:-20])
    with pytest.raises(JsonFileError, match=r"data\.json is not a valid JSON list"):
        JsonTrees([str(tmp_path / "data.json")])


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("nowhere.jsonl", None, r"there is no file or folder '.*nowhere\.jsonl', and no data set of that name"),
        ("notes.docx", b"x", r"notes\.docx is in no format that is read: \*\.json"),
        ("empty.jsonl", b"\n\n", r"empty\.jsonl holds no records"),
        ("bad.parquet", b"PAR1 no", r"cannot read the table .*bad\.parquet"),
        ("bad.tar", b"no tar" * 99, r"cannot read the archive .*bad\.tar"),
        ("list.json", b"[1, 2", r"list\.json is not a valid JSON list"),
        ("object.json", b'{\n "messages": []\n}\n', r"object\.json is one JSON object over several lines; write a list"),
        ("mac.jsonl", b'{"a": 1}\r{"a": 2}\r', r"the lines of .*mac\.jsonl end with CR alone"),
        ("wide.jsonl", "{}".encode("utf-16"), r"wide\.jsonl is in UTF-16 or UTF-32; save it as UTF-8"),
        (
            "metadata.csv",
            b"file_name,text\na.png,caf\xe9\n",
            r"metadata\.csv is not a table of comma-separated values in UTF-8",
        ),
        ("metadata.csv", b'file_name,text\na.png,"seven\n', r"metadata\.csv is not a table of comma-separated values"),
    ],
)
def test_sources_that_cannot_be_read_are_named(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"data\.sources: .*" + message):
        open_path(tmp_path if name == "metadata.csv" else tmp_path / name)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("0.txt", b"caf\xe9", r"the \.txt beside it is not in UTF-8"),
        ("metadata.jsonl", b'{"file_name": 5}', r"'file_name' must be the name of a file, got 5"),
        ("metadata.jsonl", b'{"name": "0.png"}', r"no 'file_name'; its keys are 'name'"),
    ],
)
def test_a_caption_that_cannot_be_read_is_a_bad_record(name, content, message, tmp_path):
    (tmp_path / "0.png").write_bytes(picture(0))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadRecord, match=message):
        open_path(tmp_path)[0]


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match="is in no format that is read"):
        open_path(tmp_path)


def test_a_damaged_row_group_leaves_the_others(tmp_path):
    path = tmp_path / "data.parquet"
    write_parquet(path)
    content = bytearray(path.read_bytes())
    file = parquet.ParquetFile(path)
    start = min(file.metadata.row_group(1).column(number).data_page_offset for number in range(file.metadata.num_columns))
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    records = open_path(path)
    with pytest.raises(BadRecord, match=r"cannot read row 0 of part 1 of the table .*data\.parquet"):
        records[3]
    assert_is(records[0], 0)
    assert_is(records[6], 6)


@pytest.fixture
def stored(tmp_path) -> Path:
    """A folder that `owl3 data prepare` has written."""
    write_images(tmp_path)
    lines(tmp_path / "data.jsonl")
    prepare_main([str(tmp_path / "data.jsonl"), "--to", str(tmp_path / "stored"), "--shards", "2", "--workers", "1"])
    return tmp_path / "stored"


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "dataset_info.json").write_text("{"), r"cannot read the data set in .*stored"),
        (lambda folder: (folder / "features.json").write_text("{"), r"cannot read the data set in .*stored"),
        (rename_features, r"has the features .*dialogue.*, but not messages; `owl3 data prepare` writes"),
        (lambda folder: first_shard(folder).unlink(), None),
        (lambda folder: first_shard(folder).write_bytes(first_shard(folder).read_bytes()[:100]), None),
    ],
)
def test_damage_of_stored_records_is_named(damage, message, stored):
    """Where the folder can be opened still, each record that cannot be read is a bad one."""
    damage(stored)
    try:
        records = open_path(stored)
    except ConfigError as error:
        assert re.search(message or r"cannot read the data set in .*stored", str(error))
        return
    assert message is None
    bad = 0
    for index in range(len(records)):
        try:
            records[index]
        except BadRecord as error:
            bad += "cannot read" in str(error)
    assert bad > 0


def test_a_prepared_folder_without_records_is_named(tmp_path):
    (tmp_path / "data.jsonl").write_text("{}\n")
    prepare_main([str(tmp_path / "data.jsonl"), "--to", str(tmp_path / "stored"), "--workers", "1"])
    with pytest.raises(ConfigError, match=r"stored holds no records of the split 'train'"):
        open_path(tmp_path / "stored")


@pytest.mark.parametrize("change", ["one byte", "another file", "a caption"])
def test_a_fingerprint_is_that_of_the_content(change, tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    write_images(folder)
    (folder / "0.txt").write_text("zero")
    lines(tmp_path / "part-0.jsonl")
    source = SourceConfig(str(folder if change == "a caption" else tmp_path / "part-*.jsonl"))
    before = fingerprint(source)
    assert fingerprint(source) == before
    if change == "one byte":
        content = (tmp_path / "part-0.jsonl").read_bytes()
        (tmp_path / "part-0.jsonl").write_bytes(content[:-4] + b"#" + content[-3:])
    elif change == "another file":
        (tmp_path / "part-1.jsonl").write_text("")
    else:
        (folder / "0.txt").write_text("nine")
    assert fingerprint(source) != before
