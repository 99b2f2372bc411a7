# SPDX-License-Identifier: Apache-2.0
"""Which licenses there are on this host: of files and of a control plane, verified, on record."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from licagent.daemon.licensing.files import (
    Held,
    Refused,
    file_name,
    files_in,
    refusal_of,
    write_durably,
)
from licagent.domain.clock import TrustedClock
from licagent.host.posture import boottime_ns
from licagent.store.errors import StoreError
from licagent.store.licenses import LicenseRecords, Statement
from lictoken.claims import AUDIENCE, License
from lictoken.errors import Refusal, TokenError
from lictoken.revocation import Revocation, RevocationAction, verify_revocation
from lictoken.trust import KeyStatus, TrustStore
from lictoken.validity import Standing, standing
from lictoken.verify import read_license_file, verify_license

_log: Final = logging.getLogger(__name__)


class LicenseSet:
    """The licenses of one host, and the statements about them."""

    def __init__(
        self, folder: Path, trust_path: Path, records: LicenseRecords, clock: TrustedClock
    ) -> None:
        self._folder = folder
        self._trust_path = trust_path
        self._records = records
        self._clock = clock
        self._filed: dict[str, Held] = {}
        self._managed: dict[str, Held] = {}
        self._filed_refused: tuple[Refused, ...] = ()
        self._managed_refused: tuple[Refused, ...] = ()
        self._verified_with = b""
        self._verified: dict[bytes, License] = {}
        self.trust = self._managed_trust = TrustStore()
        self.trust_problem = ""
        self.held: dict[str, Held] = {}
        self.refused: tuple[Refused, ...] = ()

    def load(self) -> None:
        """Read trust and all files again. A bad file costs only itself."""
        self.load_trust()
        held: dict[str, Held] = {}
        refused: list[Refused] = []
        with self._records.batch():
            for path in files_in(self._folder, ".rev"):
                try:
                    self.take_statement(read_license_file(path), by=f"file {path.name}")
                except (TokenError, StoreError, OSError) as error:
                    refused.append(refusal_of(path.name, error))
            verified: list[Held] = []
            for path in files_in(self._folder, ".lic"):
                try:
                    text = read_license_file(path)
                    verified.append(Held(self._verify(text), path, text))
                except (TokenError, OSError) as error:
                    refused.append(refusal_of(path.name, error))
            # Newest first: an older generation is a replay, whatever its file is called.
            for one in sorted(verified, key=lambda each: -each.license.generation):
                try:
                    self._accept(one.license)
                except StoreError as error:
                    refused.append(refusal_of(Path(one.origin).name, error))
                    continue
                held.setdefault(one.license.jti, one)
        self._filed = held
        self._filed_refused = tuple(refused)
        self._verify_managed({jti: one.text for jti, one in self._managed.items()}, again=True)
        self._verified = {one.text: one.license for one in (*verified, *self._managed.values())}
        self._join()
        _tell(self.refused)

    def _verify(self, text: bytes) -> License:
        """The license in it. TokenError. What has verified by the trust of now is remembered.

        While signatures are verified no revocation is carried out.
        """
        found = self._verified.get(text)
        if found is None:
            found = self._verified[text] = verify_license(text, self.trust)
        return found

    def load_trust(self) -> None:
        """Read the trust file. Without a good one nothing verifies: nobody is let in.

        The control plane's keys count beside those of the file, and a host that has them needs
        none. A key that either of the two retires is retired.
        """
        self.trust_problem = ""
        trust = self._managed_trust
        if not len(trust) or self._trust_path.exists():
            try:
                filed = TrustStore.load(self._trust_path)
            except (TokenError, OSError) as error:
                self.trust_problem = str(error)
            else:
                retired = (key for key in trust if key.status is KeyStatus.RETIRED)
                trust = TrustStore((*trust, *filed, *retired))
        if trust.to_bytes() != self.trust.to_bytes():
            self._verified.clear()
        self.trust = trust

    def set_managed_trust(self, keys: TrustStore) -> None:
        """The issuers' keys that the control plane names."""
        self._managed_trust = keys
        self.load_trust()

    def _accept(self, found: License, *, confirmed: bool = False) -> None:
        """Put a verified license on record. StoreError where it may not stand beside others."""
        self._records.accept(
            found.jti, found.number, found.generation, issuer=found.issuer, confirmed=confirmed
        )
        self._clock.observe_signed(found.issued_at_s, boottime_ns())

    def take_statement(self, text: bytes, by: str) -> tuple[Revocation, bool]:
        """Verify a signed revocation, suspension or reinstatement, and put it on record.

        False in the second place if it was on record.
        """
        found = verify_revocation(text, self.trust)
        statement = Statement(
            id=found.jti,
            license=found.license,
            issuer=found.issuer,
            action=found.action.value,
            generation=found.generation,
            reason=found.reason,
            at_s=found.issued_at_s,
            by=by,
        )
        is_new = self._records.record(statement)
        self._clock.observe_signed(found.issued_at_s, boottime_ns())
        return found, is_new

    def revoke_here(self, jti: str, reason: str, by: str) -> bool:
        """Revoke on this host, for all generations up to the newest; False if it was."""
        held = self.held.get(jti)
        if held is not None and self.revocation(held.license) is not None:
            return False
        generation = max(self._records.newest_generation(jti), 1)
        identity = f"local-{time.time_ns():x}-{os.getpid()}"
        self._records.record(
            Statement(identity, jti, "", "revoke", generation, reason, int(time.time()), by)
        )
        return True

    def revocation(self, license_: License) -> Statement | None:
        """The statement that ends this generation of a license, if one does.

        Only the license's own issuer and this host's root may end it. What root revoked here,
        the issuer may reinstate; what the issuer revoked is revoked for good.
        """
        concerning = [
            each
            for each in self._records.statements(license_.jti)
            if each.generation >= license_.generation and each.issuer in ("", license_.issuer)
        ]
        issued = [each for each in concerning if each.issuer]
        if standing(license_, map(_as_revocation, issued)) is not Standing.ACTIVE:
            return next(each for each in reversed(issued) if each.action != "reinstate")
        for each in concerning:
            if not each.issuer and not any(
                later.action == "reinstate" and later.at_s >= each.at_s for later in issued
            ):
                return each
        return None

    # --- what the control plane says

    def set_managed(self, tokens: Mapping[str, bytes]) -> tuple[Refused, ...]:
        """The licenses that the control plane delivers, whole, by jti; those refused.

        They are verified like files. Of a managed one and a file of the same jti the higher
        generation counts, and the managed one where they are equal.
        """
        if self.trust.to_bytes() != self._verified_with:
            self.load()  # what other keys signed, or keys that are gone, is judged again
        with self._records.batch():
            self._verify_managed(tokens)
        self._join()
        _tell(self._managed_refused)
        return self._managed_refused

    def managed(self) -> Mapping[str, Held]:
        """The licenses that the control plane delivers, for `put_back`."""
        return self._managed

    def put_back(self, managed: Mapping[str, Held]) -> None:
        """Undo a `set_managed` that came to nothing.

        Not by delivering the old ones again: they may be of a generation that is on record as
        replaced by now.
        """
        self._managed = dict(managed)
        self._managed_refused = ()
        self._join()

    def _verify_managed(self, tokens: Mapping[str, bytes], *, again: bool = False) -> None:
        managed: dict[str, Held] = {}
        refused: list[Refused] = []
        for jti, text in tokens.items():
            known = self._managed.get(jti)
            if known is not None and known.text == text and not again:
                managed[jti] = known
                continue
            try:
                found = self._verify(text)
                if found.jti != jti:
                    raise TokenError(Refusal.BAD_VALUE, f"its jti is {found.jti}, not {jti}")
                filed = self._filed.get(jti)
                is_old = filed is not None and filed.license.generation > found.generation
                # One that is held is on record; after `put_back` a newer one may be, too.
                if not is_old and (known is None or known.text != text):
                    self._accept(found, confirmed=True)
                managed[jti] = Held(found, None, text)
            except (TokenError, StoreError) as error:
                refused.append(refusal_of(f"{jti} (control plane)", error))
        self._managed = managed
        self._managed_refused = tuple(refused)
        self._verified_with = self.trust.to_bytes()

    def _join(self) -> None:
        held = dict(self._filed)
        for jti, one in self._managed.items():
            filed = held.get(jti)
            if filed is None or filed.license.generation <= one.license.generation:
                held[jti] = one
        self.held = held
        self.refused = (*self._filed_refused, *self._managed_refused)
        if len(self._verified) > 2 * (len(self._filed) + len(self._managed)):
            texts = {one.text for one in (*self._filed.values(), *self._managed.values())}
            self._verified = {text: one for text, one in self._verified.items() if text in texts}

    def store(self, text: bytes) -> tuple[License, Path, bool]:
        """Verify a license and keep its file; False in the third place if it was there.

        Raises:
            TokenError: it does not verify, with a named refusal.
            StoreError: what this host has seen before speaks against it (`LicenseRecords.accept`).
        """
        found = self._verify(text)
        self._accept(found, confirmed=True)
        path = self._folder / f"{file_name(found.jti)}.lic"
        held = self._filed.get(found.jti)
        if held is not None and held.file is not None and held.text == text:
            return found, held.file, False
        write_durably(path, text)
        if held is not None and held.file is not None and held.file != path:
            held.file.unlink(missing_ok=True)
        self._filed[found.jti] = Held(found, path, text)
        self._join()
        return found, path, True

    def forget(self, jti: str) -> bool:
        """Remove a license's file; False if there was none. A managed license has none."""
        held = self._filed.pop(jti, None)
        if held is None or held.file is None:
            return False
        held.file.unlink(missing_ok=True)
        self._join()
        return True


def _tell(refused: Sequence[Refused]) -> None:
    for problem in refused:
        _log.warning("%s refused: %s (%s)", problem.file, problem.detail, problem.reason)


def _as_revocation(statement: Statement) -> Revocation:
    return Revocation(
        jti=statement.id,
        issuer=statement.issuer,
        audience=AUDIENCE,
        issued_at_s=statement.at_s,
        license=statement.license,
        action=RevocationAction(statement.action),
        generation=statement.generation,
        reason=statement.reason,
    )
