"""A request for each operation that is answered with success, by the path of the operation."""

from __future__ import annotations

from hashlib import sha256

import cbor2

LEAF = sha256(b"\x00" + b"entry 1 1").hexdigest()

EXAMPLES = {
    "/checkpoint": "/checkpoint",
    "/tile/entries/{number}": "/tile/entries/000",
    "/tile/{level}/{number}": "/tile/0/000",
    "/add": "/add",
    "/v1/entries": "/v1/entries",
    "/v1/entries/batch": "/v1/entries/batch",
    "/v1/entries/{index}": "/v1/entries/3",
    "/v1/proofs/inclusion/{index}/{size}": "/v1/proofs/inclusion/3/700",
    "/v1/proofs/consistency/{from}/{to}": "/v1/proofs/consistency/3/700",
    "/v1/proofs": "/v1/proofs",
    "/v1/leaves/{leafHash}": f"/v1/leaves/{LEAF}",
    "/v1/checkpoints/stream": "/v1/checkpoints/stream",
    "/livez": "/livez",
    "/readyz": "/readyz",
    "/metrics": "/metrics",
    "/openapi.json": "/openapi.json",
}

BODIES = {
    "/add": ("application/octet-stream", b"example"),
    "/v1/entries": ("application/octet-stream", b"example"),
    "/v1/entries/batch": ("application/cbor", cbor2.dumps([b"example", b"another"])),
    "/v1/proofs": ("application/json", b'{"indexes": [3]}'),
}
