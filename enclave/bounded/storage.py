"""Files read piece by piece, each piece authenticated before anything of it is used, and pieces that are put away.

All three kinds of storage are in the normal world's hands: the sealed half (AES-256-GCM under the device's key), the
public model (hashes taken while the whole was hashed), and what this process itself puts away for later.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from Crypto.Cipher import AES

from enclave import sealing
from enclave.bounded.meter import Meter
from enclave.container import Place
from enclave.sealing import REFUSED, TAG, Header
from shadownet.wire.errors import BundleError, InputError, IntegrityError

Array = np.ndarray[Any, Any]

PAGE = 1 << 16  # bytes of the public model that are hashed together
_DIGEST = 32


class Paged:
    """Random access to ``size`` bytes in pages, the last one read being kept. Subclasses fill ``self._page``."""

    def __init__(self, size: int, page: int, meter: Meter) -> None:
        self.size, self.bytes_read, self.seconds = size, 0, 0.0
        self._page, self._held = meter.empty((min(page, size),), np.uint8), -1
        self._step = page

    def _load(self, number: int, page: Array) -> None:
        """Fill ``page`` with page ``number``. Raises ``BundleError`` unless it is authentic."""
        raise NotImplementedError

    def _fetch(self, number: int) -> Array:
        page = self._page[: min(self._step, self.size - number * self._step)]
        if number != self._held:
            self._held, began = -1, time.perf_counter()
            try:
                self._load(number, page)
            except OSError as error:
                raise BundleError(f"the bundle cannot be read: {error.strerror or error}") from None
            self._held = number
            self.bytes_read += page.size
            self.seconds += time.perf_counter() - began
        return page

    def read_into(self, at: int, out: Array) -> None:
        """Copy what lies at ``at`` (bytes) into the contiguous array ``out``. Raises ``BundleError``."""
        target, done = out.reshape(-1).view(np.uint8), 0
        if not 0 <= at <= at + target.size <= self.size:
            raise BundleError("the bundle's plan reaches beyond its files", "convert the model again")
        while done < target.size:
            number, inside = divmod(at + done, self._step)
            part = self._fetch(number)[inside : inside + target.size - done]
            target[done : done + part.size] = part
            done += part.size

    @property
    def pages(self) -> int:
        return -(-self.size // self._step)


class Sealed(Paged):
    """The plaintext of a sealed half. ``open`` verifies all of it once."""

    def __init__(self, file: BinaryIO, header: Header, aad: bytes, key: bytes, meter: Meter) -> None:
        super().__init__(header.size, header.chunk, meter)
        self._file, self._aad, self._key = file, aad, key
        self._sealed = meter.empty((self._page.size + TAG,), np.uint8)

    @classmethod
    def open(cls, directory: Path, device_key: bytes, meter: Meter) -> tuple[Header, Sealed]:
        """Check a bundle as ``sealing.unseal`` does, keeping nothing but what a piece needs. Raises as it does."""
        try:
            file = open(directory / sealing.SEALED, "rb", 0)  # noqa: SIM115  it lives as long as this object
            header, aad = sealing.read_header(file)
            sealing.check_size(file, header, aad)
            sealed = cls(file, header, aad, sealing.derive(device_key, header.salt), meter)
            for number in range(sealed.pages):
                sealed._fetch(number)
            if sealing.file_sha256(directory / sealing.MANIFEST) != header.manifest:
                raise BundleError(REFUSED)
        except OSError as error:
            raise sealing.unreadable(error) from None
        return header, sealed

    def _load(self, number: int, page: Array) -> None:
        sealed = self._sealed[: page.size + TAG]
        self._file.seek(len(self._aad) + number * (self._step + TAG))
        if self._file.readinto(sealed.data) != sealed.size:  # type: ignore[attr-defined]
            raise BundleError(REFUSED)
        cipher = sealing.cipher_of(self._key, number, number == self.pages - 1, self._aad)
        try:
            cipher.decrypt(sealed[: page.size].data, output=page.data)
            cipher.verify(sealed[page.size :].tobytes())
        except ValueError:
            page[:] = 0
            raise BundleError(REFUSED) from None


class PublicModel(Paged):
    """The public model, whose hash an authenticated header holds: what is read later is what was hashed then."""

    def __init__(self, path: Path, sha256: str, meter: Meter) -> None:
        """Raises ``BundleError`` if the file is not that one."""
        try:
            self._file = open(path, "rb", 0)  # noqa: SIM115
            size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise sealing.unreadable(error) from None
        super().__init__(max(size, 1), PAGE, meter)
        self._digests = meter.empty((self.pages, _DIGEST), np.uint8)
        whole = hashlib.sha256()
        self._checking = False
        for number in range(self.pages):
            page = self._fetch(number)
            whole.update(page.data)
            self._digests[number] = np.frombuffer(hashlib.sha256(page.data).digest(), np.uint8)
        self._checking, self._held = True, -1
        if whole.hexdigest() != sha256:
            raise BundleError(REFUSED)

    def _load(self, number: int, page: Array) -> None:
        self._file.seek(number * PAGE)
        if self._file.readinto(page.data) != page.size:
            raise BundleError(REFUSED)
        if self._checking and hashlib.sha256(page.data).digest() != self._digests[number].tobytes():
            raise BundleError(REFUSED)


class Blobs(Mapping[str, Array]):
    """The arrays of a sealed half by name, read each time they are asked for. Whoever asks counts them."""

    def __init__(self, sealed: Sealed, places: dict[str, Place]) -> None:
        self._sealed, self.places = sealed, places

    def __getitem__(self, name: str) -> Array:
        place = self.places[name]
        out = np.empty(place.shape, place.dtype)
        self._sealed.read_into(place.at, out)
        return out

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class Locker:
    """Pieces put away in an unlinked file, AES-256-GCM under a key that only this process has.

    A piece's number is its nonce and never serves twice, so what comes back is that piece or an error; whoever takes
    it asks once. The file's content is the normal world's to see and to change.
    """

    def __init__(self) -> None:
        self._key, self._file = os.urandom(32), tempfile.TemporaryFile(buffering=0)  # noqa: SIM115

    def _cipher(self, number: int) -> Any:
        return AES.new(self._key, AES.MODE_GCM, nonce=number.to_bytes(12, "big"), mac_len=TAG)

    def put(self, number: int, at: int, array: Array) -> None:
        """Put ``array``, which is overwritten, away at ``at`` (bytes). Raises ``InputError`` if there is no room."""
        plain = array.reshape(-1).view(np.uint8)
        cipher = self._cipher(number)
        cipher.encrypt(plain.data, output=plain.data)
        try:
            self._file.seek(at)
            written = self._file.write(plain.data) + self._file.write(cipher.digest())
        except OSError as error:
            raise InputError(f"masks cannot be put away: {error.strerror}", "prepare fewer sets") from None
        if written != plain.size + TAG:
            raise InputError("masks cannot be put away: no space is left", "prepare fewer sets")

    def take(self, number: int, at: int, out: Array) -> None:
        """Fill ``out`` with the piece. Raises ``IntegrityError`` if what was put away has been changed."""
        plain = out.reshape(-1).view(np.uint8)
        self._file.seek(at)
        read = self._file.readinto(plain.data)
        tag, cipher = self._file.read(TAG), self._cipher(number)
        try:
            cipher.decrypt(plain.data, output=plain.data)
            cipher.verify(tag)
        except ValueError:
            read = 0
        if read != plain.size:
            plain[:] = 0
            raise IntegrityError("masks that were put away came back changed")
