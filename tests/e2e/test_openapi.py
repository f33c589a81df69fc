"""`/openapi.json` says what each call answers. A few calls for each are tried here; as many as one
has time for by `scripts/schema`."""

from __future__ import annotations

import pytest
from schemathesis.core.failures import FailureGroup

from tests.support.schema import Tried, operations


@pytest.mark.namespaces
@pytest.mark.timeout(400)
def test_what_is_answered_is_what_is_said() -> None:
    wrong: dict[str, str] = {}
    with Tried() as tried:
        for label in operations():
            try:
                tried.check(label, examples=2, number=1)
            except FailureGroup as error:
                wrong[label] = str(error)
    assert not wrong, "\n\n".join(f"{label}: {text}" for label, text in wrong.items())
