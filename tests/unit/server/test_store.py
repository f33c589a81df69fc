"""What the server remembers: where, in which tables, and what happens while it cannot be asked."""

from __future__ import annotations

import functools
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from ms_enclave.errors import ConfigError, StoreUnavailableError
from ms_enclave.server.store import Store, make_key, read_key, settle_url
from ms_enclave.server.store.people import add_key, ensure_tenant, find_key, list_keys, revoke_key
from ms_enclave.server.store.schema import keys, metadata

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(str(tmp_path / "made" / "store.db"))
    yield opened
    opened.close()


def test_a_new_store_has_the_tables_that_the_code_knows(store: Store) -> None:
    differences = store.read(
        lambda connection: compare_metadata(MigrationContext.configure(connection), metadata)
    )
    assert differences == []
    assert store.path is not None
    assert os.stat(store.path).st_mode & 0o777 == 0o600
    assert os.stat(os.path.dirname(store.path)).st_mode & 0o777 == 0o700


def test_what_was_remembered_is_there_when_it_is_opened_again(store: Store) -> None:
    key = make_key()
    store.write(lambda connection: add_key(connection, key, "mine", now=5.0, note="for tests"))
    again = Store(str(store.path))
    try:
        (row,) = again.read(list_keys)
    finally:
        again.close()
    assert (row.id, row.tenant, row.note, row.made_at) == (key.id, "mine", "for tests", 5.0)


def test_what_fails_half_way_is_not_done_at_all(store: Store) -> None:
    def work(connection: object) -> None:
        ensure_tenant(connection, "mine", 1.0)  # type: ignore[arg-type]
        raise KeyError("half way")

    with pytest.raises(KeyError):
        store.write(work)
    store.write(lambda connection: ensure_tenant(connection, "mine", 2.0))


def test_a_store_of_a_newer_version_is_left_alone(store: Store) -> None:
    with sqlite3.connect(str(store.path)) as other:
        other.execute("UPDATE alembic_version SET version_num = '9999'")
    other.close()
    with pytest.raises(ConfigError, match="another version"):
        Store(str(store.path))


def test_a_store_that_others_may_read_is_refused(store: Store) -> None:
    os.chmod(str(store.path), 0o640)
    with pytest.raises(ConfigError, match="chmod 0600"):
        Store(str(store.path))


def test_what_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("something else entirely, of more than sixteen bytes" * 50)
    file.chmod(0o600)
    with pytest.raises(StoreUnavailableError):
        Store(str(file))
    assert file.read_text().startswith("something else")


def test_who_writes_waits_for_who_writes(store: Store) -> None:
    other = sqlite3.connect(str(store.path), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert store.read(list_keys) == []  # readers need not
    other.execute("ROLLBACK")
    other.close()
    store.write(lambda connection: ensure_tenant(connection, "mine", 1.0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mysql://somewhere", "no store is reached by mysql"),
        ("sqlite://", "has a file"),
        ("sqlite:///:memory:", "has a file"),
        ("://", "is a file, or an address"),
    ],
)
def test_where_no_store_can_be_is_told(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settle_url(text)


def test_a_file_and_an_address_are_understood() -> None:
    assert settle_url("/some/where.db").database == "/some/where.db"
    assert settle_url("sqlite:////some/where.db").database == "/some/where.db"
    assert settle_url("postgres://me@there/name").drivername == "postgresql+psycopg"


def test_a_database_that_does_not_answer_is_an_error_that_passes(tmp_path: Path) -> None:
    file, away = tmp_path / "store.db", tmp_path / "away"
    store = Store(str(file))
    try:
        store.close()
        file.rename(away)
        with pytest.raises(StoreUnavailableError) as caught:
            store.read(list_keys)
        assert str(tmp_path) not in str(caught.value)
        assert not file.exists()  # an empty one in its place would be worse than none
        away.rename(file)
        assert store.read(list_keys) == []
    finally:
        store.close()


def test_a_full_disk_is_an_error_that_passes(store: Store) -> None:
    def fill(rows: int) -> None:
        for number in range(rows):
            name = f"{number}-{'x' * 50}"
            store.write(functools.partial(ensure_tenant, name=name, now=1.0))

    store.write(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1"))
    with pytest.raises(StoreUnavailableError):
        fill(500)
    assert store.read(list_keys) == []
    store.write(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 100000"))
    fill(200)


def test_a_key_belongs_to_a_tenant_that_there_is(store: Store) -> None:
    key = make_key()
    row = insert(keys).values(id=key.id, tenant="nobody", digest=b"", note="", made_at=1.0)
    with pytest.raises(IntegrityError):
        store.write(lambda connection: connection.execute(row))


def test_an_address_where_nobody_listens_is_told_without_its_password() -> None:
    with pytest.raises(StoreUnavailableError) as caught:
        Store("postgresql://me:hidden@127.0.0.1:1/name")
    assert "hidden" not in str(caught.value)


# --- keys ---


def test_a_key_is_kept_as_its_hash_only(store: Store) -> None:
    key = make_key()
    store.write(lambda connection: add_key(connection, key, "mine", now=1.0))
    store.close()
    kept = b"".join(file.read_bytes() for file in Path(str(store.path)).parent.iterdir())
    assert key.id.encode() in kept
    assert key.text.encode() not in kept
    assert key.text.rpartition(key.id)[2].strip("_").encode() not in kept
    assert key.digest in kept


def test_no_two_keys_are_alike() -> None:
    made = [make_key() for _ in range(100)]
    assert len({key.text for key in made}) == len({key.id for key in made}) == 100
    assert all(read_key(key.text) == key.id for key in made)
    assert len(made[0].text) == 4 + 12 + 1 + 43


@pytest.mark.parametrize(
    "text", ["", "mse_", "k" * 60, "mse_" + "0" * 12 + "_" + "x" * 42, "ü" * 60]
)
def test_what_is_no_key_has_no_id(text: str) -> None:
    assert read_key(text) is None


def test_a_key_is_revoked_once(store: Store) -> None:
    key = make_key()
    store.write(lambda connection: add_key(connection, key, "mine", now=1.0))
    assert store.write(lambda connection: revoke_key(connection, key.id, 2.0))
    assert store.write(lambda connection: revoke_key(connection, key.id, 3.0))
    assert not store.write(lambda connection: revoke_key(connection, "unknown", 3.0))
    found = store.read(lambda connection: find_key(connection, key.id))
    assert found is not None
    assert found.revoked_at == 2.0


@pytest.mark.parametrize("name", ["", "a b", "../x", "ü", "x" * 65])
def test_a_name_that_no_tenant_can_have_is_told(store: Store, name: str) -> None:
    with pytest.raises(ConfigError, match="tenant's name"):
        store.write(lambda connection: ensure_tenant(connection, name, 1.0))
