"""``shadownet.Interpreter``: the ``tf.lite.Interpreter`` methods over a protected model."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np

from shadownet.session import DEFAULT_MASK_MEMORY, Session
from shadownet.timeline import write as write_timeline
from shadownet.wire.errors import InputError
from shadownet.wire.paths import resolve_key
from shadownet.wire.tensors import DTYPES, TensorSpec

Array = np.ndarray[Any, Any]


class Interpreter:
    """Runs a bundle in an enclave process and an accelerator process.

    Same methods and meaning as ``tf.lite.Interpreter``, except that intermediate tensors cannot be read. Use it as
    a context manager, or call :meth:`close`. ``num_threads`` is per process. ``key`` is the path of the device key;
    None means ``$SHADOWNET_KEY``, else the user's own. ``mask_memory`` and ``enclave_memory`` are bytes; 0 for the
    latter means no limit. ``delegate`` is a vendor's library for the accelerator, LIB.so[:key=value,...]. ``trace``
    names a file for a timeline (:mod:`shadownet.timeline`), which :meth:`close` writes; inferences then run one at a
    time. Raises ``BundleError`` for a bundle or key that is not right, ``IntegrityError`` and ``WorkerError`` when a
    worker misbehaves: both are final.
    """

    def __init__(
        self, model_path: str | os.PathLike[str], num_threads: int = 1, accelerator: str = "litert-cpu",
        key: str | os.PathLike[str] | None = None, *, mask_input: bool = False,
        mask_memory: int = DEFAULT_MASK_MEMORY, enclave_memory: int = 0, record: str | None = None,
        delegate: str = "", trace: str | os.PathLike[str] | None = None,
    ) -> None:  # fmt: skip
        self._trace = trace
        self._session = Session(
            model_path,
            resolve_key(key),
            num_threads,
            accelerator,
            mask_input,
            mask_memory,
            enclave_memory,
            record,
            trace is not None,
            delegate,
        )
        self._shapes = {e: [spec.shape for spec in sides[0]] for e, sides in self._session.entries.items()}
        self._pipelined = False
        self._values: dict[int, Array] = {}
        self._results: dict[int, Array] = {}

    def __enter__(self) -> Interpreter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes; write the timeline first, if one was asked for and the enclave still runs.

        Raises ``InputError`` if it cannot be written.
        """
        path, self._trace = self._trace, None
        try:
            if path is not None and self._session.alive:
                write_timeline(path, self._session.timeline())
        finally:
            self._session.close()

    @property
    def session(self) -> Session:
        """The running session: counters, process ids, manifest."""
        return self._session

    def get_input_details(self) -> list[dict[str, Any]]:
        """One dictionary for each input, with the keys of ``tf.lite.Interpreter``'s: name, index, shape, dtype, …"""
        return [spec.details() for spec in self._specs(0)]

    def get_output_details(self) -> list[dict[str, Any]]:
        """One dictionary for each output, likewise. Shapes are those of the last ``allocate_tensors``."""
        return [spec.details() for spec in self._specs(1)]

    def get_signature_list(self) -> dict[str, dict[str, list[str]]]:
        """Signature name -> names of its inputs and outputs."""
        return {s["key"]: {side: sorted(s[side]) for side in ("inputs", "outputs")} for s in self._session.signatures}

    def get_signature_runner(self, signature_key: str | None = None) -> SignatureRunner:
        """A callable for one signature; without a key the only one. Raises ``InputError``."""
        found = {s["key"]: s for s in self._session.signatures}
        if signature_key is None and len(found) == 1:
            signature_key = next(iter(found))
        if signature_key not in found:
            raise InputError(f"the model has no signature {signature_key!r}", f"it has: {', '.join(found) or 'none'}")
        return SignatureRunner(self, found[signature_key])

    def resize_tensor_input(self, input_index: int, tensor_size: Any, strict: bool = False) -> None:
        """Change an input's shape; takes effect with ``allocate_tensors()``. ``strict``: only where it is -1."""
        self._session.check()
        for i, spec in enumerate(self._session.entries[0][0]):
            if spec.index == input_index:
                shape = tuple(int(d) for d in tensor_size)
                fixed = (s not in (-1, d) for s, d in zip(spec.signature, shape, strict=False))
                if any(d < 1 for d in shape) or (strict and (len(shape) != len(spec.signature) or any(fixed))):
                    raise InputError(f"input {spec.name!r} cannot take the shape {list(shape)}")
                self._shapes[0][i] = shape
                self._session.entry = None
                return
        raise InputError(f"there is no input tensor {input_index}")

    def allocate_tensors(self) -> None:
        """Fix the shapes on both sides. Masks prepared for other shapes are discarded."""
        self._session.check()
        self._select(0)
        self._values = {}

    def set_tensor(self, tensor_index: int, value: Any) -> None:
        """Set an input. Raises ``InputError`` if type or shape is not the input's."""
        self._session.check()
        for spec in self._specs(0):
            if spec.index == tensor_index:
                self._values[tensor_index] = check(spec, value)
                return
        raise InputError(f"there is no input tensor {tensor_index}", "intermediate tensors cannot be written")

    def invoke(self) -> None:
        """Run the model on the inputs that were set; an input never set is zero."""
        self._session.check()
        if self._session.entry != 0:
            raise InputError("call allocate_tensors() first")
        inputs = [self._values.get(s.index, _zeros(s)) for s in self._session.inputs]
        outputs = self._session.invoke(inputs)
        self._results = {spec.index: value for spec, value in zip(self._session.outputs, outputs, strict=True)}

    def invoke_many(self, requests: list[list[Any]]) -> list[list[Array]]:
        """Run several inferences, two under way at a time: while the accelerator works on one, the enclave works on
        the other. A request is one value per input, in the order of ``get_input_details``; results likewise.

        The same results as one after the other, at a higher rate; a model that keeps state runs one after the other.
        Masks prepared for :meth:`invoke` are discarded at the first call, prepare them after it.
        """
        self._session.check()
        if self._session.entry != 0 or not self._pipelined:
            self._session.allocate(0, self._shapes[0], pipelined=True)
            self._pipelined = True
        specs = self._session.inputs
        checked = [[check(s, v) for s, v in zip(specs, values, strict=True)] for values in requests]
        return self._session.invoke_many(checked)

    def get_tensor(self, tensor_index: int) -> Array:
        """A copy of an output (after ``invoke``) or of an input. Raises ``InputError`` for anything else."""
        self._session.check()
        for found in (self._results, self._values):
            if tensor_index in found:
                return found[tensor_index].copy()
        if any(spec.index == tensor_index for spec in self._specs(1)):
            raise InputError("call invoke() first")
        raise InputError(f"tensor {tensor_index} is no input or output", "intermediate tensors stay in the enclave")

    def reset_all_variables(self) -> None:
        """Set all state of the model to zero."""
        self._session.reset()

    def prepare(self, sets: int) -> None:
        """Make ``sets`` sets of one-time masks now, so that as many inferences need not wait for theirs."""
        self._session.check()
        if self._session.entry is None:
            raise InputError("call allocate_tensors() first")
        self._session.prepare(sets)

    def _specs(self, side: int) -> list[TensorSpec]:
        if self._session.entry == 0:
            return (self._session.inputs, self._session.outputs)[side]
        specs = self._session.entries[0][side]
        if side == 1:
            return specs
        return [replace(spec, shape=shape) for spec, shape in zip(specs, self._shapes[0], strict=True)]

    def _select(self, entry: int, shapes: list[tuple[int, ...]] | None = None) -> None:
        self._session.allocate(entry, shapes or self._shapes[entry])
        self._pipelined = False

    def run_entry(self, entry: int, values: dict[int, Any]) -> dict[int, Array]:
        """Run a subgraph with inputs by tensor index; used by signature runners."""
        specs = self._session.entries[entry][0]
        arrays = [check(spec, values[spec.index], any_shape=True) for spec in specs]
        shapes = [a.shape for a in arrays]
        if self._session.entry != entry or [s.shape for s in self._session.inputs] != shapes:
            self._select(entry, shapes)
        outputs = self._session.invoke(arrays)
        return {spec.index: value for spec, value in zip(self._session.outputs, outputs, strict=True)}


