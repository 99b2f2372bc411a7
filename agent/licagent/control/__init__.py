# SPDX-License-Identifier: Apache-2.0
import os

# Read by gRPC when it is first imported; why this suite: licagent.control.transport.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES128-GCM-SHA256"
