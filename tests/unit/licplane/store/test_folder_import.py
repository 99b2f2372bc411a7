# SPDX-License-Identifier: Apache-2.0
"""Taking over the files of licplane 0.1.

folder-0.1.json holds the files that licplane 0.1 wrote when it made two keys (one under the
passphrase below, now retired, one in the clear), issued three licenses, renewed acme-orders,
suspended acme-web and revoked acme-old.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from licplane.errors import ExitCode, PlaneError
from licplane.issuer.sealedkey import open_secret
from licplane.store.database import Store
from licplane.store.folder_import import FolderImport
from licplane.store.record_model import KeyKind
from lictoken.keys import SigningKey
from lictoken.trust import KeyStatus, TrustStore
from lictoken.verify import verify_license

pytest_plugins = ["tests.support.postgres"]

PASSPHRASE = "correct horse battery"
FILES: dict[str, str] = json.loads((Path(__file__).parent / "folder-0.1.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "state"
    root.mkdir(mode=0o700)
    for name, content in FILES.items():
        path = root / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_text(content)
        path.chmod(0o600)
    return root


def check_all_is_there(store: Store) -> None:
    with store.transaction(dry_run=True) as transaction:
        trust = TrustStore.from_bytes(transaction.setting("trust.jwks") or b"")
        assert {key.status for key in trust} == {KeyStatus.ACTIVE, KeyStatus.RETIRED}
        keys = transaction.keys(KeyKind.ISSUER)
        assert {key.key_id for key in keys} == {key.kid for key in trust}
        for key in keys:
            assert key.created_at_unix_ms > 1_700_000_000_000
            secret = open_secret(key.document, PASSPHRASE, "the key")
            assert SigningKey(issuer=key.owner, secret=secret).kid == key.key_id
        assert transaction.license_ids() == ["acme-old", "acme-orders", "acme-web"]
        for record in transaction.licenses():
            old = json.loads(FILES[f"licenses/{record.jti}.json"])
            assert (record.number, record.generation) == (old["number"], old["generation"])
            for issue, was in zip(record.issues, old["issues"], strict=True):
                assert json.loads(issue.claims) == was["claims"]
                assert (issue.kid, issue.token) == (was["kid"], was["token"])
            said = [
                {name: getattr(one, name) for name in one.__slots__} for one in record.statements
            ]
            assert said == old["statements"]
        assert transaction.take_number() == json.loads(FILES["numbers.json"])["next"]


def test_all_of_it_comes_over_on_the_first_opening(folder: Path) -> None:
    with Store.in_folder(folder) as store:
        check_all_is_there(store)
    with Store.in_folder(folder) as store:
        check_all_is_there(store)


def test_the_files_are_set_aside(folder: Path) -> None:
    Store.in_folder(folder).close()
    moved = sorted(path.name for path in folder.rglob("*.json"))
    assert moved == sorted(Path(name).name for name in FILES if name.endswith(".json"))
    assert not (folder / "keys").exists()
    assert not (folder / "licenses").exists()
    assert not (folder / "numbers.json").exists()
    for name, content in FILES.items():
        place = folder / name if name == "trust.jwks" else folder / "imported" / name
        assert place.read_text() == content


def test_cut_off_before_the_files_were_moved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: FolderImport) -> None:
        (folder / "numbers.json").rename(folder / "moved")  # cut off after the first of them
        (folder / "moved").rename(folder / "imported-numbers")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FolderImport, "set_aside", die)
        with pytest.raises(KeyboardInterrupt):
            Store.in_folder(folder)
    with Store.in_folder(folder) as store:
        check_all_is_there(store)
    assert not (folder / "licenses").exists()


def test_upgrade_by_command_takes_them_over_too(folder: Path) -> None:
    with Store.open(str(folder)) as store:
        assert store.upgrade()
        check_all_is_there(store)


def test_into_postgresql(folder: Path, postgres_url: str) -> None:
    with Store.open(postgres_url) as store:
        store.upgrade()
        assert store.import_folder(folder)
        check_all_is_there(store)
        assert not store.import_folder(folder)
    assert not (folder / "keys").exists()


def test_a_database_in_use_takes_nothing_over(folder: Path, postgres_url: str) -> None:
    with Store.open(postgres_url) as store:
        store.upgrade()
        with store.transaction() as transaction:
            transaction.put_setting("x", b"")
        store.import_folder(folder)
        for name, content in FILES.items():
            path = folder / name
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.write_text(content)
        with pytest.raises(PlaneError) as refused:
            store.import_folder(folder)
        assert refused.value.code is ExitCode.REFUSED
    assert (folder / "numbers.json").exists()


def test_files_that_come_later_stay(tmp_path: Path) -> None:
    root = tmp_path / "state"
    Store.in_folder(root).close()
    (root / "numbers.json").write_text(FILES["numbers.json"])
    Store.in_folder(root).close()
    assert (root / "numbers.json").exists()


def torn(name: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        (root / name).write_text(FILES[name][:-20])

    return damage


def edited(name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        text = FILES[name].replace(old, new)
        assert text != FILES[name]
        (root / name).write_text(text)

    return damage


KEY = next(name for name in FILES if name.startswith("keys/"))
WEB = "licenses/acme-web.json"


@pytest.mark.parametrize(
    "damage",
    [
        torn("numbers.json"),
        torn("trust.jwks"),
        torn(KEY),
        torn(WEB),
        edited(WEB, '"number": 2', '"number": "2"'),
        edited(WEB, '"jti": "acme-web"', '"jti": "other"'),
        edited(WEB, '"issues"', '"issue"'),
        edited("numbers.json", "4", "3"),
        edited("numbers.json", "4", "0"),
        edited(KEY, '"issuer"', '"owner"'),
        lambda root: (root / "numbers.json").unlink(),
    ],
)
def test_damage_stops_all_of_it(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    before = sorted(path.name for path in folder.rglob("*.*") if "licplane.db" not in path.name)
    with pytest.raises(PlaneError) as refused:
        Store.in_folder(folder)
    assert refused.value.code is ExitCode.INTERNAL
    assert str(folder) in refused.value.message
    after = sorted(path.name for path in folder.rglob("*.*") if "licplane.db" not in path.name)
    assert after == before
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    with Store.in_folder(folder) as store:
        check_all_is_there(store)


def test_two_licenses_with_one_number(folder: Path) -> None:
    edited("licenses/acme-web.json", '"number": 2', '"number": 1')(folder)
    with pytest.raises(PlaneError):
        Store.in_folder(folder)
    assert (folder / "numbers.json").exists()


def test_the_tokens_still_verify(folder: Path) -> None:
    with Store.in_folder(folder) as store, store.reading() as reader:
        trust = TrustStore.from_bytes(reader.setting("trust.jwks") or b"")
        active = TrustStore([type(key)(key.kid, key.public_key, key.issuer) for key in trust])
        for record in reader.licenses():
            for issue in record.issues:
                license = verify_license(issue.token.encode(), active)
                assert (license.jti, license.number) == (record.jti, record.number)
