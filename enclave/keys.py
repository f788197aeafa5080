"""Device keys: 32 random bytes in a text file that only its owner may read."""

from __future__ import annotations

import os
from pathlib import Path

from shadownet.wire.errors import BundleError, InputError

_PREFIX = "shadownet-device-key-1 "


def create(path: Path) -> None:
    """Write a new key to ``path``, mode 0600. Raises ``InputError`` if that is impossible or something is there."""
    text = (_PREFIX + os.urandom(32).hex() + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InputError(f"cannot write the key {path}: {error.strerror}") from None
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise InputError(f"{path} exists already; a key is never overwritten", "choose another name with -o") from None
    except OSError as error:
        raise InputError(f"cannot write the key {path}: {error.strerror}") from None
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(text)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise InputError(f"cannot write the key {path}: {error.strerror}") from None


def load(path: Path) -> bytes:
    """Read a device key (32 bytes). Raises ``BundleError`` if it is missing or none."""
    try:
        with open(path, "rb") as file:
            text = file.read(256).decode("ascii", "replace")
    except FileNotFoundError:
        raise BundleError(f"there is no device key at {path}", "make one with: shadownet keygen") from None
    except OSError as error:
        raise BundleError(f"cannot read the device key {path}: {error.strerror}") from None
    try:
        key = bytes.fromhex(text.removeprefix(_PREFIX).strip())
    except ValueError:
        key = b""
    if not text.startswith(_PREFIX) or len(key) != 32:
        raise BundleError(f"{path} is not a device key", "make one with: shadownet keygen")
    return key
