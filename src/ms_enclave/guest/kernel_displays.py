"""What an object looks like: MIME bundles from `_repr_*_`, and the calls that show them.

For kernels without IPython, which has all of this itself; `to_json` is for both.
"""

from __future__ import annotations

import base64
import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, Protocol, Tuple

    Bundle = Tuple[Dict[str, Any], Dict[str, Any]]

    class Messages(Protocol):
        display_limit: int

        def send_message(self, kind: str, content: dict[str, Any]) -> None: ...


__all__ = ["Displays", "bundle", "fit", "show_by_itself", "to_json"]

_METHODS = (
    ("_repr_html_", "text/html"),
    ("_repr_markdown_", "text/markdown"),
    ("_repr_svg_", "image/svg+xml"),
    ("_repr_png_", "image/png"),
    ("_repr_jpeg_", "image/jpeg"),
    ("_repr_pdf_", "application/pdf"),
    ("_repr_latex_", "text/latex"),
    ("_repr_json_", "application/json"),
    ("_repr_javascript_", "application/javascript"),
)
_BINARY = frozenset({"image/png", "image/jpeg", "application/pdf"})


def to_json(body: dict[str, Any]) -> bytes:
    """A message as it is sent; what is no JSON is shown as text."""
    return json.dumps(body, separators=(",", ":"), default=_as_text).encode("ascii")


def _as_text(value: Any) -> object:
    if type(value) in (bytes, bytearray, memoryview):
        return base64.b64encode(value).decode("ascii")
    return str(value)


def fit(messages: Messages, data: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The data, or what stands for it where it is larger than the host takes, and its size then.

    So that what is too large is not even written as JSON.
    """
    size = sum(len(value) for value in data.values() if isinstance(value, (str, bytes)))
    if size <= messages.display_limit:
        return data, 0
    text = data.get("text/plain")
    short = text if isinstance(text, str) and len(text) <= 1000 else "<display>"
    note = "%s (%d bytes, more than the %d that are shown)" % (short, size, messages.display_limit)
    return {"text/plain": note}, size


def bundle(value: Any, include: Iterable[str] = ()) -> Bundle:
    """Everything that an object can be shown as, by MIME type, with the metadata to it."""
    data: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    _add_whole(data, metadata, _call(value, "_repr_mimebundle_"))
    for method, kind in _METHODS:
        if kind not in data:
            _add(data, metadata, kind, _call(value, method))
    figure = sys.modules.get("matplotlib.figure")
    if figure is not None and isinstance(value, figure.Figure):
        _add_figure(data, value, "image/svg+xml" in include)
    data.setdefault("text/plain", _plain(value))
    for kind in _BINARY & data.keys():
        if isinstance(data[kind], bytes):
            data[kind] = base64.b64encode(data[kind]).decode("ascii")
    return data, metadata


def _plain(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001 - the object's own fault, which the reader sees
        return "<%s whose repr failed: %s>" % (type(value).__name__, type(error).__name__)


def _call(value: Any, method: str) -> Any:
    """What a method of the object's class gives, None where it has none or it fails."""
    if isinstance(value, type) or not _has(value, method):
        return None
    try:
        return getattr(value, method)()
    except Exception:  # noqa: BLE001 - it can be shown in other ways
        return None


def _has(value: Any, method: str) -> bool:
    return any(method in vars(kind) for kind in type(value).__mro__)


def show_by_itself(value: Any) -> bool:
    """Whether an object has a way of its own to be shown, and was.

    One that gives a bundle as well is not asked: its own way asks IPython, which is not there.
    """
    if isinstance(value, type) or not _has(value, "_ipython_display_"):
        return False
    if _has(value, "_repr_mimebundle_"):
        return False
    value._ipython_display_()
    return True


def _add_whole(data: dict[str, Any], metadata: dict[str, Any], shown: Any) -> None:
    _add(data, metadata, "", shown)
    data.update(data.pop("", {}))
    metadata.update(metadata.pop("", {}))


def _add(data: dict[str, Any], metadata: dict[str, Any], kind: str, shown: Any) -> None:
    pair: Any = shown
    if type(shown) is tuple and len(pair) == 2:
        shown, metadata[kind] = pair
    if shown is not None:
        data[kind] = shown


def _add_figure(data: dict[str, Any], figure: Any, svg: bool) -> None:
    import io

    for kind, name in (("image/png", "png"), ("image/svg+xml", "svg")):
        if kind in data or (name == "svg" and not svg):
            continue
        content = io.BytesIO()
        figure.savefig(content, format=name, bbox_inches="tight")
        image = content.getvalue()
        data[kind] = image.decode() if name == "svg" else image


class Displays:
    """`display`, `update_display` and `clear_output` of a kernel without IPython."""

    def __init__(self, messages: Messages) -> None:
        self._messages = messages

    def display(
        self,
        *values: Any,
        include: Iterable[str] = (),
        display_id: Any = None,
        raw: bool = False,
        metadata: dict[str, Any] | None = None,
        update: bool = False,
        **_rest: Any,
    ) -> Any:
        """Show objects. With a `display_id` (True for a new one) they can be updated later."""
        if display_id is True:
            display_id = os.urandom(16).hex()
        for value in values:
            if not raw and show_by_itself(value):
                continue
            data, more = (value, {}) if raw else bundle(value, include)
            self.publish(data, dict(more, **(metadata or {})), display_id, update)
        return None if display_id is None else DisplayHandle(self, display_id)

    def publish(
        self, data: dict[str, Any], metadata: dict[str, Any], display_id: Any, update: bool
    ) -> None:
        fitting, lost = fit(self._messages, data)
        content: dict[str, Any] = {
            "data": fitting,
            "metadata": {} if lost else metadata,
            "transient": {} if display_id is None else {"display_id": str(display_id)},
        }
        if lost:
            content["lost"] = lost
        self._messages.send_message("update_display_data" if update else "display_data", content)

    def update_display(self, value: Any, *, display_id: Any, **options: Any) -> None:
        """Show something else where something was shown."""
        self.display(value, display_id=display_id, update=True, **options)

    def clear_output(self, wait: bool = False) -> None:
        """Take away what the cell has shown; with `wait`, when it shows the next thing."""
        self._messages.send_message("clear_output", {"wait": bool(wait)})


class DisplayHandle:
    """What was shown, to be changed."""

    def __init__(self, displays: Displays, display_id: Any) -> None:
        self._displays = displays
        self.display_id = str(display_id)

    def __repr__(self) -> str:
        return "<DisplayHandle display_id=%s>" % self.display_id

    def display(self, value: Any, **options: Any) -> None:
        self._displays.display(value, display_id=self.display_id, **options)

    def update(self, value: Any, **options: Any) -> None:
        self._displays.update_display(value, display_id=self.display_id, **options)
