import pytest

from wsi_pipeline.core.errors import EnvironmentFault, SlideError
from wsi_pipeline.core.outcome import (
    RunAccount,
    SlideOutcome,
    SlideState,
    describe_failure,
    find_failures,
    state_of,
)


def account(*states: str) -> RunAccount:
    return RunAccount(
        tuple(SlideOutcome(f"s{k}", "", SlideState(state), "") for k, state in enumerate(states))
    )


@pytest.mark.parametrize(
    ("patches", "unreadable", "state"),
    [(0, 0, "zero"), (5, 0, "ok"), (5, 2, "damaged"), (5, 5, "failed")],
)
def test_states(patches: int, unreadable: int, state: str) -> None:
    assert state_of(patches, unreadable) == state


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (("ok", "zero"), 0),
        (("ok", "damaged"), 3),
        (("ok", "failed"), 3),
        (("zero", "failed"), 3),
        (("damaged",), 3),
        (("failed", "failed"), 4),
        ((), 0),
    ],
)
def test_exit_codes(states: tuple[str, ...], code: int) -> None:
    assert account(*states).exit_code == code


def test_people_read_a_sentence_without_the_states_that_no_slide_ended_in() -> None:
    assert account("ok", "ok", "zero", "damaged").sentence == "4 slides: 2 ok, 1 empty, 1 damaged"
    assert account("failed").sentence == "1 slide: 1 failed"
    assert account().sentence == "0 slides"


def test_files_record_a_line_that_adds_up() -> None:
    assert (
        account("ok", "ok", "zero", "damaged", "failed").closing_line
        == "in 5 = ok 2 + zero 1 + damaged 1 + failed 1"
    )


def test_a_fault_of_the_machine_is_exit_code_5() -> None:
    failure = describe_failure("s", "p", EnvironmentFault("disk full"))
    assert RunAccount((*account("ok").outcomes, failure)).exit_code == 5


def test_a_failure_is_one_line() -> None:
    assert describe_failure("s", "p", SlideError("a\nb   c")).message == "a b c"


def test_a_foreign_error_is_named_by_its_type() -> None:
    assert (
        describe_failure("s", "p", ZeroDivisionError("division by zero")).message
        == "ZeroDivisionError: division by zero"
    )


def test_a_failure_has_no_patches_and_was_not_taken_over_from_an_earlier_run() -> None:
    failure = describe_failure("s", "p", SlideError("broken"))
    assert (failure.patches, failure.is_resumed_whole, failure.is_environment_fault) == (
        0,
        False,
        False,
    )


def test_failures_found_later_take_the_place_of_what_was_thought_of_their_slides() -> None:
    found = [
        SlideOutcome(slide_id, "elsewhere", SlideState.FAILED, "found later")
        for slide_id in ("s0", "s1")
    ]
    after = account("ok", "failed", "ok").with_failures(found)
    assert [
        (outcome.slide_id, outcome.path, outcome.state, outcome.message)
        for outcome in after.outcomes
    ] == [
        ("s0", "", "failed", "found later"),
        ("s1", "", "failed", ""),  # its own failure stays
        ("s2", "", "ok", ""),
    ]


def test_failures_are_what_a_person_should_look_at() -> None:
    assert [
        outcome.state
        for outcome in find_failures(account("ok", "damaged", "zero", "failed").outcomes)
    ] == ["damaged", "failed"]


def test_errors_survive_the_way_between_processes() -> None:
    import pickle

    error = SlideError("a.svs: broken; copy it again")
    error.add_note("while tiling")
    back = pickle.loads(pickle.dumps(error))
    assert (str(back), back.exit_code) == ("a.svs: broken; copy it again", 1)
