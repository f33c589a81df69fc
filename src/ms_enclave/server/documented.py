"""What `/openapi.json` says beyond the routes: the key, and what each call may fail with."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi

from ms_enclave import wire
from ms_enclave.server.answers import is_old

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastapi import FastAPI

__all__ = ["document_errors"]

_KEY = "key"
_ALWAYS = (400, 401, 403, 408, 413, 422, 429, 500)
"""By the gate, by the bodies, or by a fault."""
_OF_A_MANAGER = (404, 409, 501, 502, 503)
"""By what makes sandboxes, finds them or lends them."""
_OF_A_SYSTEM = (507,)
"""By files inside, beside what the others stand for there."""
_OPEN = frozenset({"/health", "/health/ready"})
_NEW, _OLD = "Failure", "OldFailure"


def document_errors(app: FastAPI) -> None:
    """Have the application's description say what each call may fail with."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _described(app: FastAPI) -> dict[str, Any]:
    said = get_openapi(
        title=app.title, version=app.version, routes=app.routes,
        separate_input_output_schemas=False,
    )  # fmt: skip
    schemas: dict[str, Any] = said["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas |= {_NEW: _failure(), _OLD: _old_failure()}
    said["components"]["securitySchemes"] = {
        _KEY: {"type": "apiKey", "in": "header", "name": "X-API-Key"}
    }
    codes = wire.codes_by_status()
    for path, methods in said["paths"].items():
        for operation in methods.values():
            _add(path, operation, codes)
    return said


def _add(path: str, operation: dict[str, Any], codes: Mapping[int, list[str]]) -> None:
    answers: dict[str, Any] = operation["responses"]
    answers.pop("422", None)
    if path in _OPEN:
        return
    operation["security"] = [{_KEY: []}]
    schema = {"$ref": f"#/components/schemas/{_OLD if is_old(path) else _NEW}"}
    for status in _statuses(path):
        answers[str(status)] = {
            "description": ", ".join(codes.get(status, [])) or "refused",
            "content": {wire.JSON: {"schema": schema}},
        }
    answers["429"]["headers"] = {
        "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}
    }


def _statuses(path: str) -> Iterable[int]:
    if path.rstrip("/").endswith("stats"):
        return _ALWAYS
    if "{sandbox_id}" in path:
        return (*_ALWAYS, *_OF_A_MANAGER, *_OF_A_SYSTEM)
    return (*_ALWAYS, *_OF_A_MANAGER)


def _failure() -> dict[str, Any]:
    text = {"type": "string"}
    codes = sorted({code for each in wire.codes_by_status().values() for code in each})
    return {
        "title": _NEW,
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {
                    "code": {"type": "string", "enum": codes},
                    "message": text,
                    "remedy": {**text, "description": "What to do."},
                    "errno": {"type": "string", "enum": sorted(errno.errorcode.values())},
                    "path": text,
                },
            }
        },
    }


def _old_failure() -> dict[str, Any]:
    return {
        "title": _OLD,
        "type": "object",
        "required": ["detail"],
        "properties": {"detail": {"type": "string"}},
    }
