"""Bundles on disk: the public half, atomic creation, and what the owner does with the sealed half."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from enclave import container, keys, sealing
from enclave.freshness import TRIAL, Counters
from shadownet.progress import note
from shadownet.wire.errors import BundleError, InputError
from shadownet.wire.manifest import VERSION, read_manifest
from shadownet.wire.paths import resolve_key

FORMAT = "shadownet-bundle"


def ensure_key(key: str | os.PathLike[str] | None) -> Path:
    """Where the device key is; a missing default key is made, and said so. A named one must exist."""
    path = resolve_key(key)
    if key is None and not path.exists():
        keys.create(path)
        note(f"made a device key at {path}")
    return path


@contextlib.contextmanager
def new_directory(target: Path, overwrite: bool) -> Iterator[Path]:
    """Give a temporary directory that takes ``target``'s place when the block succeeds, and goes when it fails."""
    try:
        _check_target(target, overwrite)
    except OSError as error:  # such as a name that is too long
        raise InputError(f"cannot write {target}: {error.strerror}", "choose another name with -o") from None
    work = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        work.mkdir(mode=0o755)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}") from None
    try:
        yield work
        _replace(work, target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}", "is the disk full?") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_target(target: Path, overwrite: bool) -> None:
    """Refuse to put a bundle where something else is."""
    if target.name in ("", "..") or target.resolve() == Path.cwd():
        raise InputError("a bundle needs a directory of its own", "give it a name with -o")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"{target} exists and is not a bundle", "choose another name with -o")
    if not target.exists():
        return
    if not overwrite:
        raise InputError(f"{target} exists already", "replace it with --overwrite, or choose another name with -o")
    foreign = {path.name for path in target.iterdir()} - {sealing.MANIFEST, sealing.ACCELERATOR, sealing.SEALED}
    if foreign:
        raise InputError(f"{target} holds other things than a bundle: {min(foreign)}", "choose another name with -o")


def _replace(work: Path, target: Path) -> None:
    """Rename ``work`` to ``target``; an old bundle steps aside first and is removed last."""
    if target.exists():
        old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
        os.rename(target, old)
        try:
            os.rename(work, target)
        except OSError:
            os.rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(work, target)


def write(
    directory: Path, manifest: dict[str, Any], accelerator: bytes, program: dict[str, Any], blobs: dict[str, Any],
    device_key: bytes,
) -> None:  # fmt: skip
    """Write the three files of a bundle into an empty directory, bound to each other; on trial until :func:`stamp`."""
    bundle = secrets.token_hex(16)
    public = None
    if accelerator:
        path = directory / sealing.ACCELERATOR
        path.write_bytes(accelerator)
        public = {"file": path.name, "bytes": len(accelerator), "sha256": sealing.file_sha256(path)}
    record = {"format": FORMAT, "version": VERSION, "bundle": bundle, "accelerator": public, **manifest}
    (directory / sealing.MANIFEST).write_text(json.dumps(record, indent=1) + "\n")
    version = secrets.token_hex(16), TRIAL
    sealing.seal(directory / sealing.SEALED, container.pack(program, blobs), device_key, bundle, directory, version)


def next_version(target: Path, key: Path) -> tuple[str, int]:
    """(lineage, serial) of a bundle that takes the place of ``target``: the next of its versions if the key opens it.

    Next after those that this device has opened, too, in case ``target`` came back from a backup. Raises
    ``BundleError``.
    """
    device_key = keys.load(key)
    try:
        header, _ = sealing.unseal(target, device_key)
    except BundleError:  # none is there, or another device's
        return secrets.token_hex(16), TRIAL + 1
    return header.lineage, max(header.serial, Counters(key, device_key).seen(header.lineage)) + 1


def stamp(directory: Path, device_key: bytes, version: tuple[str, int]) -> None:
    """Make a bundle on trial the given version."""
    header, plaintext = sealing.unseal(directory, device_key)
    (directory / sealing.SEALED).unlink()
    sealing.seal(directory / sealing.SEALED, plaintext, device_key, header.bundle, directory, version)


def reseal(
    source: str | os.PathLike[str], target: str | os.PathLike[str], key: Path, for_key: Path, overwrite: bool
) -> None:
    """Copy a bundle for another device: same public half and version, sealed half under the other device's key."""
    source, target = Path(source), Path(target)
    read_manifest(source)
    header, plaintext = sealing.unseal(source, keys.load(key))
    other = keys.load(for_key)
    if target.resolve() == source.resolve():
        raise InputError("the new bundle needs a name of its own", "choose another name with -o")
    with new_directory(target, overwrite) as work:
        for name in (sealing.MANIFEST, sealing.ACCELERATOR):
            if (source / name).exists():
                shutil.copyfile(source / name, work / name)
        version = header.lineage, header.serial
        sealing.seal(work / sealing.SEALED, plaintext, other, header.bundle, work, version)
        if sealing.file_sha256(work / sealing.MANIFEST) != header.manifest:
            raise BundleError(sealing.REFUSED)
