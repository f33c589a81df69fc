"""What the server remembers: tenants and their keys, in a database of its own or a given one."""

from __future__ import annotations

from ms_enclave.server.store.keys import NewKey, make_key, read_key
from ms_enclave.server.store.store import Store, settle_url

__all__ = ["NewKey", "Store", "make_key", "read_key", "settle_url"]
