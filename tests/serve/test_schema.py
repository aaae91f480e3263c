"""Whatever OpenAPI allows, and what it does not: no request makes the server fail."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

from tests.served import ALLOWED, run_server, serve_all

pytestmark = pytest.mark.system

EXAMPLES = 12
"""For each operation and each kind of names."""


@pytest.fixture(scope="module")
def address(served_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("schema") / "served"
    shutil.copytree(served_root, root)
    with run_server(serve_all(root, ["results"])) as (url, _):
        yield url


OPERATIONS = 35
"""What the REST endpoint offers; a new one must not slip through untested."""


@pytest.mark.parametrize("is_known", [False, True], ids=["names of nothing", "names of something"])
def test_no_request_makes_the_server_fail(address: str, is_known: bool) -> None:
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json", headers=ALLOWED)
    operations: list[Any] = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]  # an error fails here
    assert len(operations) == OPERATIONS
    for operation in operations:
        check_operation(operation, is_known)


def check_operation(operation: Any, is_known: bool) -> None:
    """Send examples of one operation; Hypothesis names the one that fails."""

    @settings(
        max_examples=EXAMPLES,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def send(case: Any) -> None:
        if is_known and "slide_id" in case.path_parameters:
            case.path_parameters["slide_id"] = "one"
            (case.query or {}).pop("run", None)
        case.call_and_validate(headers=ALLOWED, checks=[not_a_server_error], timeout=120)

    send()
