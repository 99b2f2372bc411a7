# SPDX-License-Identifier: Apache-2.0
"""licapi.control.v1 over gRPC: the listeners, and what stands between them and the service.

Importing this package comes before gRPC is imported, and settles what its TLS may negotiate.
"""

from __future__ import annotations

import os
from typing import Final

TLS_CIPHER_SUITES: Final = "ECDHE-RSA-AES128-GCM-SHA256"
"""gRPC for Python cannot ask for TLS 1.3 as the least version. This is the whole list for TLS
1.2, and needs an RSA certificate; ours are P-256, so no handshake of TLS 1.2 can end well. TLS
1.3 has suites of its own, which the variable does not touch."""

# gRPC reads it once, when it first makes credentials.
os.environ["GRPC_SSL_CIPHER_SUITES"] = TLS_CIPHER_SUITES
# Its core would tell of each connection that ends; what matters is in the metrics.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
