"""The HTTP server. Needs the extra `server`."""

from __future__ import annotations

from ms_enclave.server.access import Access, OneKey, Principal
from ms_enclave.server.policy import Policy
from ms_enclave.server.quotas import Quotas
from ms_enclave.server.server import SandboxServer, create_server
from ms_enclave.server.webhooks import Webhook

__all__ = [
    "Access",
    "OneKey",
    "Policy",
    "Principal",
    "Quotas",
    "SandboxServer",
    "Webhook",
    "create_server",
]
