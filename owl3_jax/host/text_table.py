"""Tables as lines of text."""

from collections.abc import Sequence


def format_table(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of columns, separated by two spaces: the first `left` ones aligned on the left, the others on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
