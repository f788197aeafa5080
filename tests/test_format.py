"""enclave.sealed, read by a second implementation written from FORMAT.md alone, and everything done to break it."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from Crypto.Cipher import AES
from hypothesis import given
from hypothesis import strategies as st

import shadownet
from enclave import container, keys, sealing
from shadownet import bundle
from shadownet.wire.errors import BundleError, InputError

Array = np.ndarray[Any, Any]
KEY, ID = bytes(range(32)), "0123456789abcdef" * 2
VERSION = "fedcba9876543210" * 2, 7  # lineage and serial
FILES = ("manifest.json", "accelerator.tflite", "enclave.sealed")


# The second implementation. Nothing here comes from the packages.


def hkdf_sha256(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869."""
    secret = hmac.new(salt, key, hashlib.sha256).digest()
    out, block = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.new(secret, block + info + bytes([counter]), hashlib.sha256).digest()
        out += block
    return out[:length]


def test_hkdf_gives_the_first_vector_of_rfc_5869() -> None:
    okm = hkdf_sha256(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert okm.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"


def read_sealed(directory: Path, device_key: bytes) -> tuple[dict[str, Any], bytes]:
    """Open a bundle as FORMAT.md says: (header, plaintext). Fails by assertion or ``ValueError``."""
    data = (directory / "enclave.sealed").read_bytes()
    magic, version, length = struct.unpack_from("<8sHH", data)
    assert magic == b"SHADOWNT" and version == 2 and 1 <= length <= 4096
    associated, body = data[: 12 + length], data[12 + length :]
    header = json.loads(associated[12:].decode("utf-8"))
    assert set(header) == {"bundle", "manifest", "accelerator", "salt", "chunk", "size", "lineage", "serial"}
    assert 65536 <= header["chunk"] <= 67108864 and 1 <= header["size"] <= 2**34
    key = hkdf_sha256(device_key, bytes.fromhex(header["salt"]), b"shadownet/seal/v1", 32)
    plaintext, number = b"", 0
    while body:
        size = min(header["chunk"], header["size"] - len(plaintext))
        assert size > 0, "something follows the last chunk"
        last = len(plaintext) + size == header["size"]
        nonce = number.to_bytes(11, "big") + (b"\x01" if last else b"\x00")
        cipher = AES.new(key, AES.MODE_GCM, nonce=nonce, mac_len=16)
        cipher.update(associated)
        plaintext += cipher.decrypt_and_verify(body[:size], body[size : size + 16])
        body, number = body[size + 16 :], number + 1
    assert len(plaintext) == header["size"]
    for name, field in (("manifest.json", "manifest"), ("accelerator.tflite", "accelerator")):
        if header[field] is not None:
            assert hashlib.sha256((directory / name).read_bytes()).hexdigest() == header[field]
    return header, plaintext


def read_plaintext(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """The program and the blobs, as FORMAT.md lays them out."""
    (length,) = struct.unpack_from("<I", data)
    record = json.loads(data[4 : 4 + length].decode("utf-8"))
    base = -(-(4 + length) // 64) * 64
    assert not any(data[4 + length : base])
    blobs = {}
    for name, spec in record["blobs"].items():
        assert spec["offset"] % 64 == 0
        dtype = np.dtype(spec["dtype"]).newbyteorder("<")
        count = int(np.prod(spec["shape"], dtype=np.int64))
        blobs[name] = np.frombuffer(data, dtype, count, base + spec["offset"]).reshape(spec["shape"])
    return record["program"], blobs


# Bundles to work on


def make_bundle(directory: Path, plaintext: bytes, key: bytes = KEY, name: str = ID, public: bytes = b"model") -> Path:
    """The three files, with contents of our own; no public model if ``public`` is empty."""
    directory.mkdir(exist_ok=True)
    (directory / "manifest.json").write_bytes(b'{"format": "shadownet-bundle"}')
    if public:
        (directory / "accelerator.tflite").write_bytes(public)
    sealing.seal(directory / "enclave.sealed", plaintext, key, name, directory, VERSION)
    return directory


def refused(directory: Path, key: bytes = KEY) -> str:
    """The message of the refusal."""
    with pytest.raises(BundleError) as caught:
        sealing.unseal(directory, key)
    return str(caught.value)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle", b"the plan and the secrets")


@pytest.fixture
def chunked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four chunks, the last one short."""
    monkeypatch.setattr(sealing, "CHUNK", 65536)
    return make_bundle(tmp_path / "chunked", np.random.default_rng(0).bytes(3 * 65536 + 100))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What convert makes of a real model, and its key. Made once: take a copy."""
    folder = tmp_path_factory.mktemp("converted")
    keys.create(folder / "device.key")
    shadownet.convert(ROOT / "models/digits/digits_mlp.tflite", folder / "digits.shadow", key=folder / "device.key")
    return folder / "digits.shadow", folder / "device.key"


@pytest.fixture
def device_key(converted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The key of the copies that ``real`` gives."""
    monkeypatch.setenv("SHADOWNET_KEY", str(converted[1]))
    return converted[1]


@pytest.fixture
def real(tmp_path: Path, converted: tuple[Path, Path], device_key: Path) -> Path:
    """A copy of a converted model, to be damaged."""
    return Path(shutil.copytree(converted[0], tmp_path / "digits.shadow"))


# Written and read as specified


@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 131072, 200_000])
@pytest.mark.parametrize("public", [b"model", b""])
def test_the_second_implementation_reads_what_is_sealed(
    size: int, public: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "CHUNK", 65536)
    plaintext = np.random.default_rng(size).bytes(size)
    directory = make_bundle(tmp_path / "b", plaintext, public=public)
    header, opened = read_sealed(directory, KEY)
    assert opened == plaintext
    assert (header["bundle"], header["chunk"], header["size"]) == (ID, 65536, size)
    assert (header["accelerator"] is None) == (not public)
    assert bytes(sealing.unseal(directory, KEY)[1]) == plaintext


def test_the_second_implementation_reads_a_converted_model(real: Path, device_key: Path) -> None:
    header, plaintext = read_sealed(real, bytes.fromhex(device_key.read_text().split()[1]))
    program, blobs = read_plaintext(plaintext)
    assert header["chunk"] == 1 << 18
    assert set(program) >= {"checked", "entries", "layers", "signatures"}
    assert bytes(blobs["trusted"][4:8]) == b"TFL3"
    manifest = json.loads((real / "manifest.json").read_text())
    assert manifest["bundle"] == header["bundle"] and len(manifest["layers"]) == len(program["layers"]) > 0
    assert (manifest["format"], manifest["version"]) == ("shadownet-bundle", 2)
    public = manifest["accelerator"]
    assert public["sha256"] == header["accelerator"] and public["bytes"] == (real / public["file"]).stat().st_size
    assert sorted(os.listdir(real)) == sorted(FILES)


GOLDEN_HEADER = (
    b'{"accelerator":"9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4",'
    b'"bundle":"0123456789abcdef0123456789abcdef","chunk":16777216,'
    b'"lineage":"fedcba9876543210fedcba9876543210",'
    b'"manifest":"66b25cee0f0960b39f480872b22a7b26fe92af5f4c50455110f937a274a0b246",'
    b'"salt":"6465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f80818283","serial":7,"size":24}'
)
GOLDEN_CHUNK = "390b56f2685f0430cb5ad6df70274f49a1279f43c467f7c4a969e54cbf50ada1528d1f948b536682"


def test_golden_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed key, salt, id and files give these bytes for ever, or the version number has to change."""
    monkeypatch.setattr(os, "urandom", lambda size: bytes(range(100, 100 + size)))
    monkeypatch.setattr(sealing, "CHUNK", 16 << 20)
    directory = make_bundle(tmp_path / "golden", b"the plan and the secrets")
    sealed = b"SHADOWNT" + b"\x02\x00" + b"\x69\x01" + GOLDEN_HEADER + bytes.fromhex(GOLDEN_CHUNK)
    assert (directory / "enclave.sealed").read_bytes() == sealed
    assert bytes(sealing.unseal(directory, KEY)[1]) == read_sealed(directory, KEY)[1] == b"the plan and the secrets"


# Changed in any way


def test_a_wrong_key_and_a_changed_file_look_the_same(made: Path) -> None:
    wrong = refused(made, KEY[::-1])
    flip(made / "enclave.sealed", -1)
    assert refused(made) == wrong
    assert "key" in wrong and "changed" in wrong


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def header_size(directory: Path) -> int:
    data = (directory / "enclave.sealed").read_bytes()
    return 12 + int(struct.unpack_from("<H", data, 10)[0])


def expected_refusals(position: int) -> tuple[str, ...]:
    """Magic and version are refused by name, everything else as a changed file."""
    return ("not a sealed file",) if position < 8 else ("format version",) if position < 10 else (sealing.REFUSED,)


def test_every_byte_of_the_header_counts(made: Path) -> None:
    """Each bit of magic, version and length, one bit of each further byte."""
    original = (made / "enclave.sealed").read_bytes()
    for position in range(header_size(made)):
        for bit in range(8) if position < 12 else (position % 8,):
            flip(made / "enclave.sealed", position, bit)
            message = refused(made)
            assert any(words in message for words in expected_refusals(position)), (position, bit, message)
            (made / "enclave.sealed").write_bytes(original)


def test_every_byte_of_the_other_files_and_of_the_body_counts(made: Path) -> None:
    for name in FILES:
        original = (made / name).read_bytes()
        for position in range(header_size(made) if name == "enclave.sealed" else 0, len(original)):
            flip(made / name, position, position % 8)
            assert refused(made) == sealing.REFUSED, (name, position)
            (made / name).write_bytes(original)


@given(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_any_bit_of_a_converted_model_counts(real: Path, device_key: Path, name: str, where: float, bit: int) -> None:
    original = (real / name).read_bytes()
    position = int(where * len(original))
    flip(real / name, position, bit)
    message = refused(real, keys.load(device_key))
    expected = expected_refusals(position) if name == "enclave.sealed" else (sealing.REFUSED,)
    (real / name).write_bytes(original)
    assert any(words in message for words in expected)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0, 11, 100, -1])
def test_the_interpreter_refuses_a_changed_file(name: str, where: int, real: Path) -> None:
    """Also where a worker reads the file before the enclave has checked it."""
    flip(real / name, where, 2)
    with pytest.raises(BundleError):
        shadownet.Interpreter(real)


def test_the_interpreter_refuses_another_key_as_a_changed_file(real: Path, tmp_path: Path) -> None:
    keys.create(tmp_path / "other.key")
    with pytest.raises(BundleError, match=sealing.REFUSED):
        shadownet.Interpreter(real, key=tmp_path / "other.key")


@pytest.mark.parametrize("name", FILES)
def test_a_cut_or_longer_file_is_refused(name: str, made: Path) -> None:
    original = (made / name).read_bytes()
    for size in range(len(original)):
        (made / name).write_bytes(original[:size])
        message = refused(made)
        assert message == sealing.REFUSED or (name == "enclave.sealed" and size < 12 and "sealed file" in message)
    for extra in (b"\0", original, b"\0" * 16):
        (made / name).write_bytes(original + extra)
        assert refused(made) == sealing.REFUSED


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, made: Path) -> None:
    (made / name).unlink()
    assert name in refused(made)


def test_a_public_model_that_no_header_names_is_not_trusted(tmp_path: Path) -> None:
    """Nothing was outsourced; a model that appears later changes nothing."""
    directory = make_bundle(tmp_path / "b", b"secrets", public=b"")
    (directory / "accelerator.tflite").write_bytes(b"planted")
    header, plaintext = sealing.unseal(directory, KEY)
    assert header.accelerator is None and bytes(plaintext) == b"secrets"


# Chunks: 65,536 bytes and a tag each, behind the header


def chunks_of(directory: Path) -> tuple[bytes, list[bytes]]:
    data = (directory / "enclave.sealed").read_bytes()
    start = header_size(directory)
    step = 65536 + 16
    return data[:start], [data[i : i + step] for i in range(start, len(data), step)]


REARRANGED: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "first two swapped": lambda c: [c[1], c[0], *c[2:]],
    "first dropped": lambda c: c[1:],
    "middle dropped": lambda c: [c[0], *c[2:]],
    "last dropped": lambda c: c[:-1],
    "all dropped": lambda c: [],
    "first repeated": lambda c: [c[0], *c],
    "second in the place of the third": lambda c: [c[0], c[1], c[1], c[3]],
    "last repeated": lambda c: [*c, c[-1]],
    "tags swapped": lambda c: [c[0][:-16] + c[1][-16:], c[1][:-16] + c[0][-16:], *c[2:]],
    "cut within a chunk": lambda c: [*c[:2], c[2][:1000]],
    "cut within a tag": lambda c: [*c[:3], c[3][:-1]],
}


@pytest.mark.parametrize("name", REARRANGED)
def test_chunks_stay_where_and_what_they_are(name: str, chunked: Path) -> None:
    head, chunks = chunks_of(chunked)
    assert len(chunks) == 4
    (chunked / "enclave.sealed").write_bytes(head + b"".join(REARRANGED[name](chunks)))
    assert refused(chunked) == sealing.REFUSED


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_dropping_chunks_and_the_size_to_match_is_noticed(kept: int, chunked: Path) -> None:
    """The header is associated data of every chunk, and the last one says that it is."""
    head, chunks = chunks_of(chunked)
    record = json.loads(head[12:])
    record["size"] = kept * 65536
    body = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    head = struct.pack("<8sHH", b"SHADOWNT", 2, len(body)) + body
    (chunked / "enclave.sealed").write_bytes(head + b"".join(chunks[:kept]))
    assert refused(chunked) == sealing.REFUSED


def test_a_chunk_of_another_file_of_the_same_key_does_not_fit(chunked: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", bytes(3 * 65536 + 100))
    (head, mine), (_, theirs) = chunks_of(chunked), chunks_of(other)
    (chunked / "enclave.sealed").write_bytes(head + b"".join([mine[0], theirs[1], *mine[2:]]))
    assert refused(chunked) == sealing.REFUSED


def test_nonces_of_one_file_differ_and_no_file_shares_a_key(chunked: Path, tmp_path: Path) -> None:
    """The same plaintext sealed twice gives other bytes throughout: the salt is fresh."""
    again = make_bundle(tmp_path / "again", bytes(sealing.unseal(chunked, KEY)[1]))
    (_, mine), (_, theirs) = chunks_of(chunked), chunks_of(again)
    assert all(a != b for a, b in zip(mine, theirs, strict=True))
    zeros = make_bundle(tmp_path / "zeros", bytes(2 * 65536))
    first, second = chunks_of(zeros)[1]
    assert first[:64] != second[:64]


# Bundles mixed, versions, headers


@pytest.mark.parametrize("name", FILES)
def test_halves_of_two_bundles_do_not_mix(name: str, tmp_path: Path) -> None:
    """Same device, same model, two conversions."""
    one = make_bundle(tmp_path / "one", b"secrets 1", name=ID, public=b"weights 1")
    two = make_bundle(tmp_path / "two", b"secrets 2", name=ID[::-1], public=b"weights 2")
    (two / "manifest.json").write_bytes(b'{"format": "shadownet-bundle", "other": 1}')
    (two / "enclave.sealed").unlink()
    sealing.seal(two / "enclave.sealed", b"secrets 2", KEY, ID[::-1], two, VERSION)
    assert bytes(sealing.unseal(two, KEY)[1]) == b"secrets 2"
    shutil.copyfile(two / name, one / name)
    assert refused(one) == sealing.REFUSED


@pytest.mark.parametrize("version", [0, 1, 3, 255, 65535])
def test_another_version_is_refused_by_its_number(version: int, made: Path) -> None:
    data = bytearray((made / "enclave.sealed").read_bytes())
    struct.pack_into("<H", data, 8, version)
    (made / "enclave.sealed").write_bytes(data)
    assert f"version {version}," in refused(made)


@pytest.mark.parametrize("version", [0, 1, "x", None])
def test_a_manifest_of_another_version_is_refused_by_its_number(version: Any, real: Path) -> None:
    record = json.loads((real / "manifest.json").read_text())
    (real / "manifest.json").write_text(json.dumps(record | {"version": version}))
    with pytest.raises(BundleError, match=f"version {version},"):
        shadownet.Interpreter(real)


MANIFESTS = {
    "empty": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "deeply nested": b"[" * 100_000,
    "another format": b'{"format": "zip"}',
    "not UTF-8": b"\xff\xff",
    "no layers": b'{"format": "shadownet-bundle", "version": 2, "options": {}}',
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_is_none_is_refused(name: str, made: Path) -> None:
    (made / "manifest.json").write_bytes(MANIFESTS[name])
    with pytest.raises(BundleError):
        shadownet.Interpreter(made)


BAD_HEADERS: dict[str, Any] = {
    "not JSON": b"{",
    "not UTF-8": b"\xff\xfe\xfd",
    "a list": b"[]",
    "a string": b'"header"',
    "deeply nested": b"[" * 4000,
    "no fields": {},
    "one field too many": {"extra": 1},
    "id too short": {"bundle": "ab"},
    "id no hex": {"bundle": "x" * 32},
    "hash is null": {"manifest": None},
    "salt is a number": {"salt": 5},
    "salt too long": {"salt": "0" * 66},
    "chunk 0": {"chunk": 0},
    "chunk below the bound": {"chunk": 65535},
    "chunk above the bound": {"chunk": (64 << 20) + 1},
    "chunk no integer": {"chunk": 65536.0},
    "chunk is true": {"chunk": True},
    "size 0": {"size": 0},
    "size negative": {"size": -1},
    "size of 16 GiB": {"size": 1 << 34},
    "size above the bound": {"size": (1 << 34) + 1},
    "size infinite": b'{"size": Infinity}',
    "lineage no hex": {"lineage": "x" * 32},
    "serial negative": {"serial": -1},
    "serial no integer": {"serial": 1.0},
    "serial is true": {"serial": True},
    "serial above the bound": {"serial": (1 << 53) + 1},
    "size of 3,000 digits": b'{"size": ' + b"9" * 3000 + b"}",
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_header_that_is_none_is_refused_before_anything_is_allocated(name: str, made: Path) -> None:
    head, body = (made / "enclave.sealed").read_bytes(), BAD_HEADERS[name]
    rest = head[header_size(made) :]
    if isinstance(body, dict):
        record = json.loads(head[12 : header_size(made)])
        body = json.dumps((record | body) if body else {}).encode()
    (made / "enclave.sealed").write_bytes(struct.pack("<8sHH", b"SHADOWNT", 2, len(body)) + body + rest)
    assert refused(made) == sealing.REFUSED


@pytest.mark.parametrize("length", [0, 4097, 65535])
def test_a_header_length_out_of_bounds_is_refused(length: int, made: Path) -> None:
    data = bytearray((made / "enclave.sealed").read_bytes().ljust(70_000, b" "))
    struct.pack_into("<H", data, 10, length)
    (made / "enclave.sealed").write_bytes(data)
    assert refused(made) == sealing.REFUSED


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_sealed_file(made: Path, content: bytes) -> None:
    for start in (b"", b"SHADOWNT", struct.pack("<8sHH", b"SHADOWNT", 2, len(content))):
        (made / "enclave.sealed").write_bytes(start + content)
        refused(made)


# The plaintext


arrays = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 100, shape).astype(dtype),
    st.sampled_from(["float32", "float16", "int8", "uint8", "int32", "int64", "bool", "complex64"]),
    st.lists(st.integers(0, 4), max_size=4),
    st.integers(0, 1 << 30),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda c: st.lists(c, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=4),
       st.dictionaries(st.text(max_size=8), arrays, max_size=5))  # fmt: skip
def test_what_is_packed_is_unpacked(program: dict[str, Any], blobs: dict[str, Array]) -> None:
    data = container.pack(program, blobs)
    for got_program, got in (container.unpack(data), read_plaintext(bytes(data))):
        assert got_program == program and list(got) == list(blobs)
        for name, blob in blobs.items():
            assert got[name].dtype == blob.dtype and got[name].shape == blob.shape
            np.testing.assert_array_equal(got[name], blob)


def test_unpacked_blobs_are_views_that_nobody_can_write() -> None:
    data = container.pack({}, {"a": np.arange(1000.0, dtype=np.float32)})
    blob = container.unpack(data)[1]["a"]
    assert np.shares_memory(blob, np.frombuffer(data, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        blob[0] = 1


def test_blobs_that_are_not_contiguous_are_packed_as_they_look() -> None:
    matrix = np.arange(12, dtype=np.int32).reshape(3, 4)
    blobs = container.unpack(container.pack({}, {"t": matrix.T, "step": matrix[:, ::2]}))[1]
    np.testing.assert_array_equal(blobs["t"], matrix.T)
    np.testing.assert_array_equal(blobs["step"], matrix[:, ::2])


def packed_with(**changes: Any) -> bytearray:
    """One blob of 4 floats, its description changed."""
    spec = {"dtype": "float32", "shape": [4], "offset": 0} | changes
    head = json.dumps({"program": {}, "blobs": {"a": spec}}).encode()
    base = -(-(4 + len(head)) // 64) * 64
    return bytearray((struct.pack("<I", len(head)) + head).ljust(base, b"\0") + bytes(64))


BAD_BLOBS = {
    "beyond the end": {"offset": 128},
    "longer than the rest": {"shape": [17]},
    "offset not aligned": {"offset": 4},
    "offset negative": {"offset": -64},
    "offset of 10^30": {"offset": 64 * 10**30},
    "offset no number": {"offset": "x"},
    "offset infinite": {"offset": float("inf")},
    "offset null": {"offset": None},
    "shape negative": {"shape": [-4]},
    "shape of rank 9": {"shape": [1] * 9},
    "shape overflowing": {"shape": [1 << 40, 1 << 40]},
    "shape infinite": {"shape": [float("inf")]},
    "shape a number": {"shape": 4},
    "type unknown": {"dtype": "object"},
    "type a list": {"dtype": []},
}


@pytest.mark.parametrize("name", BAD_BLOBS)
def test_a_blob_that_lies_is_refused(name: str) -> None:
    container.unpack(packed_with())
    with pytest.raises(BundleError):
        container.unpack(packed_with(**BAD_BLOBS[name]))


def sized(text: bytes) -> bytearray:
    return bytearray(struct.pack("<I", len(text)) + text)


BAD_PLAINTEXTS = {
    "empty": bytearray(),
    "half a length": bytearray(b"\1\0"),
    "shorter than its length": bytearray(struct.pack("<I", 100) + b"{}"),
    "length of 4 GiB": bytearray(struct.pack("<I", 0xFFFFFFFF) + b"{}"),
    "a list": sized(b"[]"),
    "null": sized(b"null"),
    "no fields": sized(b"{}"),
    "no program": sized(b'{"blobs":{},"program":null}'),
    "blobs are a list": sized(b'{"blobs":[],"program":{}}'),
    "a blob is a number": sized(b'{"blobs":{"a":5},"program":{}}'),
    "deeply nested": sized(b"[" * 100_000),
}


@pytest.mark.parametrize("name", BAD_PLAINTEXTS)
def test_a_plaintext_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(BundleError):
        container.unpack(BAD_PLAINTEXTS[name])


SAMPLE = bytes(container.pack({"a": [1, "b"]}, {"x": np.arange(5, dtype=np.int32), "y": np.ones((2, 2))}))


@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(1, 255)), max_size=4),
       st.integers(0, len(SAMPLE)))  # fmt: skip
def test_damaged_plaintext_gives_a_program_or_a_bundle_error(changes: list[tuple[int, int]], size: int) -> None:
    data = bytearray(SAMPLE)
    for position, mask in changes:
        data[position] ^= mask
    try:
        program, blobs = container.unpack(data[: size or None])
    except BundleError:
        return
    assert isinstance(program, dict) and all(isinstance(b, np.ndarray) for b in blobs.values())


# Keys


def test_a_key_is_private_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "device.key"
    old = os.umask(0)  # even where the user's umask would allow everything
    try:
        keys.create(path)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    word, digits = path.read_text().split()
    assert word == "shadownet-device-key-1" and keys.load(path) == bytes.fromhex(digits)


def test_keys_differ(tmp_path: Path) -> None:
    for name in ("a", "b"):
        keys.create(tmp_path / name)
    assert keys.load(tmp_path / "a") != keys.load(tmp_path / "b")


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    path.write_text("precious")
    with pytest.raises(InputError, match="exists already"):
        keys.create(path)
    assert path.read_text() == "precious"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")  # nor does it follow a link
    with pytest.raises(InputError):
        keys.create(tmp_path / "link")
    assert not (tmp_path / "nowhere").exists()


def test_a_key_where_nothing_can_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        keys.create(tmp_path / "file" / "device.key")


GARBAGE = {
    "empty": b"",
    "zeros": bytes(100),
    "no prefix": b"ab" * 32,
    "too short": b"shadownet-device-key-1 " + b"ab" * 31,
    "too long": b"shadownet-device-key-1 " + b"ab" * 33,
    "no hex": b"shadownet-device-key-1 " + b"xy" * 32,
    "other version": b"shadownet-device-key-2 " + b"ab" * 32,
    "another format": b"-----BEGIN PRIVATE KEY-----\n",
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_no_key_and_is_not_shown(name: str, tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    path.write_bytes(GARBAGE[name])
    with pytest.raises(BundleError) as caught:
        keys.load(path)
    assert "abab" not in str(caught.value) + caught.value.hint


def test_a_missing_key_and_a_directory_are_bundle_errors(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no device key"):
        keys.load(tmp_path / "absent")
    with pytest.raises(BundleError):
        keys.load(tmp_path)


def test_convert_with_a_named_key_that_is_missing_makes_none(tmp_path: Path, models: Path) -> None:
    with pytest.raises(BundleError):
        shadownet.convert(models / "digits_mlp.tflite", tmp_path / "b.shadow", key=tmp_path / "absent")
    assert os.listdir(tmp_path) == []


def test_the_default_key_is_made_on_first_use(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SHADOWNET_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    shadownet.convert(models / "digits_mlp.tflite", tmp_path / "b.shadow")
    path = tmp_path / "config" / "shadownet" / "device.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert str(path) in capfd.readouterr().err
    first = path.read_bytes()
    with shadownet.Interpreter(tmp_path / "b.shadow") as interpreter:
        interpreter.allocate_tensors()
    assert path.read_bytes() == first


# Sealing for another device


@pytest.fixture
def other_key(tmp_path: Path) -> Path:
    keys.create(tmp_path / "other.key")
    return tmp_path / "other.key"


def test_a_resealed_bundle_opens_on_the_other_device_only(
    real: Path, device_key: Path, other_key: Path, tmp_path: Path
) -> None:
    target = tmp_path / "other.shadow"
    bundle.reseal(real, target, device_key, other_key, overwrite=False)
    for name in FILES[:2]:
        assert (target / name).read_bytes() == (real / name).read_bytes()
    mine, theirs = sealing.unseal(real, keys.load(device_key)), sealing.unseal(target, keys.load(other_key))
    assert mine[1] == theirs[1] and mine[0].bundle == theirs[0].bundle
    assert mine[0].salt != theirs[0].salt
    assert refused(target, keys.load(device_key)) == sealing.REFUSED
    assert refused(real, keys.load(other_key)) == sealing.REFUSED
    with shadownet.Interpreter(target, key=other_key) as interpreter:
        interpreter.allocate_tensors()
        interpreter.invoke()
    # The sealed halves belong to the same public half and nothing else: they can be exchanged with their keys.
    shutil.copyfile(target / "enclave.sealed", real / "enclave.sealed")
    assert sealing.unseal(real, keys.load(other_key))[1] == mine[1]


def test_resealing_a_changed_or_foreign_bundle_leaves_nothing(
    real: Path, device_key: Path, other_key: Path, tmp_path: Path
) -> None:
    before = sorted(os.listdir(tmp_path))
    for victim, key in ((None, other_key), ("accelerator.tflite", device_key)):
        if victim:
            flip(real / victim, 50)
        with pytest.raises(BundleError):
            bundle.reseal(real, tmp_path / "other.shadow", key, other_key, overwrite=False)
        assert sorted(os.listdir(tmp_path)) == before


def test_resealing_onto_itself_or_onto_something_is_refused(
    real: Path, device_key: Path, other_key: Path, tmp_path: Path
) -> None:
    before = {name: (real / name).read_bytes() for name in FILES}
    with pytest.raises(InputError):
        bundle.reseal(real, real, device_key, other_key, overwrite=True)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "letter.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(InputError):
            bundle.reseal(real, tmp_path / "there", device_key, other_key, overwrite)
    assert (tmp_path / "there" / "letter.txt").read_text() == "dear"
    assert {name: (real / name).read_bytes() for name in FILES} == before


# Writing is atomic


def test_a_sealed_file_is_private_and_never_overwrites(made: Path) -> None:
    assert (made / "enclave.sealed").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        sealing.seal(made / "enclave.sealed", b"other", KEY, ID, made, VERSION)
    assert bytes(sealing.unseal(made, KEY)[1]) == b"the plan and the secrets"


def test_a_failure_while_writing_leaves_the_old_bundle(
    real: Path, device_key: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (real / name).read_bytes() for name in FILES}
    entries = sorted(os.listdir(tmp_path))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sealing.os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        shadownet.convert(models / "digits_mlp.tflite", real, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == entries
    assert {name: (real / name).read_bytes() for name in FILES} == before
