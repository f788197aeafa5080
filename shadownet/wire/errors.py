"""Errors, named by whose fault they are. Each knows its exit code and may carry a hint on what to do next."""

from __future__ import annotations


class Error(Exception):
    """Base of everything this project raises on purpose. ``hint`` says what to do next, "" if nothing helps."""

    exit_code = 70

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ModelError(Error):
    """The ``.tflite`` file cannot be read, is inconsistent, or LiteRT itself does not run it."""

    exit_code = 2


class InputError(Error):
    """An argument, an input tensor or a file that the user gave does not fit."""

    exit_code = 2


class MismatchError(Error):
    """A negative verdict: the protected model does not compute what the original does, or a gate failed."""

    exit_code = 1


class BundleError(Error):
    """The bundle or its key is wrong: missing, damaged, changed, of another version or for another device."""

    exit_code = 3


class IntegrityError(Error):
    """The accelerator answered, and the answer cannot be right. Final: the session gives no further output."""

    exit_code = 3


class WorkerError(Error):
    """A worker process died, hung, or broke the protocol. Final: the session gives no further output."""

    exit_code = 3


BY_NAME: dict[str, type[Error]] = {
    cls.__name__: cls for cls in (ModelError, InputError, MismatchError, BundleError, IntegrityError, WorkerError)
}


def memory_limit_too_small() -> InputError:
    """The same words wherever it shows: in the enclave, or in its end, since native code aborts without memory."""
    return InputError("the enclave's memory limit is too small for this model", "allow more with --enclave-memory")


def pack(error: Error) -> dict[str, str]:
    """Return the JSON form of ``error`` for a message."""
    kind = next((cls.__name__ for cls in type(error).__mro__ if cls.__name__ in BY_NAME), "WorkerError")
    return {"kind": kind, "message": str(error), "hint": error.hint}


def unpack(record: object) -> Error:
    """Rebuild an error from :func:`pack`'s form; anything malformed becomes a ``WorkerError``."""
    if isinstance(record, dict) and record.get("kind") in BY_NAME:
        return BY_NAME[record["kind"]](str(record.get("message", ""))[:2000], str(record.get("hint", ""))[:2000])
    return WorkerError("a worker reported an error that cannot be read")
