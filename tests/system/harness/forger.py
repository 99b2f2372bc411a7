# SPDX-License-Identifier: Apache-2.0
"""Licenses with something wrong in them, each with a signature as good as the attack allows."""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.kernel.harness.agent import ISSUER, AgentUnderTest

from lictoken import base64url
from lictoken.armour import Label, armour
from lictoken.keys import SigningKey
from lictoken.trust import TrustedKey, TrustStore

Claims = dict[str, Any]


class Forger:
    """Signs whatever it is told with the agent's own issuer key, or another."""

    def __init__(self, agent: AgentUnderTest) -> None:
        self.agent = agent
        self.number = 0
        """The number of the license "acme"."""
        self.retired = SigningKey.create(ISSUER)
        self.second = SigningKey.create("second-issuer")
        trust = TrustStore(
            [
                TrustedKey.of(agent.key.public_key, ISSUER),
                TrustedKey.of(self.retired.public_key, ISSUER).retired(),
                TrustedKey.of(self.second.public_key, "second-issuer"),
            ]
        )
        (agent.config / "trust.jwks").write_bytes(trust.to_bytes())

    def claims(self, jti: str = "forged", **changes: object) -> Claims:
        """The claims of a good license, with a.b as a__b changed."""
        token = self.agent.token(jti, ["db"])
        body = "".join(line for line in token.splitlines() if "-----" not in line)
        claims: Claims = json.loads(base64url.decode(body.split(".")[1], "payload"))
        for path, value in changes.items():
            *way, last = path.split("__")
            place = claims
            for step in way:
                place = place[step]
            place[last] = value
        return copy.deepcopy(claims)

    def sign(
        self, claims: Claims | bytes, key: SigningKey | None = None, **header: object
    ) -> bytes:
        """An armoured token."""
        key = key or self.agent.key
        head = {"alg": "Ed25519", "typ": "licagent-license+jwt", "kid": key.kid, **header}
        payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
        signed = f"{base64url.encode(json.dumps(head).encode())}.{base64url.encode(payload)}"
        if head["alg"] == "HS256":
            signature = hmac.new(key.public_key, signed.encode(), hashlib.sha512).digest()
        elif head["alg"] == "none":
            signature = b"\0" * 64
        else:
            private = Ed25519PrivateKey.from_private_bytes(key.secret)
            signature = private.sign(signed.encode())
        return armoured(f"{signed}.{base64url.encode(signature)}")


def armoured(token: str) -> bytes:
    """A token as a .lic file has it."""
    return armour(token, Label.LICENSE).encode()


Attack = Callable[[Forger], bytes]


def _raw(forger: Forger, old: str, new: str) -> bytes:
    text = json.dumps(forger.claims())
    assert old in text
    return forger.sign(text.replace(old, new, 1).encode())


def _twice(forger: Forger) -> bytes:
    return _raw(forger, '"jti":', '"jti": "other", "jti":')


def _deep(forger: Forger) -> bytes:
    return forger.sign(forger.claims(lic__conditions=json.loads("[" * 60 + "]" * 60)))


ATTACKS: Final[dict[str, tuple[str, Attack]]] = {
    # what is done: (the refusal's name, how)
    "alg none": ("wrong-algorithm", lambda f: f.sign(f.claims(), alg="none")),
    "HS256 with the public key": ("wrong-algorithm", lambda f: f.sign(f.claims(), alg="HS256")),
    "another alg": ("wrong-algorithm", lambda f: f.sign(f.claims(), alg="ES256")),
    "unknown kid": ("unknown-key", lambda f: f.sign(f.claims(), SigningKey.create(ISSUER))),
    "path-like kid": ("bad-key-id", lambda f: f.sign(f.claims(), kid="../../etc/passwd")),
    "key in the header": ("key-in-header", lambda f: f.sign(f.claims(), jwk={"kty": "OKP"})),
    "unknown crit": ("unknown-critical", lambda f: f.sign(f.claims(), crit=["exp"])),
    "retired key": ("retired-key", lambda f: f.sign(f.claims(), f.retired)),
    "wrong audience": ("wrong-audience", lambda f: f.sign(f.claims(aud="other"))),
    "wrong issuer": ("wrong-issuer", lambda f: f.sign(f.claims(iss="second-issuer"))),
    "wrong purpose": (
        "wrong-purpose",
        lambda f: f.sign(f.claims(), typ="licagent-revocation+jwt"),
    ),
    "changed after it was signed": (
        "bad-signature",
        lambda f: f.sign(f.claims(), SigningKey.create(ISSUER), kid=f.agent.key.kid),
    ),
    "truncated": ("truncated", lambda f: f.sign(f.claims())[:300]),
    "trailing bytes": ("trailing-data", lambda f: f.sign(f.claims()) + b"and more"),
    "duplicate keys": ("duplicate-key", _twice),
    "bad UTF-8": ("bad-utf8", lambda f: f.sign(b'{"iss":"\xff"}')),
    "NaN": ("bad-number", lambda f: f.sign(b'{"exp":NaN}')),
    "overflowing number": ("bad-number", lambda f: f.sign(b'{"exp":' + b"9" * 400 + b"}")),
    "negative number": ("bad-number", lambda f: f.sign(f.claims(lic__number=-1))),
    "deep nesting": ("too-deep", _deep),
    "no license at all": ("bad-encoding", lambda _f: b"hello\n"),
    "empty": ("truncated", lambda _f: b""),
    "torn": ("truncated", lambda f: f.sign(f.claims())[:200] + b"\0" * 300),
    "id of another issuer": (
        "id-taken",
        lambda f: f.sign(f.claims("acme", iss="second-issuer"), f.second),
    ),
    "number of another license": (
        "number-taken",
        lambda f: f.sign(f.claims("usurper", lic__number=f.number)),
    ),
    "replayed generation": (
        "replayed",
        lambda f: f.sign(f.claims("renewed", lic__generation=1)),
    ),
}
