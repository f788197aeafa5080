"""The highest version of each bundle that this device has opened: an older one is refused.

A simulation of what hardware has as a monotonic counter. The counters are a file beside the device key, authenticated
under a key of its own and written atomically; deleting it, or putting back an older copy of it, resets them, which no
file can prevent.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import HKDF

from shadownet.wire.errors import BundleError

TRIAL = 0  # the serial of a bundle on trial, which nobody hands out: not counted
MAX_SERIAL = 1 << 53
_MAX_BYTES = 16 << 20


class Counters:
    """The counters of the device whose key is at ``key_path``."""

    def __init__(self, key_path: Path, device_key: bytes) -> None:
        self._key_path = Path(os.path.realpath(key_path))
        self.path = self._key_path.with_name(f"{self._key_path.name}.counters")
        derived = HKDF(device_key, 32, b"", SHA256, context=b"shadownet/counters/v1")
        assert isinstance(derived, bytes)
        self._secret = derived

    def seen(self, lineage: str) -> int:
        """The highest version that was opened, 0 for none. Raises ``BundleError`` if the counters were changed."""
        return self._read().get(lineage, TRIAL)

    def admit(self, lineage: str, serial: int) -> None:
        """Note that this version was opened.

        Raises ``BundleError`` if a later one was before, or if the counters were changed or cannot be written.
        """
        if serial == TRIAL:
            return
        try:
            with self._locked():
                seen = self._read()
                if serial < seen.get(lineage, TRIAL):
                    raise BundleError(
                        f"the bundle is version {serial}; this device has opened version {seen[lineage]} already",
                        "an older bundle was put back; use the latest, or convert the model again with --overwrite",
                    )
                if serial > seen.get(lineage, TRIAL):
                    self._write(seen | {lineage: serial})
        except OSError as error:
            raise BundleError(
                f"the device's counters {self.path} cannot be kept: {error.strerror}",
                "the enclave must be able to write beside the device key",
            ) from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time. The key serves as the lock, since the counters' own file is replaced."""
        with open(self._key_path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _read(self) -> dict[str, int]:
        try:
            with open(self.path, "rb") as file:
                body = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return {}
        try:
            record: Any = json.loads(body) if len(body) <= _MAX_BYTES else None
            counters = record["counters"]
            if hmac.compare_digest(self._mac(counters), record["mac"]):
                return {str(lineage): int(serial) for lineage, serial in counters.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass
        raise BundleError(
            f"the device's counters {self.path} were changed, or are another key's",
            "put the right file back; without it this device no longer knows old bundles from new ones",
        )

    def _write(self, counters: dict[str, int]) -> None:
        body = json.dumps({"counters": counters, "mac": self._mac(counters)}).encode()
        work = self.path.with_name(f".{self.path.name}.tmp")  # under the lock, so nobody else's
        work.unlink(missing_ok=True)  # of one that was killed
        try:
            with open(os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            os.replace(work, self.path)
        finally:
            work.unlink(missing_ok=True)

    def _mac(self, counters: dict[str, int]) -> str:
        body = json.dumps(counters, sort_keys=True, separators=(",", ":")).encode()
        return hmac.new(self._secret, body, hashlib.sha256).hexdigest()
