"""CSV that a spreadsheet may open: no cell of it is ever run as a formula."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a cell begins with that Excel, LibreOffice or Google Sheets take for a formula."""
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(inf|nan)")
"""A number as we write it, such as `-0.5`: a spreadsheet shows it, and runs nothing."""
SHIELD = "'"
"""Put before such a text: spreadsheets show what follows, and run nothing."""


def format_csv(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A CSV table; empty cells for None, numbers as they are, texts shielded where a spreadsheet would run them."""
    return "".join(
        ",".join(_quote(shield(value)) for value in row) + "\n" for row in (header, *rows)
    )


def _quote(value: Any) -> str:
    """A cell between quotes where it must be; Python's own writer lets a carriage return break the line (until 3.13)."""
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\r\n') else text


def shield(value: Any) -> Any:
    """A cell as it may be written."""
    if value is None:
        return ""
    return (
        f"{SHIELD}{value}"
        if isinstance(value, str)
        and value.startswith(FORMULA_STARTS)
        and not NUMBER.fullmatch(value)
        else value
    )


def unshield(text: str) -> str:
    """The text that `shield` made a cell of."""
    bare = text.removeprefix(SHIELD)
    return bare if shield(bare) == text else text
