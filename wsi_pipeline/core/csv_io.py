"""CSV that is safe to open in a spreadsheet, which runs none of its fields as a formula."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""First characters of a field that Excel, LibreOffice or Google Sheets take for a formula."""
NUMBER = re.compile(r"[+-]?([0-9]++\.?+[0-9]*+|\.[0-9]++)(e[+-]?[0-9]++)?|[+-]?(inf|nan)")
"""A number as we write it, such as `-0.5`, which a spreadsheet shows and does not run.

Possessive: else a field of a hundred thousand digits and a letter takes half a minute.
"""
MANY = 1e5
SHIELD = "'"
"""Prefix of such a text: spreadsheets show what follows and do not run it."""


def format_csv(
    header: Sequence[Any], rows: Iterable[Sequence[Any]], *, is_exact: bool = False
) -> str:
    """Return a CSV table: empty fields for None, numbers rounded for people, texts shielded.

    With `is_exact` numbers have all their digits, for tables that a program reads again.
    """
    return "".join(
        ",".join(_quote(shield(value if is_exact else round_number(value))) for value in row) + "\n"
        for row in (header, *rows)
    )


def round_number(value: Any) -> Any:
    """Return a float without digits that carry nothing, and anything else as it is.

    Six significant digits remain, and of 100,000 and more, such as pixels of a slide, tenths.
    """
    if not isinstance(value, float):
        return value
    return round(float(value), 1) if abs(value) >= MANY else float(f"{value:.6g}")


def _quote(value: Any) -> str:
    """Return a field, quoted where needed; Python's own writer lets a carriage return break it."""
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\r\n') else text


def shield(value: Any) -> Any:
    """Return a field with the prefix where a spreadsheet would run it."""
    if value is None:
        return ""
    is_formula = isinstance(value, str) and value.startswith(FORMULA_STARTS)
    return f"{SHIELD}{value}" if is_formula and not NUMBER.fullmatch(value) else value


def unshield(text: str) -> str:
    """Return the text that was given to `shield`."""
    bare = text.removeprefix(SHIELD)
    return bare if shield(bare) == text else text
