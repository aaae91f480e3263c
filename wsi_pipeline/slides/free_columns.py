"""Columns of a table beyond those that wsi reads: site, scanner, stain, grade.

Their values are data of patients: they go into stores and results, and are never printed. A name
that is nearly one of ours is refused, because a misspelt `patient_id` would put one patient on both
sides of a split.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields

from wsi_pipeline.core.csv_io import unshield
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.outcome import SlideSummary

MAX_CHARACTERS = 200
"""Of a value: longer ones are notes, which do not belong into every result."""
PERSONAL = re.compile(
    r"(first|last|sur|fore|full|patient|family|given|maiden|\b)_?names?\b|name_of_patient"
    r"|(date|day|year)?_?(of)?_?birth(day|date)?|\bdob\b|\bbirth|\bmrn\b|\bssn\b|\bnhs|accession"
    r"|medical_record|insurance|address|street|\bzip|postcode|phone|e_?mail|geburt|nachname|vorname"
)
"""Names of columns that tell who a patient is."""
FEWEST_LETTERS = 5
"""Of a name in which a slip is told from another word."""
logger = logging.getLogger(__name__)


def find_free(
    path: object,
    header: Sequence[str],
    known: Sequence[str],
    synonyms: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Return the columns of a header beyond the known ones, in their order.

    `synonyms` are other names of known columns. Raises ConfigError for a name that is nearly a
    known one, or that the tables of results have for something else. Columns that tell who a
    patient is are warned of.
    """
    free = tuple(name for name in header if name not in known)
    for name in free:
        meant = (synonyms or {}).get(_fold(name)) or next(
            (other for other in known if is_nearly(name, other)), None
        )
        if meant is not None:
            raise ConfigError(
                f"{path}: line 1: the column {name} is nearly {meant}; call it {meant}, or"
                " something else if it is something else"
            )
        if name in RESULT_COLUMNS:
            raise ConfigError(
                f"{path}: line 1: the column {name} is one that tables of results have; call it"
                " something else"
            )
    if personal := [name for name in free if tells_who(name)]:
        logger.warning(
            "%s: %s: tells who a patient is, and would be in every store and result; remove it,"
            " or run `wsi pseudonymize`, which leaves such columns out",
            path,
            ", ".join(personal),
        )
    return free


RESULT_COLUMNS = frozenset(field.name for field in fields(SlideSummary))
"""Names that slides.csv has for something else."""


def take_free(at: str, line: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Return the values of a line's free columns that are not empty. Raises ConfigError."""
    found = {name: unshield(line[name].strip()) for name in names}
    for name, value in found.items():
        if len(value) > MAX_CHARACTERS:
            raise ConfigError(
                f"{at}: {name} has {len(value)} characters; at most {MAX_CHARACTERS} are kept"
            )
    return {name: value for name, value in found.items() if value}


def tells_who(name: str) -> bool:
    """Return whether a column's name is one of a person's name, birth, number or address."""
    return PERSONAL.search(re.sub(r"[\W_]+", "_", name.casefold()).strip("_")) is not None


def is_nearly(one: str, other: str) -> bool:
    """Return whether two names are one but for case, marks between letters, or a single slip.

    A slip is a letter too many, too few, another, or two swapped; in names of five letters or more.
    """
    one, other = _fold(one), _fold(other)
    if one == other or min(len(one), len(other)) < FEWEST_LETTERS:
        return one == other
    start = _count_shared(one, other)
    one, other = one[start:][::-1], other[start:][::-1]
    end = _count_shared(one, other)
    one, other = one[end:], other[end:]
    return max(len(one), len(other)) <= 1 or (len(one) == 2 and one == other[::-1])


def _count_shared(one: str, other: str) -> int:
    """Return the number of letters at the beginning that two words share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _fold(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
