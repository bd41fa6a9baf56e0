"""`Any` is rare in the package, and each has its reason."""

import re
from pathlib import Path

import owl3_jax

PACKAGE = Path(owl3_jax.__file__).parent
MOST = 40


def uses_of_any() -> list[tuple[str, str, str]]:
    """Place, line, and the line before it, of each line that has `Any` outside of an import or a comment."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        lines = file.read_text().splitlines()
        for number, (before, line) in enumerate(zip(["", *lines], lines, strict=False), start=1):
            code = line.partition("#")[0]
            if re.search(r"\bAny\b", code) and not re.match(r"\s*(from|import) ", code):
                found.append((f"{file.relative_to(PACKAGE)}:{number}", line, before))
    return found


def test_any_is_rare_and_explained():
    uses = uses_of_any()
    assert 0 < len(uses) <= MOST
    explains = lambda line: "Any" in line.partition("#")[2]
    unexplained = [place for place, line, before in uses if not (explains(line) or explains(before))]
    assert not unexplained, "say why in a comment on the line, or on the one before"
