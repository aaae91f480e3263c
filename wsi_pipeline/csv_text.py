"""CSV that a spreadsheet may open: no cell of it is ever run as a formula."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a cell begins with that Excel, LibreOffice or Google Sheets take for a formula."""
SHIELD = "'"
"""Put before such a text: spreadsheets show what follows, and run nothing."""


def format_csv(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A CSV table; empty cells for None, numbers as they are, texts shielded where a spreadsheet would run them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([shield(value) for value in header])
    writer.writerows([shield(value) for value in row] for row in rows)
    return text.getvalue()


def shield(value: Any) -> Any:
    """A cell as it may be written."""
    if value is None:
        return ""
    return f"{SHIELD}{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) and not _is_number(value) else value


def unshield(text: str) -> str:
    """The text that `shield` made a cell of."""
    bare = text.removeprefix(SHIELD)
    return bare if shield(bare) == text else text


def _is_number(text: str) -> bool:
    """Whether a text is a number as we write them, such as `-0.5`: a spreadsheet shows it, and runs nothing."""
    try:
        float(text)
    except ValueError:
        return False
    return text.strip() == text
