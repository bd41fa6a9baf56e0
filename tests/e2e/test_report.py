"""The report of an evaluation, as a person uses it: in headless Chromium, by clicks."""

import json
from pathlib import Path

import pytest
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select

from owl3_jax.cli.eval import main
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.tasks import find_task
from tests.e2e.browser import opened
from tests.unit.evaluation.benchmark_files import write_all

ANSWERS = {
    "nlvr2": ["yes", "yes", "<b>no</b>"],
    "mmbench_dev_en": ["A", "B", "B", "C", "A"],
    "mvbench": ["", "B", "A", "B", "B"],
    "ai2d": ["B"],  # one is missing
}


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    root = write_all(tmp_path_factory.mktemp("data"))
    lines = []
    for task, given in ANSWERS.items():
        ids = [question.id for question in find_task(task).questions(DataRoot(str(root)))]
        lines += [{"task": task, "id": name, "answer": answer} for name, answer in zip(ids, given, strict=False)]
    (root / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)))
    flags = ["--answers", str(root / "answers.jsonl"), "--tasks", ",".join(ANSWERS), "--data-root", str(root)]
    with pytest.raises(SystemExit, match="1 of 15 questions have no answer"):
        main([*flags, "--output", str(root / "out")])
    return root / "out" / "report.html"


def cards(browser: WebDriver) -> list[str]:
    return [card.text for card in browser.find_elements(By.CSS_SELECTOR, "#sheet .card")]


def click(browser: WebDriver, outcome: str) -> None:
    browser.find_element(By.CSS_SELECTOR, f"[data-outcome={outcome}]").click()


def test_a_person_finds_the_wrong_samples_by_clicks(page, tmp_path):
    with opened(page, tmp_path / "profile") as browser:
        assert browser.get_log("browser") == []
        rows = [row.text for row in browser.find_elements(By.CSS_SELECTOR, "#scores tr")]
        assert any(row.startswith("nlvr2 3") and "33.3" in row and "7B-241101 92.7" in row for row in rows)
        assert any("circular_accuracy" in row for row in rows) and not any("(attribute)" in row for row in rows)
        browser.find_element(By.CSS_SELECTOR, "#scores button.details").click()
        shown = [row.text for row in browser.find_elements(By.CSS_SELECTOR, "#scores tr")]
        assert any("(attribute)" in row for row in shown) and not any("(action_antonym)" in row for row in shown)

        click(browser, "wrong")
        wrong = cards(browser)
        assert len(wrong) == 2 + 1 + 1 + 1 and all("✗" in card or "no answer" in card for card in wrong)
        Select(browser.find_element(By.ID, "task")).select_by_value("nlvr2")
        assert [card.splitlines()[0] for card in cards(browser)] == ["nlvr2 · test-1", "nlvr2 · test-2"]
        assert "<b>no</b>" in cards(browser)[1], "an answer is text, not HTML"
        picture = browser.find_element(By.CSS_SELECTOR, ".card .pictures img")
        assert int(picture.get_property("naturalWidth")) == 96 and picture.size["width"] > 50

        Select(browser.find_element(By.ID, "task")).select_by_value("")
        click(browser, "failed")
        assert ["no answer" in card for card in cards(browser)] == [True]
        click(browser, "differ")
        assert [card.splitlines()[0] for card in cards(browser)] == ["mvbench · action_sequence · action_sequence/0"]
        click(browser, "all")
        assert len(cards(browser)) == 15 and "15 of 15" in browser.find_element(By.ID, "count").text

        Select(browser.find_element(By.ID, "split")).select_by_value("action_antonym")
        assert len(cards(browser)) == 2
        Select(browser.find_element(By.ID, "split")).select_by_value("")
        browser.find_element(By.ID, "search").send_keys("which COLOUR")
        assert len(cards(browser)) == 3
        assert browser.get_log("browser") == []


def test_frames_of_a_video_are_shown(page, tmp_path):
    with opened(page, tmp_path / "profile") as browser:
        click(browser, "all")
        Select(browser.find_element(By.ID, "task")).select_by_value("mvbench")
        pictures = browser.find_elements(By.CSS_SELECTOR, ".card:first-child .pictures img")
        assert len(pictures) == 16