class SignatureRunner:
    """Calls one signature with keyword arguments; returns its outputs by name."""

    def __init__(self, interpreter: Interpreter, signature: dict[str, Any]) -> None:
        self._interpreter, self._signature = interpreter, signature

    def __call__(self, **inputs: Any) -> dict[str, Array]:
        wanted = self._signature["inputs"]
        if set(inputs) != set(wanted):
            raise InputError(f"the signature takes {sorted(wanted)}, got {sorted(inputs)}")
        values = {index: inputs[name] for name, index in wanted.items()}
        results = self._interpreter.run_entry(self._signature["entry"], values)
        return {name: results[index] for name, index in self._signature["outputs"].items()}

    def get_input_details(self) -> dict[str, dict[str, Any]]:
        """The inputs' dictionaries by name."""
        return self._details(0, "inputs")

    def get_output_details(self) -> dict[str, dict[str, Any]]:
        """The outputs' dictionaries by name."""
        return self._details(1, "outputs")

    def _details(self, side: int, names: str) -> dict[str, dict[str, Any]]:
        specs = {s.index: s for s in self._interpreter.session.entries[self._signature["entry"]][side]}
        return {name: specs[index].details() for name, index in self._signature[names].items()}


def check(spec: TensorSpec, value: Any, any_shape: bool = False) -> Array:
    """Return ``value`` as a contiguous copy for ``spec``. Raises ``InputError`` if it does not fit."""
    array = np.array(value, order="C")
    if spec.dtype == "string":
        if array.dtype.kind not in "OSU":
            raise InputError(f"input {spec.name!r} takes strings")
    elif array.dtype != DTYPES[spec.dtype]:
        raise InputError(f"input {spec.name!r} takes {spec.dtype}, got {array.dtype.name}")
    if not any_shape and array.shape != spec.shape:
        raise InputError(
            f"input {spec.name!r} takes the shape {list(spec.shape)}, got {list(array.shape)}",
            "resize_tensor_input() changes it",
        )
    return array


def _zeros(spec: TensorSpec) -> Array:
    return np.full(spec.shape, b"", object) if spec.dtype == "string" else np.zeros(spec.shape, DTYPES[spec.dtype])
