"""Sealed files, as FORMAT.md specifies them: AES-256-GCM in chunks under a key derived from the device key."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from Crypto.Cipher import AES
from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import HKDF

from enclave.freshness import MAX_SERIAL
from shadownet.wire.errors import BundleError

MAGIC, VERSION = b"SHADOWNT", 2
CHUNK = 1 << 18  # an enclave with little memory reads them one by one
MAX_HEADER, MAX_SIZE = 4096, 1 << 34
_FIXED = struct.Struct("<8sHH")
TAG = 16

MANIFEST, ACCELERATOR, SEALED = "manifest.json", "accelerator.tflite", "enclave.sealed"
REFUSED = "the bundle cannot be opened: the key is not the one it was sealed for, or a file was changed"


@dataclass(frozen=True)
class Header:
    """The authenticated header. ``manifest`` and ``accelerator`` are SHA-256 in hex.

    ``lineage`` is the same for all versions of a bundle, ``serial`` counts them; see ``enclave.freshness``.
    """

    bundle: str
    manifest: str
    accelerator: str | None
    salt: str
    chunk: int
    size: int
    lineage: str
    serial: int

    def encode(self) -> bytes:
        body = json.dumps(vars(self), sort_keys=True, separators=(",", ":")).encode()
        return _FIXED.pack(MAGIC, VERSION, len(body)) + body


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(
    path: Path, plaintext: bytes | bytearray, device_key: bytes, bundle: str, public: Path,
    version: tuple[str, int],
) -> None:  # fmt: skip
    """Write ``plaintext`` to ``path``, bound to the public files in the directory ``public``, as ``version``
    (lineage, serial).

    Raises ``OSError`` if the file cannot be written; the caller removes what is there then.
    """
    accelerator = public / ACCELERATOR
    header = Header(
        bundle, file_sha256(public / MANIFEST), file_sha256(accelerator) if accelerator.exists() else None,
        os.urandom(32).hex(), CHUNK, len(plaintext), *version,
    )  # fmt: skip
    aad, key = header.encode(), derive(device_key, header.salt)
    view = memoryview(plaintext)
    with open(path, "xb", opener=_private) as file:
        file.write(aad)
        for number, start in enumerate(range(0, len(view), CHUNK)):
            cipher = cipher_of(key, number, start + CHUNK >= len(view), aad)
            ciphertext, tag = cipher.encrypt_and_digest(view[start : start + CHUNK])
            file.write(ciphertext)
            file.write(tag)
        file.flush()
        os.fsync(file.fileno())


def unseal(directory: Path, device_key: bytes) -> tuple[Header, bytearray]:
    """Open the sealed half of a bundle and check the public half against it: (header, plaintext).

    Raises ``BundleError``, the same for a wrong key and for a changed file.
    """
    try:
        with open(directory / SEALED, "rb") as file:
            header, aad = read_header(file)
            plaintext = _decrypt(file, header, aad, derive(device_key, header.salt))
        if file_sha256(directory / MANIFEST) != header.manifest:
            raise BundleError(REFUSED)
        if header.accelerator is not None and file_sha256(directory / ACCELERATOR) != header.accelerator:
            raise BundleError(REFUSED)
    except OSError as error:
        raise unreadable(error) from None
    return header, plaintext


def unreadable(error: OSError) -> BundleError:
    """The error for a bundle whose files cannot be read."""
    if isinstance(error, FileNotFoundError):
        return BundleError(f"the bundle has no {Path(error.filename).name}", "is this a bundle? convert makes one")
    return BundleError(f"the bundle cannot be read: {error.strerror or error}")


def public_half(directory: Path, header: Header) -> bytes:
    """The public model, whose hash an authenticated header holds. Raises ``BundleError`` if it is not that one."""
    try:
        content = (directory / ACCELERATOR).read_bytes()
    except OSError as error:
        raise unreadable(error) from None
    if hashlib.sha256(content).hexdigest() != header.accelerator:
        raise BundleError(REFUSED)
    return content


def read_header(file: BinaryIO) -> tuple[Header, bytes]:
    """Parse the header of a sealed file: (header, its bytes). Nothing in it is authenticated yet."""
    fixed = file.read(_FIXED.size)
    if len(fixed) < _FIXED.size or fixed[:8] != MAGIC:
        raise BundleError(f"{SEALED} is not a sealed file", "is this a bundle? convert makes one")
    _, version, length = _FIXED.unpack(fixed)
    if version != VERSION:
        raise BundleError(
            f"the bundle has format version {version}, this program reads version {VERSION}", "convert the model again"
        )
    body = file.read(length) if 0 < length <= MAX_HEADER else b""
    if not body or len(body) != length:
        raise BundleError(REFUSED)
    return _parse_header(body), fixed + body


def _parse_header(body: bytes) -> Header:
    try:
        record: Any = json.loads(body)
        header = Header(**record)
        hexes = [(header.bundle, 32), (header.manifest, 64), (header.salt, 64), (header.lineage, 32)]
        hexes += [(header.accelerator, 64)] if header.accelerator is not None else []
        sound = all(isinstance(h, str) and len(h) == n and bytes.fromhex(h) for h, n in hexes)
        sound = sound and type(header.chunk) is int and 1 << 16 <= header.chunk <= 1 << 26
        sound = sound and type(header.size) is int and 1 <= header.size <= MAX_SIZE
        sound = sound and type(header.serial) is int and 0 <= header.serial <= MAX_SERIAL
    except (ValueError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise BundleError(REFUSED)
    return header


def _decrypt(file: BinaryIO, header: Header, aad: bytes, key: bytes) -> bytearray:
    chunks = check_size(file, header, aad)
    out = bytearray(header.size)
    for number in range(chunks):
        start = number * header.chunk
        size = min(header.chunk, header.size - start)
        data, tag = file.read(size), file.read(TAG)
        cipher = cipher_of(key, number, number == chunks - 1, aad)
        try:
            cipher.decrypt(data, output=memoryview(out)[start : start + size])
            cipher.verify(tag)
        except ValueError:
            raise BundleError(REFUSED) from None
    return out


def check_size(file: BinaryIO, header: Header, aad: bytes) -> int:
    """The number of chunks. Raises ``BundleError`` for a file of another size, before anything is allocated for it."""
    chunks = -(-header.size // header.chunk)
    if os.fstat(file.fileno()).st_size - len(aad) != header.size + chunks * TAG:
        raise BundleError(REFUSED)
    return chunks


def derive(device_key: bytes, salt: str) -> bytes:
    key = HKDF(device_key, 32, bytes.fromhex(salt), SHA256, context=b"shadownet/seal/v1")
    assert isinstance(key, bytes)
    return key


def cipher_of(key: bytes, number: int, last: bool, aad: bytes) -> Any:
    cipher = AES.new(key, AES.MODE_GCM, nonce=number.to_bytes(11, "big") + bytes([last]), mac_len=TAG)
    cipher.update(aad)
    return cipher


def load_libraries() -> None:
    """Use everything once: pycryptodome loads its libraries late, which a memory limit could prevent."""
    cipher_of(derive(bytes(32), "00" * 32), 0, True, b"").encrypt_and_digest(b"")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
