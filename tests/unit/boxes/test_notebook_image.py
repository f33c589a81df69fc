"""When an image of notebooks is used as it is, and when it is built anew."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any

import pytest

from ms_enclave.boxes import _notebook_image as images

BASE, OTHER = {"Id": "sha256:one"}, {"Id": "sha256:other"}
OURS = images.labels(BASE)
OLD = {images.BUILT_FROM: "0123456789ab-sha256:one"}
"""By another Dockerfile, on the same base."""


def test_what_an_image_says_tells_its_dockerfile_and_its_base() -> None:
    text = files("ms_enclave.boxes.notebook").joinpath("Dockerfile").read_bytes()
    version = hashlib.sha256(text).hexdigest()[:12]
    assert {"ms-enclave.notebook": f"{version}-sha256:one"} == OURS


@pytest.mark.parametrize(
    ("labels", "base", "is_current"),
    [
        (OURS, BASE, True),
        (OURS, OTHER, False),
        (OLD, BASE, False),
        (OURS, None, True),
        (OLD, None, False),
        ({"made-by": "hand"}, BASE, True),
        (None, OTHER, True),
    ],
    ids=["same", "other-base", "old", "no-base", "old-no-base", "by-hand", "no-labels"],
)
def test_an_image_that_is_ours_is_current_while_its_dockerfile_and_base_are(
    labels: dict[str, str] | None, base: dict[str, Any] | None, is_current: bool
) -> None:
    assert images.is_current({"Config": {"Labels": labels}}, base) is is_current
