"""Compares our scores with those that lmms-eval and pycocoevalcap compute, on answers made at random.

python tools/other_scorers.py [--answers 20000]

Downloads both packages with pip to a temporary folder and loads only the functions that score; packages that these import and
that are not installed here are replaced by empty ones. Each line is one score, with how many answers are scored alike.
"""

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import random
import subprocess
import sys
import tempfile
import types
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock

from answer_corpus import answers
from rouge_score.rouge_scorer import RougeScorer

from owl3_jax.evaluation import strict
from owl3_jax.evaluation.official import choices, vqa
from owl3_jax.evaluation.official.yes_no import YesNo
from owl3_jax.evaluation.tasks.interleave import rouge_official

_PACKAGES = ("lmms-eval==0.7.3", "pycocoevalcap==1.2")
_OPTIONS = ("a red cat", "two dogs", "pizza in a box", "nothing")
_BY_LETTER = dict(zip("ABCD", _OPTIONS, strict=True))
# Why scores differ.
_RAW = "it normalises annotations wholly, the released evaluator strips their punctuation"
_YES = "it counts right answers that are yes, not given ones"
_READS = "it reads answers in a way of its own"
_NONE = "released code counts answers that name no option as A, or as one that they are a part of"
_FIRST = "the released code looks at the first word, an empty one is right; it at letters that stand alone"
_TOLERANCE = 1e-6  # of ROUGE, which one of the packages rounds up by 1e-8


