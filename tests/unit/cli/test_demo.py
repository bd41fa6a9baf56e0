"""`owl3 demo` and the checkpoint that ships with the package."""

import json
import re

import numpy as np
import pytest

from owl3_jax.cli import demo
from owl3_jax.formats.bundled import BUNDLED, find_checkpoint


def test_it_asks_and_says_how_many_answers_were_right(capsys):
    demo.main(["--questions=3", "--seed=2"])
    printed = capsys.readouterr().out
    asked = re.findall(r"^(.*)\nWhich digit is (\w+)\?  (.*)$", printed, re.MULTILINE)
    assert [len(pictures.split(", ")) for pictures, _, _ in asked] == [1, 2, 4]
    right = sum(answer in pictures.split(", ") and answer.startswith(colour) for pictures, colour, answer in asked)
    assert f"{right} of 3 right" in printed and right >= 2


def test_a_picture_is_drawn_two_pixels_to_a_character():
    pixels = np.zeros((4, 2, 3), np.uint8)
    pixels[2, 1] = 1, 2, 3
    lines = demo.draw(pixels)
    assert [line.count("\N{UPPER HALF BLOCK}") for line in lines] == [2, 2]
    assert "38;2;1;2;3;48;2;0;0;0m" in lines[1] and "1;2;3" not in lines[0]


def test_no_question_is_an_error(capsys):
    with pytest.raises(SystemExit) as raised:
        demo.main(["--questions=0"])
    assert raised.value.code == 2 and "--questions must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_checkpoint_has_its_scores_beside_it(name):
    metrics = json.loads((find_checkpoint(name) / "metrics.json").read_text())
    by_images = {point["images"]: point["accuracy"] for point in metrics["exact_match"] if point["naming"] == "colour"}
    assert by_images[1] > 0.88 and by_images[8] > 0.86
    assert metrics["commands"] and metrics["date"]


def test_a_directory_of_the_same_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("digits").is_absolute()
    (tmp_path / "digits").mkdir()
    assert not find_checkpoint("digits").is_absolute()
