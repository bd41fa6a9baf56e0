"""What the docs show is what the tools print."""

import re
import runpy
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(command: str, monkeypatch, capsys) -> str:
    """Output of `python tools/NAME.py ...` without a new process."""
    _, script, *argv = shlex.split(command)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [script, *argv])
    runpy.run_path(script, run_name="__main__")
    return capsys.readouterr().out


def test_the_walk_of_one_image_is_the_tools_output(monkeypatch, capsys):
    text = (ROOT / "docs/one_image.md").read_text()
    (command,) = re.findall(r"^    (python tools/one_image.py .*)$", text, re.MULTILINE)
    shown = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert run(command, monkeypatch, capsys).rstrip() == shown[0].rstrip()
    released = run(command.replace("digits.py", "released.py:7b-240728", 1), monkeypatch, capsys)
    assert released.rstrip().split("\n\n")[-1] == shown[1].rstrip()


def test_every_link_in_the_docs_leads_to_a_file():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_test_that_the_docs_name_exists():
    named = {
        (page.name, *found)
        for page in (ROOT / "docs").glob("*.md")
        for found in re.findall(r"(tests/[\w/]+\.py)::(\w+)", page.read_text())
    }
    assert len(named) > 20
    for page, file, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{page}: {file}::{test}"


def test_the_table_of_the_papers_benchmarks_is_the_tools_output(monkeypatch, capsys):
    printed = run("python tools/paper_table.py", monkeypatch, capsys)
    assert printed.count("\n") == 2 + 21 and printed in (ROOT / "docs/results.md").read_text()