class Comparison(NamedTuple):
    """How two implementations score the same answers."""

    score: str
    other: str
    same: int
    answers: int
    example: str  # the shortest answer that they score differently
    why: str = ""  # they differ, and which one the released evaluation agrees with


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=20_000)
    texts = list(answers(parser.parse_args(argv).answers, seed=0))
    print("| score | of lmms-eval | the same | shortest difference | why |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        _download(Path(folder))
        sys.meta_path.append(_Empty())
        for each in compare(Path(folder), texts):
            print(f"| {each.score} | {each.other} | {each.same:,} of {each.answers:,} | {each.example} | {each.why} |")


def compare(folder: Path, texts: Sequence[str]) -> list[Comparison]:
    """All scores of both packages, unpacked in a folder, that ours have a counterpart to."""
    load = lambda name: _load(name, folder)
    metric = load("lmms_eval.tasks._task_utils.vqa_eval_metric").EvalAIAnswerProcessor()
    extract = load("lmms_eval.tasks._task_utils.mcq_extract").extract_mcq_answer
    vqav2, pope, interleave, mvbench, qbench, mmbench = (
        load(f"lmms_eval.tasks.{name}")
        for name in (
            "vqav2.utils",
            "pope.utils",
            "llava_interleave_bench.utils",
            "mvbench.utils",
            "qbench.utils",
            "mmbench.mmbench_evals",
        )
    )
    rouge = load("pycocoevalcap.rouge.rouge").Rouge()
    qbench.random.choice = lambda _: choices.NO_OPTION  # where it names none, theirs is drawn at random
    annotated, raw = (_annotated(texts, is_normal=is_normal) for is_normal in (True, False))
    golds = random.Random(1).choices("ABCD", k=len(texts))
    pairs = list(zip(texts, golds, strict=True))
    by_gold = lambda ours: [float(ours(text) == gold) for text, gold in pairs]
    golds_rouge = random.Random(2).sample([text for text in texts if text.strip(" .\n\t")], 500)
    asked_rouge = [(text, golds_rouge[number % 500]) for number, text in enumerate(texts) if text.strip(" .\n\t")][:2000]
    evaluator = mmbench.MMBench_Evaluator()
    return [
        _compared("EvalAI's normaliser", "vqa_eval_metric", texts, list(map(vqa.evalai, texts)), list(map(metric, texts))),
        *(
            _compared(
                f"VQA soft accuracy, {kind} annotations",
                "vqav2",
                texts,
                [vqa.soft_accuracy(text, given) for text, given in pairs],
                [_lmms_accuracy(vqav2, text, given) for text, given in pairs],
                why,
            )
            for kind, pairs, why in (("normalised", annotated, ""), ("raw", raw, _RAW))
        ),
        *_pope(pope),
        _compared(
            "MMBench, official",
            "mmbench",
            texts,
            [choices.mmbench(text, _OPTIONS) for text in texts],
            [evaluator.can_infer(text, dict(_BY_LETTER)) or choices.NO_OPTION for text in texts],
            _NONE,
        ),
        _compared(
            "Q-Bench2, official",
            "qbench2",
            texts,
            list(map(choices.marked_letter, texts)),
            [qbench.parse_multi_choice_response(text, [*"ABCD"], _BY_LETTER) for text in texts],
            _READS,
        ),
        _compared(
            "Video-MME, official",
            "videomme",
            texts,
            by_gold(choices.videomme),
            by_gold(lambda t: extract(t, [*"ABCD"])),
            _NONE,
        ),
        _compared(
            "options, strict",
            "videomme",
            texts,
            by_gold(lambda t: strict.letter(t, 4)),
            by_gold(lambda t: extract(t, [*"ABCD"])),
            _READS,
        ),
        _compared(
            "MVBench, official",
            "mvbench",
            texts,
            [float(choices.check_answer(text, f"{gold}. {_BY_LETTER[gold]}")) for text, gold in pairs],
            [float(mvbench.mcq_acc(f"{gold}. {_BY_LETTER[gold]}", text)) for text, gold in pairs],
            _FIRST,
        ),
        _compared(
            "interleave, official",
            "llava_interleave_bench",
            texts,
            [float(choices.is_interleave_match(text, gold)) for text, gold in pairs],
            [float(interleave.mcq_acc(gold, text)) for text, gold in pairs],
            _READS,
        ),
        _compared(
            "interleave, ROUGE-L, official",
            "llava_interleave_bench",
            [text for text, _ in asked_rouge],
            [rouge_official(text, gold) for text, gold in asked_rouge],
            [float(interleave.oe_rogue(gold, text)) for text, gold in asked_rouge],
        ),
        _compared(
            "longest common subsequence of `rouge-score`",
            "pycocoevalcap (F of beta 1.2, words at spaces)",
            [text for text, _ in asked_rouge],
            [_coco_f(text, gold) for text, gold in asked_rouge],
            [float(rouge.calc_score([text], [gold])) for text, gold in asked_rouge],
        ),
    ]


def _compared(
    score: str, other: str, texts: Sequence[str], ours: Sequence[Any], theirs: Sequence[Any], why: str = ""
) -> Comparison:
    different = [text for text, a, b in zip(texts, ours, theirs, strict=True) if not _is_same(a, b)]
    example = min(different, key=len, default="")
    return Comparison(score, other, len(texts) - len(different), len(texts), f"`{example!r}`" if different else "", why)


def _is_same(a: object, b: object) -> bool:
    return abs(a - b) <= _TOLERANCE if isinstance(a, float) and isinstance(b, float) else a == b


def _annotated(texts: Sequence[str], *, is_normal: bool) -> list[tuple[str, list[dict[str, object]]]]:
    """Each answer with ten annotators' ones, of which several are the answer itself."""
    rng = random.Random(0)
    found = []
    for text in texts:
        near = [vqa.normalize_prediction(text), vqa.normalize_prediction(rng.choice(texts)), "yes"]
        near += [] if is_normal else [text, *rng.sample(texts, 2)]
        found.append((text, [{"answer": rng.choice(near), "answer_id": number} for number in range(10)]))
    return found


def _lmms_accuracy(vqav2: Any, text: str, given: Sequence[dict[str, object]]) -> float:
    doc = {"question_id": 0, "answers": [dict(each) for each in given]}
    return float(vqav2.vqav2_process_results(doc, [text])["exact_match"])


def _pope(pope: Any) -> list[Comparison]:
    """Of sets of answers that are yes or no; with others, what is officially left out is an error of lmms-eval's."""
    rng, names, sets = random.Random(0), ("accuracy", "precision", "recall", "f1_score", "yes_ratio"), 200
    ours: list[tuple[float, ...]] = []
    theirs: list[tuple[float, ...]] = []
    for _ in range(sets):
        pairs = [(rng.choice(("yes", "no", "Yes", "No")), rng.choice(("yes", "no"))) for _ in range(100)]
        counts = YesNo.of(pairs)
        ours.append((counts.accuracy, counts.precision, counts.recall, counts.f1, counts.yes_ratio))
        rows = [pope.pope_process_results({"question_id": 0, "answer": gold}, [said])["pope_accuracy"] for said, gold in pairs]
        theirs.append(tuple(getattr(pope, f"pope_aggregate_{name}")(rows) for name in names))
    return [
        _compared(
            f"POPE, {name}",
            "pope",
            [""] * sets,
            [row[place] for row in ours],
            [float(row[place]) for row in theirs],
            _YES if name == "yes_ratio" else "",
        )
        for place, name in enumerate(names)
    ]


def _coco_f(text: str, gold: str, beta: float = 1.2) -> float:
    """Their F of `rouge-score`'s precision and recall, with words as they split them."""
    words = types.SimpleNamespace(tokenize=lambda sentence: sentence.split(" "))
    found = RougeScorer(["rougeL"], tokenizer=words).score(gold, text)["rougeL"]
    precision, recall = found.precision, found.recall
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if precision and recall else 0.0


def _download(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *_PACKAGES]
    subprocess.run(command, check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)


def _load(name: str, folder: Path) -> Any:  # Any: a module without types
    """A module by its file, without the packages around it."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name.replace('.', '/')}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class _Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module that nothing else does: an empty one, whose every name is a mock."""

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec:
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def exec_module(self, module: types.ModuleType) -> None:
        mock: Callable[[str], MagicMock] = lambda _: MagicMock()
        module.__dict__["__getattr__"] = mock


if __name__ == "__main__":
    main()
