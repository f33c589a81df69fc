"""The HTTP server. Needs the extra `server`."""

from __future__ import annotations
