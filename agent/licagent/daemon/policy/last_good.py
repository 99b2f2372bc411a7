# SPDX-License-Identifier: Apache-2.0
"""The policy that was in force last, on the disk: for a boot at which the files are broken."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Final

from licagent.daemon.control.managed import Managed
from licagent.daemon.policy.compiled import Texts
from licagent.domain.policy import Policy, PolicyError
from licagent.domain.policy_documents import (
    Document,
    DocumentKind,
    document_of,
    parse_documents,
)
from licagent.domain.policy_model import Resource
from licagent.store.errors import DocumentDamaged, StoreError
from licagent.store.statedir import StateDir

_log: Final = logging.getLogger(__name__)

_DOCUMENT: Final = "last-good-policy"
_SPARE: Final = "last-good-policy-spare"
_SCHEMA: Final = "licagent.policy/1"
_RESOURCES: Final = "control-resources"
_RESOURCES_SCHEMA: Final = "licagent.control-resources/1"
_NONE: Final = Policy()


class LastGoodPolicy:
    """Keeps the host's own files as they were in force, and what the control plane protected."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._remembered: Mapping[str, Resource] | None = None
        self._texts: tuple[tuple[str, str], ...] | None = None  # None: not known to be kept

    def remember(self, texts: Texts) -> None:
        """Keep a policy that is in force, for a boot at which the files are broken."""
        if tuple(texts) == self._texts:
            return
        self._texts = None
        body = {"files": [list(pair) for pair in texts]}
        for name in (_SPARE, _DOCUMENT):
            self._state.write_document(name, _SCHEMA, body)
        self._texts = tuple(texts)

    def texts(self) -> tuple[tuple[str, str], ...] | None:
        """What `remember` kept; None where there never was anything.

        Raises:
            DocumentDamaged: there was something, and no copy of it can be read.
        """
        damage: DocumentDamaged | None = None
        for document in (_DOCUMENT, _SPARE):
            try:
                body = self._state.read_document(document, _SCHEMA)
            except DocumentDamaged as error:
                _log.error("%s", error)
                damage = error
                continue
            if body is not None:
                return tuple((str(name), str(text)) for name, text in body["files"])
        if damage is not None:
            raise damage
        return None

    def remember_resources(self, managed: Managed) -> None:
        """Keep the names of what the control plane protects.

        Should its catalog be lost on this host, they are enforced all the same, with nobody
        let in, until it has come again.
        """
        if managed.resources == self._remembered:
            return
        body = {"resources": [document_of(each) for each in managed.resources.values()]}
        self._state.write_document(_RESOURCES, _RESOURCES_SCHEMA, body)
        self._remembered = managed.resources

    def recall_resources(self) -> Policy:
        """What `remember_resources` kept; nothing where there is nothing, or it is damaged."""
        try:
            body = self._state.read_document(_RESOURCES, _RESOURCES_SCHEMA)
            if body is None:
                return _NONE
            return parse_documents(
                Document(DocumentKind.RESOURCE, str(table["name"]), json.dumps(table).encode())
                for table in body["resources"]
            )
        except (StoreError, PolicyError) as error:
            _log.error("the control plane's resources are not known: %s", error)
            return _NONE
