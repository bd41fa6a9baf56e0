"""Small benchmarks in the file layouts of the released evaluation: made here, in the real formats."""

import base64
import io
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import ipc, parquet

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 60, 220), "white": (240, 240, 240)}
MVBENCH_SPLITS = ("action_sequence", "action_antonym", "episodic_reasoning")


def png(colour: str, size: int = 12) -> bytes:
    drawing = io.BytesIO()
    Image.new("RGB", (size, size), COLOURS[colour]).save(drawing, "png")
    return drawing.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_json(path: Path, tree: object) -> None:
    write(path, json.dumps(tree, ensure_ascii=False))


def write_lines(path: Path, rows: list[dict]) -> None:
    write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_video(path: Path, frames: int = 30, fps: int = 10) -> None:
    """Frame n is grey of level 8 n."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 8 * number % 256, np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def write_parquet(path: Path, rows: list[dict]) -> None:
    """As `datasets` writes it: images are structs of bytes and a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table(rows), path)


def write_arrow(path: Path, rows: list[dict]) -> None:
    """As `datasets` saves it to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = table(rows)
    with path.open("wb") as file, ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content)


def table(rows: list[dict]) -> pa.Table:
    stored = [
        {key: {"bytes": value, "path": None} if isinstance(value, bytes) else value for key, value in row.items()}
        for row in rows
    ]
    return pa.Table.from_pylist(stored)


def write_all(root: Path) -> Path:
    """All benchmarks of the released evaluation, with two to eight questions each."""
    for writer in (vqa_family, gqa_and_pope, mmbench, mmvet, hub_images, videos, interleave, mi_bench):
        writer(root / "dataset", root / "images")
    return root


def answers(*given: str) -> list[dict]:
    return [{"answer": answer, "answer_confidence": "yes", "answer_id": number} for number, answer in enumerate(given, start=1)]


def annotation(number: int, *given: str) -> dict:
    return {
        "question_id": number,
        "image_id": number,
        "question_type": "what",
        "answer_type": "other",
        "answers": answers(*given),
    }


def annotations(*given: dict) -> dict:
    head = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": "val2014", "license": {}}
    return head | {"annotations": list(given)}


TEN_RED = annotation(1, *["red"] * 7, "dark red", "maroon", "pink")
MIXED = annotation(2, "2", "two", "2", "3", "two", "two", "4", "5", "6", "7")


def vqa_family(dataset: Path, images: Path) -> None:
    coco = images / "mscoco/images/val2014"
    for number, colour in ((1, "red"), (2, "blue")):
        write(coco / f"COCO_val2014_{number:012d}.jpg", png(colour))
        write(images / f"textvqa/text_vqa/{number}.jpg", png(colour))
        for split in ("val", "test"):
            write(images / f"vizwiz/{split}/VizWiz_{split}_{number}.jpg", png(colour))
    rows = [
        {"question_id": number, "question": question, "image": f"val2014/COCO_val2014_{number:012d}.jpg"}
        for number, question in ((1, "What colour?"), (2, "How many?"))
    ]
    write_json(dataset / "okvqa/okvqa_val.json", rows)
    write_json(dataset / "okvqa/mscoco_val2014_annotations.json", annotations(TEN_RED, MIXED))
    listed = [{"question_id": row["question_id"], "image_id": row["question_id"], "question": row["question"]} for row in rows]
    write_json(dataset / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json", {"questions": listed})
    write_json(dataset / "vqav2/v2_mscoco_val2014_annotations.json", annotations(TEN_RED, MIXED))
    write_json(dataset / "vqav2/vqav2_test.json", [{**row, "image": "test2015/COCO_test2015_1.jpg"} for row in rows])
    write(images / "mscoco/images/test2015/COCO_test2015_1.jpg", png("red"))
    text = [{"question_id": n, "question": "Which brand?", "image": f"data/textvqa/train_images/{n}.jpg"} for n in (1, 2)]
    write_json(dataset / "textvqa/textvqa_val.json", text)
    write_json(dataset / "textvqa/textvqa_val_annotations.json", annotations(TEN_RED, MIXED))
    for split in ("val", "test"):
        names = [f"VizWiz_{split}_{number}.jpg" for number in (1, 2)]
        extra = (
            [{"answers": answers(*["red"] * 10)}, {"answers": answers(*["unanswerable"] * 10)}] if split == "val" else [{}, {}]
        )
        rows = [
            {"question_id": name, "image": name, "question": "What is it?", **more}
            for name, more in zip(names, extra, strict=True)
        ]
        write_lines(dataset / f"vizwiz/vizwiz_{split}.jsonl", rows)


def gqa_and_pope(dataset: Path, images: Path) -> None:
    write(images / "gqa/images/n1.jpg", png("red"))
    gold = {"201": "bed", "202": "red car", "203": "sofa bed", "204": "Yes"}
    rows = [
        {"question_id": int(name), "question": "What?", "image": "images/n1.jpg", "answer": answer}
        for name, answer in gold.items()
    ]
    write_lines(dataset / "gqa/testdev_balanced.jsonl", rows)
    for name in ("random", "popular", "adversarial"):
        asked = [
            {
                "question_id": number,
                "question": "Is there a dog?",
                "image": "val2014/COCO_val2014_000000000001.jpg",
                "answer": gold,
            }
            for number, gold in enumerate(("yes", "no", "yes", "no", "yes"), start=1)
        ]
        write_lines(dataset / f"pope/ImageQA_POPE_{name}.jsonl", asked)


def mmbench(dataset: Path, images: Path) -> None:
    """Two questions of two orders each, one of one; the second question has three options and a hint."""
    head = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image")
    red, blue = (base64.b64encode(png(colour)).decode() for colour in ("red", "blue"))
    rows = [
        ("1", "Which colour?", "", "red", "blue", "green", "white", "A", "c", "attribute", red),
        ("2", "How many?", "Count\nthem", "one", "two", "ten", "", "B", "c", "number", blue),
        ("1000001", "Which colour?", "", "white", "red", "blue", "green", "B", "c", "attribute", red),
        ("1000002", "How many?", "Count\nthem", "ten", "one", "two", "", "C", "c", "number", blue),
        ("3", "Which colour?", "nan", "red", "blue", "green", "white", "B", "c", "attribute", blue),
    ]
    quoted = lambda cell: f'"{cell}"' if "\n" in cell else cell
    for language in ("en", "cn"):
        content = "\n".join("\t".join(map(quoted, row)) for row in (head, *rows)) + "\n"
        write(dataset / f"mmbench/mmbench_dev_{language}_20231003.tsv", content)
        asked = [
            {"index": 7 + number, "image": f"mmbench_test_{language}_20231003/images/{number}.jpg", "question": "=Which?",
             "hint": "", "choices": ["red", "blue"]}
            for number in range(2)
        ]  # fmt: skip
        write_lines(dataset / f"mmbench/mmbench_test_{language}_20231003.jsonl", asked)
        for number in range(2):
            write(images / f"mmbench_test_{language}_20231003/images/{number}.jpg", png("blue"))


def mmvet(dataset: Path, images: Path) -> None:
    rows = {
        f"v1_{number}": {"imagename": f"v1_{number}.png", "question": f" What is {number}? ", "answer": "red<OR>scarlet"}
        for number in range(2)
    }
    write_json(dataset / "mmvet/mm-vet.json", rows)
    for name in rows:
        write(images / f"mmvet/images/{name}.png", png("red"))


def hub_images(dataset: Path, images: Path) -> None:
    del images
    diagram = [
        {"question": "Which?", "options": ["frog", "fly", "fish", "2"], "answer": "1", "image": png("red")},
        {"question": "How many?", "options": ["4", "3", "2", "1"], "answer": "3", "image": png("blue")},
    ]
    write_parquet(dataset / "ai2d/data/test-00000-of-00002.parquet", diagram[:1])
    write_parquet(dataset / "ai2d/data/test-00001-of-00002.parquet", diagram[1:])
    sentences = [
        {"question_id": f"test-{number}", "question": "Both are dogs.", "answer": gold, "left_image": png("red"),
         "right_image": png("blue")}
        for number, gold in enumerate(("True", "False", "False"))
    ]  # fmt: skip
    write_arrow(dataset / "nlvr2/unbalanced_test_public/data-00000-of-00001.arrow", sentences)
    qualities = [
        {"id": "q0", "question": "Which is sharper?", "option0": "first", "option1": "second", "option2": "N/A",
         "option3": "N/A", "correct_choice": "B", "question_type": "1", "question_concern": "2", "image1": png("red"),
         "image2": png("blue")},
        {"id": "q1", "question": "Which is darker?", "option0": "same", "option1": "same", "option2": "other", "option3": "N/A",
         "correct_choice": "B", "question_type": "1", "question_concern": "2", "image1": png("red"), "image2": png("blue")},
    ]  # fmt: skip
    write_parquet(dataset / "qbench2/data/dev-00000-of-00001.parquet", qualities)


def videos(dataset: Path, images: Path) -> None:
    del images
    why = [
        {
            "video": 2440175990,
            "question": "why?",
            "answer": 2,
            "qid": 3,
            "type": "CW",
            **{f"a{n}": f"reason {n}" for n in range(5)},
        },
        {
            "video": 2440175990,
            "question": "when?",
            "answer": 0,
            "qid": 4,
            "type": "TP",
            **{f"a{n}": f"time {n}" for n in range(5)},
        },
    ]
    write_parquet(dataset / "nextqa/MC/test-00000-of-00001.parquet", why)
    write_video(dataset / "nextqa/NExTVideo/2440175990.mp4")
    for split in MVBENCH_SPLITS:
        times = {"start": 0.5, "end": 2.0} if split != "action_antonym" else {}
        rows = [{"video": "v", "question": "What?", "candidates": ["open", "close", "throw"], "answer": "close", **times}] * 2
        write_json(dataset / f"mvbench/json/{split}.json", [{**row, "video": "v.mp4" if times else "w.mp4"} for row in rows])
    write_json(dataset / "mvbench/json/episodic_reasoning.json", [
        {"video": "house", "question": "Who?", "candidates": ["a", "b"], "answer": "b", "start": 1.0, "end": 3.0}
    ])  # fmt: skip
    for number in range(1, 13):
        write(dataset / f"mvbench/video/tvqa/frames_fps3_hq/house/{number:05d}.jpg", png("green"))
    write_video(dataset / "mvbench/video/star/Charades_v1_480/v.mp4")
    write_video(dataset / "mvbench/video/ssv2_video/w.mp4")
    long = [
        {"videoID": "abc", "question_id": "001-1", "question": "What?", "options": ["A. cat.", "B. dog.", "C. cow.", "D. ox."],
         "answer": "B", "duration": "short", "domain": "Life", "sub_category": "x", "task_type": "y"},
        {"videoID": "abc", "question_id": "001-2", "question": "Who?", "options": ["A. he", "B. she", "C. it", "D. they"],
         "answer": "A", "duration": "long", "domain": "Life", "sub_category": "x", "task_type": "y"},
    ]  # fmt: skip
    write_parquet(dataset / "videomme/videomme/test-00000-of-00001.parquet", long)
    write_video(dataset / "videomme/data/abc.mp4")
    write(
        dataset / "videomme/subtitle/abc.srt",
        "1\n00:00:01,000 --> 00:00:02,000\n<b>hello</b>\n\n2\n00:00:03,000 --> x\nworld\n",
    )
    watched = [
        {"id": "lv_0", "video_path": "l.mp4", "duration": 3.0, "question": "What?", "candidates": ["a cat", "a dog"],
         "correct_choice": 1, "duration_group": 15},
        {"id": "lv_1", "video_path": "l.mp4", "duration": 3.0, "question": "Who?", "candidates": ["he", "she"],
         "correct_choice": 0},
    ]  # fmt: skip
    write_json(dataset / "LongVideoBench/lvb_val.json", watched)
    write_video(dataset / "LongVideoBench/videos/l.mp4")
    write_json(dataset / "mlvu/json/1_plotQA.json", [
        {"video": "m.mp4", "duration": 3, "question": "What?", "candidates": ["red", "blue"], "answer": "blue",
         "question_type": "plotQA"}
    ])  # fmt: skip
    write_json(dataset / "mlvu/json/9_summary.json", [{"video": "m.mp4", "question": "Tell", "answer": "It was."}])
    write_video(dataset / "mlvu/video/1_plotQA/m.mp4")


def interleave(dataset: Path, images: Path) -> None:
    del images
    folder = dataset / "LLaVA-NeXT-Interleave-Bench"
    directly = "Answer with the option's letter from the given choices directly."

    def row(name: int, dataset: str, kind: str, asked: str, gold: str) -> dict:
        return {
            "sample_id": name,
            "image": ["a.png", "b.png"],
            "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": gold}],
            "metadata": {"dataset": dataset, "question_type": kind},
        }

    rows = [
        row(1, "Mantis", "multi-choice", f"Compare <image> and <image>.\n{directly}", "B"),
        row(2, "Mantis", "multi-choice", f"Is <image> like <image>?\n{directly}", "A"),
        row(3, "MathVerse", "multi-choice", f"<image><image>\nSolve.\n{directly}", "C"),
        row(4, "SciVerse", "multi-choice", f"<image><image>\nSolve. {directly}", "D"),
        row(5, "BLINK", "multi-choice", "<image><image>\nWhich is older?", "(A)"),
    ]
    write_json(folder / "multi_image_out_domain.json", rows)
    write_json(folder / "multi_image_in_domain.json", [
        row(6, "Spot-the-Diff", "open-ended", "<image><image>\nWhat changed?", "the red car has left"),
        row(7, "Spot-the-Diff", "open-ended", "<image><image>\nWhat changed?", ""),
        row(8, "NLVR2", "multi-choice", "<image><image>\nTrue?", "True"),
    ])  # fmt: skip
    for name in ("a.png", "b.png"):
        write(folder / f"eval_images_fix/{name}", png("white"))


def mi_bench(dataset: Path, images: Path) -> None:
    del images
    item = {"id": "g1", "image": ["x.png", "x.png"], "question": "<image><image>Which?", "options": ["one", "two", "three"],
            "answer": "B", "task": "GC"}  # fmt: skip
    write_json(dataset / "mi_bench/multi_image_instruction.json", [item])
    write_json(dataset / "mi_bench/multimodal_knowledge_seeking.json", [{**item, "id": "g2", "answer": "three", "task": "FVR"}])
    write(dataset / "mi_bench/x.png", png("red"))
