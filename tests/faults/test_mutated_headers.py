"""TIFFs whose headers were tampered with: opening and planning them never hangs, never fills the
memory, never takes the caller along.

A sample is tried by `make test`; 10,000 by `make test-faults`, whose outcomes are printed.
"""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import by_extent
from tests.header_mutations import SEEDS, make_seed, mutate
from tests.header_opener import DEADLINE_S, MEMORY_BYTES, Answer, Opener

FILES, ALL_FILES = 160, 10_000


@pytest.mark.timeout(1800)
@by_extent
@pytest.mark.parametrize("kind", SEEDS)
def test_a_header_that_was_tampered_with_harms_nobody(
    kind: str, is_whole: bool, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seed, opener = make_seed(kind, tmp_path), Opener()
    answers: dict[int, Answer] = {}
    for number in range((ALL_FILES if is_whole else FILES) // len(SEEDS)):
        path = tmp_path / "mutated.tiff"
        path.write_bytes(mutate(seed, random.Random(f"{kind} {number}")))
        answers[number] = opener.ask(path)
        if (
            answers[number].state == "hang"
        ):  # a machine with much else to do may leave a process alone for so long, but not twice
            answers[number] = opener.ask(path)
    opener.close()
    for state, count in Counter(answer.state for answer in answers.values()).items():
        record_property(f"count of mutated headers, {state}", count)
    harmful = {
        number: answer
        for number, answer in answers.items()
        if answer.state in ("hang", "crash", "memory")
    }
    assert harmful == {}
    assert max(answer.seconds for answer in answers.values()) < DEADLINE_S
    assert max(answer.peak_bytes for answer in answers.values()) < MEMORY_BYTES
