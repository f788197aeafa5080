"""Where the device key lies. Only the enclave and the owner's tools open it; everybody may name it."""

from __future__ import annotations

import os
from pathlib import Path


def resolve_key(key: str | os.PathLike[str] | None) -> Path:
    """``key``, else ``$SHADOWNET_KEY``, else ``device.key`` in the user's configuration directory."""
    if key is not None:
        return Path(key)
    if os.environ.get("SHADOWNET_KEY"):
        return Path(os.environ["SHADOWNET_KEY"])
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return Path(home) / "shadownet" / "device.key"
