# SPDX-License-Identifier: Apache-2.0
"""The files by which an administrator signs in to a server.

An identity file is PEM: a private key, its certificate and the server's CA. A token file is the
bearer token in its first line and the server's CA as PEM below it. `licplane admin create` writes
both, with mode 0600, and files that others may read are refused.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from licplane.errors import ExitCode, PlaneError

_MAX_BYTES: Final = 256 * 1024
_BLOCK: Final = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]+)-----\r?\n[A-Za-z0-9+/=\r\n]+-----END \1-----\r?\n?"
)
_BEARER: Final = re.compile(rb"[\x21-\x7e]{16,4096}")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a TLS client needs; the unused half is None or ""."""

    ca_pem: bytes
    private_key_pem: bytes | None = field(default=None, repr=False)
    certificate_pem: bytes | None = None
    bearer: str = field(default="", repr=False)


def read_credentials(identity: Path | None, token_file: Path | None) -> Credentials:
    """The credential in one of the two files. Raises PlaneError."""
    if identity is not None:
        return _identity(identity, _read(identity))
    if token_file is not None:
        return _token(token_file, _read(token_file))
    raise PlaneError(
        ExitCode.USAGE, "There is no credential", "Give --identity FILE or --token-file FILE"
    )


def token_file_text(token: str, ca_pem: str) -> str:
    """What a token file holds."""
    return f"{token}\n{ca_pem}"


def _identity(path: Path, data: bytes) -> Credentials:
    keys, certificates = [], []
    for match in _BLOCK.finditer(data):
        if match[1].endswith(b"PRIVATE KEY"):
            keys.append(match[0])
        elif match[1] == b"CERTIFICATE":
            certificates.append(match[0])
    if len(keys) != 1 or len(certificates) < 2:
        raise _bad(
            path,
            f"has {len(keys)} private keys and {len(certificates)} certificates, not one key,"
            " its certificate and the server's CA",
        )
    # The leaf comes first, and the server's roots last: more than one while they change.
    roots = [one for one in certificates[1:] if _is_root(one)] or certificates[-1:]
    return Credentials(
        ca_pem=b"".join(roots),
        private_key_pem=keys[0],
        certificate_pem=b"".join(one for one in certificates if one not in roots),
    )


def _is_root(pem: bytes) -> bool:
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(pem)
        return found.subject == found.issuer
    except ValueError:
        return False


def _token(path: Path, data: bytes) -> Credentials:
    first, _, rest = data.partition(b"\n")
    authorities = [match[0] for match in _BLOCK.finditer(rest) if match[1] == b"CERTIFICATE"]
    if not _BEARER.fullmatch(first.strip()) or not authorities:
        raise _bad(path, "is not a token in the first line and the server's CA (PEM) below it")
    return Credentials(ca_pem=b"".join(authorities), bearer=first.strip().decode("ascii"))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise PlaneError(
            ExitCode.NOT_FOUND,
            f"There is no credential file {path}",
            "Make one with `licplane admin create` on the server's machine",
        ) from error
    if mode & 0o077:
        raise PlaneError(
            ExitCode.PERMISSION,
            f"Others may read {path} (mode {mode:04o})",
            f"Treat it as exposed and make a new one, or at least: chmod 0600 {path}",
        )
    if len(data) > _MAX_BYTES:
        raise _bad(path, f"has more than {_MAX_BYTES // 1024} KiB")
    return data


def _bad(path: Path, what: str) -> PlaneError:
    return PlaneError(
        ExitCode.REFUSED, f"{path} {what}", "Make one with `licplane admin create --out FILE`"
    )
