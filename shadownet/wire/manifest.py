"""The public description of a bundle. Untrusted: it informs people, the enclave takes nothing from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shadownet.wire.errors import BundleError

MAX_MANIFEST = 16 << 20
VERSION = 2


def read_manifest(bundle: Path) -> dict[str, Any]:
    """Read and check ``manifest.json``. Raises ``BundleError``."""
    path = bundle / "manifest.json"
    try:
        if not bundle.is_dir():
            raise BundleError(f"{bundle} is not a bundle", "shadownet convert makes one")
        with open(path, "rb") as file:
            body = file.read(MAX_MANIFEST + 1)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}", "is this a bundle?") from None
    try:
        record = json.loads(body) if len(body) <= MAX_MANIFEST else None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("format") != "shadownet-bundle":
        raise BundleError(f"{path} is damaged or no manifest")
    if record.get("version") != VERSION:
        raise BundleError(
            f"the bundle has format version {str(record.get('version'))[:20]}, this program reads version {VERSION}",
            "convert the model again",
        )
    if not isinstance(record.get("layers"), list) or not isinstance(record.get("options"), dict):
        raise BundleError(f"{path} is damaged or no manifest")
    return record
