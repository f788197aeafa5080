"""Reading and writing ``.tflite`` files: faithful for good files, a ModelError, fast and small, for every other."""

from __future__ import annotations

import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from build import Model, litert
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

import shadownet
from shadownet.graph import ModelWriter, load, parse
from shadownet.graph.read import MAX_OBJECTS
from shadownet.wire.errors import ModelError

Array = np.ndarray[Any, Any]
MLP = ROOT / "models" / "digits" / "digits_mlp.tflite"
CNN = ROOT / "models" / "digits" / "digits_cnn.tflite"


# Good files


def copied(content: bytes) -> bytes:
    """A model, read and written again with all subgraphs and signatures."""
    graph = parse(content)
    writer = ModelWriter("a copy")
    for subgraph in graph.subgraphs:
        writer.copy_subgraph(graph, subgraph.index)
    return writer.finish()


@pytest.mark.parametrize("name", ["digits_cnn", "digits_cnn_int8", "digits_mlp"])
def test_a_copied_model_computes_the_same_bits(name: str, models: Path) -> None:
    content = (models / f"{name}.tflite").read_bytes()
    graph = parse(content).subgraphs[0]
    image = np.load(models / "digits_test.npz")["x"][:1]
    dtype = graph.tensors[graph.inputs[0]].dtype
    image = image if dtype == "float32" else (image * 255 - (128 if dtype == "int8" else 0)).astype(dtype)
    expected = litert(content, [image])
    assert len(np.unique(expected[0])) > 3
    np.testing.assert_array_equal(litert(copied(content), [image]), expected)


def test_a_copy_reads_as_the_original_does(models: Path) -> None:
    """Ids, names, shapes, types, quantisation, data and ops survive, also those of an integer model."""
    content = (models / "digits_cnn_int8.tflite").read_bytes()
    for a, b in zip(parse(content).subgraphs, parse(copied(content)).subgraphs, strict=True):
        assert (a.inputs, a.outputs, a.name) == (b.inputs, b.outputs, b.name)
        for s, t in zip(a.tensors, b.tensors, strict=True):
            assert (s.id, s.name, s.shape, s.signature, s.dtype) == (t.id, t.name, t.shape, t.signature, t.dtype)
            assert s.is_constant == t.is_constant and s.is_variable == t.is_variable
            if s.data is not None:
                np.testing.assert_array_equal(s.data, t.data)
            if s.quantization is not None:
                for name in ("scale", "zero_point", "axis"):
                    np.testing.assert_array_equal(getattr(s.quantization, name), getattr(t.quantization, name))
        for p, q in zip(a.ops, b.ops, strict=True):
            assert (p.id, p.kind, p.version, p.inputs, p.outputs) == (q.id, q.kind, q.version, q.inputs, q.outputs)
            assert vars(p.options) == vars(q.options) if p.options is not None else q.options is None


def test_ids_are_those_that_litert_reports(models: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    content = (models / "digits_cnn.tflite").read_bytes()
    tensors = parse(content).subgraphs[0].tensors
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    for detail in interpreter.get_tensor_details():
        if detail["index"] < len(tensors):  # behind them are LiteRT's own temporaries
            assert tensors[detail["index"]].name == detail["name"]
            assert tensors[detail["index"]].id == detail["index"]


def test_buffers_are_views_of_the_file(models: Path) -> None:
    content = (models / "digits_mlp.tflite").read_bytes()
    whole = np.frombuffer(content, np.uint8)
    start, end = np.lib.array_utils.byte_bounds(whole)
    constants = [t for t in parse(content).subgraphs[0].tensors if t.is_constant]
    assert len(constants) >= 4
    for tensor in constants:
        assert tensor.data is not None
        low, high = np.lib.array_utils.byte_bounds(tensor.data)
        assert start <= low <= high <= end, f"{tensor.name} was copied"
        assert not tensor.values().flags.writeable


def test_values_are_what_was_written() -> None:
    net = Model().net()
    for values in (np.arange(6, dtype=np.float32).reshape(2, 3), np.array([[1], [2]], np.int64), np.float16([1.5])):
        net.constant(values)
    net.output(net.unary("RELU", net.input(1, 2)))
    tensors = parse(net.model.content()).subgraphs[0].tensors
    np.testing.assert_array_equal(tensors[0].values(), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(tensors[1].values(), [[1], [2]])
    assert (tensors[2].values().dtype, tensors[2].values()[0]) == (np.float16, 1.5)
    with pytest.raises(ModelError, match="no dense constant"):
        tensors[3].values()


def test_equal_buffers_are_stored_once() -> None:
    net = Model().net()
    values = np.zeros(10_000, np.float32)
    for _ in range(5):
        net.tensor((10_000,), data=values)
    net.output(net.unary("RELU", net.input(1, 2)))
    assert len(net.model.content()) < 2 * values.nbytes


def test_signatures_and_several_subgraphs_are_read() -> None:
    model = Model()
    for key in ("first", "second"):
        net = model.net(key)
        x = net.input(1, 3, name="x")
        net.output(net.dense(x, 2), signature=key)
    graph = parse(model.content())
    assert graph.entry_points() == [0, 1]
    assert [(s.key, s.subgraph, s.inputs) for s in graph.signatures] == [
        ("first", 0, {"x": 0}),
        ("second", 1, {"x": 0}),
    ]


def test_a_shape_that_is_open_is_kept_as_signature() -> None:
    raw = unpacked(MLP)
    raw.subgraphs[0].tensors[0].shapeSignature = np.array([-1, 8, 8, 1], np.int32)
    tensor = parse(packed(raw)).subgraphs[0].tensors[0]
    assert (tensor.shape, tensor.signature) == ((1, 8, 8, 1), (-1, 8, 8, 1))


def test_data_behind_the_flatbuffer_is_read() -> None:
    """Files above 2 GiB, and those of some converters, keep a buffer's bytes after the flatbuffer."""
    raw, constant = unpacked(MLP), largest_constant(parse(MLP.read_bytes()))
    buffer = raw.buffers[constant.raw.buffer]
    data, buffer.data, buffer.size = bytes(buffer.data), None, len(buffer.data)
    buffer.offset = 2  # any number above 1 takes its eight bytes in the table
    buffer.offset = len(packed(raw)) + (-len(packed(raw)) % 16)
    content = packed(raw).ljust(buffer.offset, b"\0") + data
    assert len(packed(raw)) <= buffer.offset
    np.testing.assert_array_equal(parse(content).subgraphs[0].tensors[constant.id].values(), constant.values())
    with pytest.raises(ModelError, match="leaves the file"):
        parse(content[:-1])


def test_a_file_is_loaded_with_its_bytes(tmp_path: Path) -> None:
    graph, content = load(MLP)
    assert content == MLP.read_bytes() and graph.subgraphs[0].ops
    with pytest.raises(ModelError, match="No such file"):
        load(tmp_path / "absent.tflite")
    with pytest.raises(ModelError, match="directory"):
        load(tmp_path)


# Damaged files


def unpacked(path: Path) -> Any:
    """A model as the schema's own mutable objects."""
    return schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)


def packed(raw: Any) -> bytes:
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(raw.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def largest_constant(graph: Any) -> Any:
    return max((t for t in graph.subgraphs[0].tensors if t.is_constant), key=lambda t: t.data.size)


def with_change(change: Callable[[Any], object], path: Path = MLP) -> bytes:
    """A good model with one thing wrong."""
    raw = unpacked(path)
    change(raw)
    return packed(raw)


def ints(*values: int) -> Array:
    return np.array(values, np.int32)


JUNK = {
    "empty": b"",
    "one byte": b"T",
    "identifier only": b"TFL3" * 4,
    "zeros": b"\0" * 1000,
    "png": b"\x89PNG\r\n\x1a\n" + b"x" * 100,
    "root outside": b"\xff\xff\xff\xffTFL3" + b"\xff" * 100,
    "no table": b"\x10\0\0\0TFL3" + b"\0" * 8,
}


@pytest.mark.parametrize("name", JUNK)
def test_what_is_no_model_is_refused(name: str) -> None:
    with pytest.raises(ModelError):
        parse(JUNK[name])


def test_a_file_cut_anywhere_is_refused_or_whole() -> None:
    """Cut at every length of the first kilobyte, and at every 97th behind."""
    content = MLP.read_bytes()
    for size in (*range(1024), *range(1024, len(content), 97)):
        try:
            graph = parse(content[:size])
        except ModelError:
            continue
        assert_consistent(graph)


def assert_consistent(graph: Any) -> None:
    """What the reader lets through keeps its promises: the rest of the project checks nothing again."""
    for subgraph in graph.subgraphs:
        count = len(subgraph.tensors)
        assert all(0 <= t < count for t in (*subgraph.inputs, *subgraph.outputs))
        for op in subgraph.ops:
            assert all(-1 <= t < count for t in op.inputs) and all(0 <= t < count for t in op.outputs)
            assert all(0 <= k < len(graph.subgraphs) for k in op.subgraphs())
        for tensor in subgraph.tensors:
            assert all(d >= 0 for d in tensor.shape)
            if tensor.is_constant and tensor.dtype in ("float32", "int32") and tensor.raw.sparsity is None:
                assert tensor.values().shape == tensor.shape
    for signature in graph.signatures:
        count = len(graph.subgraphs[signature.subgraph].tensors)
        assert all(0 <= t < count for t in (*signature.inputs.values(), *signature.outputs.values()))


def op(raw: Any, position: int = 0) -> Any:
    return raw.subgraphs[0].operators[position]


def dense_op(raw: Any) -> Any:
    """The first FULLY_CONNECTED of the model."""
    codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in raw.operatorCodes]
    return next(o for o in raw.subgraphs[0].operators if codes[o.opcodeIndex] == schema.BuiltinOperator.FULLY_CONNECTED)


def weights_of(raw: Any) -> Any:
    return raw.subgraphs[0].tensors[dense_op(raw).inputs[1]]


def shorten(raw: Any) -> None:
    buffer = raw.buffers[weights_of(raw).buffer]
    buffer.data = buffer.data[:-4]


def lengthen(raw: Any) -> None:
    buffer = raw.buffers[weights_of(raw).buffer]
    buffer.data = np.concatenate([buffer.data, np.zeros(4, np.uint8)])


def set_in(owner: Callable[[Any], Any], name: str, value: Any) -> Callable[[Any], None]:
    return lambda raw: setattr(owner(raw), name, value)


def graph0(raw: Any) -> Any:
    return raw.subgraphs[0]


def tensor0(raw: Any) -> Any:
    return raw.subgraphs[0].tensors[0]


def first_last_swapped(raw: Any) -> None:
    ops = raw.subgraphs[0].operators
    ops[0], ops[-1] = ops[-1], ops[0]


def reads_its_own_output(raw: Any) -> None:
    last = op(raw, -1)
    first = op(raw)
    first.inputs = ints(*last.outputs, *first.inputs[1:])


def written_twice(raw: Any) -> None:
    op(raw, 1).outputs = op(raw).outputs


def writes_an_input(raw: Any) -> None:
    op(raw).outputs = raw.subgraphs[0].inputs


def signature(raw: Any) -> Any:
    if not raw.signatureDefs:
        raw.signatureDefs = [schema.SignatureDefT([], [], "serve", 0)]
    return raw.signatureDefs[0]


def quantised(raw: Any, scales: int, zeros: int) -> None:
    q = schema.QuantizationParametersT()
    q.scale, q.zeroPoint = np.ones(scales, np.float32), np.zeros(zeros, np.int64)
    weights_of(raw).quantization = q


def while_loop(raw: Any, body: int) -> None:
    raw.operatorCodes.append(schema.OperatorCodeT(119, None, 1, schema.BuiltinOperator.WHILE))
    loop = op(raw)
    loop.opcodeIndex = len(raw.operatorCodes) - 1
    loop.builtinOptionsType, loop.builtinOptions = schema.BuiltinOptions.WhileOptions, schema.WhileOptionsT(0, body)


def case_of(raw: Any, branches: list[int]) -> None:
    raw.operatorCodes.append(schema.OperatorCodeT(127, None, 1, schema.BuiltinOperator.STABLEHLO_CASE))
    choice = op(raw)
    choice.opcodeIndex = len(raw.operatorCodes) - 1
    choice.builtinOptionsType, choice.builtinOptions = 0, None
    choice.builtinOptions2Type = schema.BuiltinOptions2.StablehloCaseOptions
    choice.builtinOptions2 = schema.StablehloCaseOptionsT(ints(*branches))


# name: (what is wrong, words of the message)
FAULTS: dict[str, tuple[Callable[[Any], object], str]] = {
    "buffer too short for the shape": (shorten, "its shape needs"),
    "buffer too long for the shape": (lengthen, "its shape needs"),
    "shape larger than its data": (lambda r: setattr(weights_of(r), "shape", ints(4096, 4096)), "its shape needs"),
    "shape of 2^62 elements": (lambda r: setattr(weights_of(r), "shape", ints(*[1 << 31 - 1] * 2)), "bytes"),
    "computed tensor of 2^60 bytes": (set_in(tensor0, "shape", ints(1 << 20, 1 << 20, 1 << 18)), "would take"),
    "negative dimension": (set_in(tensor0, "shape", ints(-8, -8)), "no possible shape"),
    "rank 1,000": (set_in(tensor0, "shape", np.ones(1000, np.int32)), "no possible shape"),
    "unknown type": (set_in(tensor0, "type", 77), "unknown type"),
    "buffer that does not exist": (set_in(tensor0, "buffer", 10_000), "does not exist"),
    "op reads a tensor beyond the last": (lambda r: setattr(op(r), "inputs", ints(9999)), "does not exist"),
    "op reads tensor -2": (lambda r: setattr(op(r), "inputs", ints(-2)), "does not exist"),
    "op writes tensor -1": (lambda r: setattr(op(r), "outputs", ints(-1)), "does not exist"),
    "op writes a tensor beyond the last": (lambda r: setattr(op(r), "outputs", ints(9999)), "does not exist"),
    "intermediate tensor beyond the last": (lambda r: setattr(op(r), "intermediates", ints(9999)), "does not exist"),
    "op code that does not exist": (lambda r: setattr(op(r), "opcodeIndex", 99), "no operator code"),
    "input beyond the last tensor": (set_in(graph0, "inputs", ints(9999)), "does not exist"),
    "output -1": (set_in(graph0, "outputs", ints(-1)), "does not exist"),
    "ops in the wrong order": (first_last_swapped, "before it is computed"),
    "a cycle": (reads_its_own_output, "before it is computed"),
    "a tensor with two producers": (written_twice, "another source"),
    "an op that writes the input": (writes_an_input, "another source"),
    "signature of a missing subgraph": (lambda r: setattr(signature(r), "subgraphIndex", 7), "does not exist"),
    "signature of a missing tensor": (
        lambda r: setattr(signature(r), "inputs", [schema.TensorMapT("x", 9999)]), "does not exist"),
    "more scales than zero points": (lambda r: quantised(r, 3, 2), "zero points"),
    "while loop over a missing subgraph": (lambda r: while_loop(r, 5), "does not exist"),
    "while loop over subgraph -1": (lambda r: while_loop(r, -1), "does not exist"),
    "case with a missing branch": (lambda r: case_of(r, [0, 9]), "does not exist"),
    "no subgraph": (lambda r: setattr(r, "subgraphs", []), "no subgraph"),
    "no subgraph vector": (lambda r: setattr(r, "subgraphs", None), "no subgraph"),
    "no buffers": (lambda r: setattr(r, "buffers", []), "does not exist"),
    "no operator codes": (lambda r: setattr(r, "operatorCodes", None), "no operator code"),
    "metadata of a missing buffer": (
        lambda r: setattr(r, "metadata", [schema.MetadataT("m", 9999)]), "does not exist"),
    "weights in another file": (
        lambda r: setattr(r, "externalBuffers", [schema.ExternalBufferT()]), "other files"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_is_one_clear_error(fault: str) -> None:
    change, words = FAULTS[fault]
    with pytest.raises(ModelError) as caught:
        parse(with_change(change), "victim.tflite")
    assert words in str(caught.value)
    assert str(caught.value).startswith("victim.tflite")


def test_the_model_behind_the_faults_is_good() -> None:
    """Otherwise the tests above would pass for any reason."""
    assert_consistent(parse(with_change(lambda raw: None)))


@pytest.mark.parametrize("word", [0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x01000000])
def test_any_word_of_the_structure_may_lie(word: int) -> None:
    """Overwrite each of the first 32-bit words in turn: offsets, lengths, vtables, whatever stands there."""
    content = MLP.read_bytes()
    for position in range(0, min(len(content), 3000) // 4 * 4, 4):
        damaged = bytearray(content)
        struct.pack_into("<I", damaged, position, word)
        try:
            graph = parse(bytes(damaged))
        except ModelError:
            continue
        assert_consistent(graph)


mutations = st.lists(
    st.tuples(st.integers(0, len(MLP.read_bytes()) - 1), st.integers(1, 255)), min_size=1, max_size=20
)  # fmt: skip


def damaged_copy(content: bytes, changes: list[tuple[int, int]], size: int) -> bytes:
    out = bytearray(content)
    for position, flip in changes:
        out[position] ^= flip
    return bytes(out[:size])


@settings(max_examples=400)
@given(mutations, st.one_of(st.just(1 << 30), st.integers(0, len(MLP.read_bytes()))))
def test_any_damage_gives_a_model_or_a_model_error(changes: list[tuple[int, int]], size: int) -> None:
    try:
        graph = parse(damaged_copy(MLP.read_bytes(), changes, size))
    except ModelError:
        return
    assert_consistent(graph)


# The structure of a file lies in its first and last kilobytes, weights in between: aim there, too.
structure = st.one_of(st.integers(0, 1500), st.integers(len(MLP.read_bytes()) - 1500, len(MLP.read_bytes()) - 1))


@settings(max_examples=400)
@given(st.lists(st.tuples(structure, st.integers(1, 255)), min_size=1, max_size=4))
def test_damage_to_the_structure_gives_a_model_or_a_model_error(changes: list[tuple[int, int]]) -> None:
    try:
        graph = parse(damaged_copy(MLP.read_bytes(), changes, 1 << 30))
    except ModelError:
        return
    assert_consistent(graph)


# Small files that claim much: a flatbuffer may name one object or one vector any number of times.


class Claims:
    """A flatbuffer written by hand, in which ``many`` is a vector whose entries are all the same object."""

    def __init__(self) -> None:
        self.b = flatbuffers.Builder(1 << 16)

    def many(self, offset: int, count: int) -> int:
        b = self.b
        b.StartVector(4, count, 4)
        while b.Head() < 4 * count + 64:  # room for the entries
            b.head, length = b.Head(), len(b.Bytes)
            grown = bytearray(2 * length)
            grown[length:] = b.Bytes
            b.Bytes, b.head = grown, b.head + length
        end = b.Offset()  # entry i lies end + 4 * (count - i) bytes before the end of the buffer
        entries = end + 4 * (count - np.arange(count, dtype=np.int64)) - offset
        b.head = b.head - 4 * count
        b.Bytes[b.head : b.head + 4 * count] = entries.astype("<u4").tobytes()
        return b.EndVector()

    def several(self, start: Callable[[Any, int], object], offsets: list[int]) -> int:
        """An honest vector of different objects."""
        start(self.b, len(offsets))
        for offset in reversed(offsets):
            self.b.PrependUOffsetTRelative(offset)
        return self.b.EndVector()

    def ints(self, count: int, value: int = 0) -> int:
        return self.b.CreateNumpyVector(np.full(count, value, np.int32))

    def tensor(self, name: int = 0, signature: int = 0, sparsity: int = 0, variants: int = 0) -> int:
        shape = self.ints(1, 1)
        schema.TensorStart(self.b)
        schema.TensorAddShape(self.b, shape)
        if name:
            schema.TensorAddName(self.b, name)
        if signature:
            schema.TensorAddShapeSignature(self.b, signature)
        if sparsity:
            schema.TensorAddSparsity(self.b, sparsity)
        if variants:
            schema.TensorAddVariantTensors(self.b, variants)
        return schema.TensorEnd(self.b)

    def op(self, inputs: int = 0, intermediates: int = 0) -> int:
        schema.OperatorStart(self.b)
        if inputs:
            schema.OperatorAddInputs(self.b, inputs)
        if intermediates:
            schema.OperatorAddIntermediates(self.b, intermediates)
        return schema.OperatorEnd(self.b)

    def graph(self, tensors: int, ops: int, name: int = 0, inputs: int = 0) -> int:
        schema.SubGraphStart(self.b)
        schema.SubGraphAddTensors(self.b, tensors)
        schema.SubGraphAddOperators(self.b, ops)
        if name:
            schema.SubGraphAddName(self.b, name)
        if inputs:
            schema.SubGraphAddInputs(self.b, inputs)
        return schema.SubGraphEnd(self.b)

    def model(self, graphs: int, **vectors: int) -> bytes:
        """Finish; ``vectors`` are further fields of the model: codes, buffers, signatures, metadata."""
        if "codes" not in vectors:
            schema.OperatorCodeStart(self.b)
            schema.OperatorCodeAddBuiltinCode(self.b, schema.BuiltinOperator.CUSTOM)
            vectors["codes"] = self.many(schema.OperatorCodeEnd(self.b), 1)
        if "buffers" not in vectors:
            schema.BufferStart(self.b)
            vectors["buffers"] = self.many(schema.BufferEnd(self.b), 1)
        add = {"codes": schema.ModelAddOperatorCodes, "buffers": schema.ModelAddBuffers,
               "signatures": schema.ModelAddSignatureDefs, "metadata": schema.ModelAddMetadata}  # fmt: skip
        schema.ModelStart(self.b)
        schema.ModelAddVersion(self.b, 3)
        schema.ModelAddSubgraphs(self.b, graphs)
        for name, vector in vectors.items():
            add[name](self.b, vector)
        self.b.Finish(schema.ModelEnd(self.b), b"TFL3")
        return bytes(self.b.Output())

    def plain_graphs(self, tensors: int = 1, ops: int = 1) -> int:
        tensor = self.many(self.tensor(), tensors)
        return self.many(self.graph(tensor, self.many(self.op(), ops)), 1)


def five_million_ops() -> bytes:
    c = Claims()
    return c.model(c.plain_graphs(ops=5_000_000))


def five_million_tensors() -> bytes:
    c = Claims()
    return c.model(c.plain_graphs(tensors=5_000_000))


def as_many_ops_as_the_limit_allows() -> bytes:
    c = Claims()
    return c.model(c.plain_graphs(ops=MAX_OBJECTS - 10))


def as_many_tensors_as_the_limit_allows() -> bytes:
    c = Claims()
    return c.model(c.plain_graphs(tensors=MAX_OBJECTS - 10))


def many_subgraphs_of_many_ops() -> bytes:
    c = Claims()
    graph = c.graph(c.many(c.tensor(), 1), c.many(c.op(), 10_000))
    return c.model(c.many(graph, 5_000))


def five_million_subgraphs() -> bytes:
    c = Claims()
    graph = c.graph(c.many(c.tensor(), 1), c.many(c.op(), 1))
    return c.model(c.many(graph, 5_000_000))


def ops_that_share_a_long_input_list() -> bytes:
    c = Claims()
    op = c.op(c.ints(200_000))
    return c.model(c.many(c.graph(c.many(c.tensor(), 1), c.many(op, 50_000)), 1))


def ops_that_share_long_intermediates() -> bytes:
    c = Claims()
    op = c.op(0, c.ints(200_000))
    return c.model(c.many(c.graph(c.many(c.tensor(), 1), c.many(op, 50_000)), 1))


def tensors_that_share_a_long_open_shape() -> bytes:
    c = Claims()
    tensor = c.tensor(signature=c.ints(200_000, 1))
    return c.model(c.many(c.graph(c.many(tensor, 50_000), c.many(c.op(), 1)), 1))


def tensors_that_share_long_sparsity() -> bytes:
    c = Claims()
    schema.DimensionMetadataStart(c.b)
    dims = c.many(schema.DimensionMetadataEnd(c.b), 100_000)
    schema.SparsityParametersStart(c.b)
    schema.SparsityParametersAddDimMetadata(c.b, dims)
    tensor = c.tensor(sparsity=schema.SparsityParametersEnd(c.b))
    return c.model(c.many(c.graph(c.many(tensor, 50_000), c.many(c.op(), 1)), 1))


def tensors_that_share_many_variants() -> bytes:
    c = Claims()
    schema.VariantSubTypeStart(c.b)
    variants = c.many(schema.VariantSubTypeEnd(c.b), 100_000)
    tensor = c.tensor(variants=variants)
    return c.model(c.many(c.graph(c.many(tensor, 50_000), c.many(c.op(), 1)), 1))


def tensors_that_share_a_long_name() -> bytes:
    c = Claims()
    tensor = c.tensor(name=c.b.CreateString("n" * 1_000_000))
    return c.model(c.many(c.graph(c.many(tensor, 50_000), c.many(c.op(), 1)), 1))


def subgraphs_that_share_a_long_name() -> bytes:
    c = Claims()
    name = c.b.CreateString("n" * 2_000_000)
    return c.model(c.many(c.graph(c.many(c.tensor(), 1), c.many(c.op(), 1), name), 9_000))


def subgraphs_that_share_a_long_input_list() -> bytes:
    c = Claims()
    inputs = c.ints(500_000)
    return c.model(c.many(c.graph(c.many(c.tensor(), 1), c.many(c.op(), 1), 0, inputs), 9_000))


def codes_that_share_a_long_name() -> bytes:
    c = Claims()
    graphs, name = c.plain_graphs(), c.b.CreateString("n" * 1_000_000)
    schema.OperatorCodeStart(c.b)
    schema.OperatorCodeAddCustomCode(c.b, name)
    return c.model(graphs, codes=c.many(schema.OperatorCodeEnd(c.b), 50_000))


def signatures_that_share_long_maps() -> bytes:
    c = Claims()
    graphs = c.plain_graphs()
    schema.TensorMapStart(c.b)
    maps = c.many(schema.TensorMapEnd(c.b), 100_000)
    schema.SignatureDefStart(c.b)
    schema.SignatureDefAddInputs(c.b, maps)
    return c.model(graphs, signatures=c.many(schema.SignatureDefEnd(c.b), 50_000))


def metadata_that_shares_a_buffer() -> bytes:
    """Each entry has a name of its own, so that a reader that copies the bytes keeps them all."""
    c = Claims()
    graphs, data = c.plain_graphs(), c.b.CreateByteVector(bytes(1_000_000))
    schema.BufferStart(c.b)
    empty = schema.BufferEnd(c.b)
    schema.BufferStart(c.b)
    schema.BufferAddData(c.b, data)
    buffers = c.several(schema.ModelStartBuffersVector, [empty, schema.BufferEnd(c.b)])
    entries = []
    for k in range(10_000):
        name = c.b.CreateString(str(k))
        schema.MetadataStart(c.b)
        schema.MetadataAddName(c.b, name)
        schema.MetadataAddBuffer(c.b, 1)
        entries.append(schema.MetadataEnd(c.b))
    return c.model(graphs, buffers=buffers, metadata=c.several(schema.ModelStartMetadataVector, entries))


REFUSED = [five_million_ops, five_million_tensors, five_million_subgraphs, many_subgraphs_of_many_ops]
CLAIMS = [
    *REFUSED, as_many_ops_as_the_limit_allows, as_many_tensors_as_the_limit_allows, ops_that_share_a_long_input_list,
    ops_that_share_long_intermediates, tensors_that_share_a_long_open_shape, tensors_that_share_long_sparsity,
    tensors_that_share_many_variants, tensors_that_share_a_long_name, subgraphs_that_share_a_long_name,
    subgraphs_that_share_a_long_input_list, codes_that_share_a_long_name, signatures_that_share_long_maps,
    metadata_that_shares_a_buffer,
]  # fmt: skip

# Parses in a process of its own with little memory: a file that eats it all must not take the tests along. CPU time
# is what counts, which does not depend on what else runs on the machine.
SECONDS, MEMORY = 5, 256 << 20
TOO_LARGE, REFUSED_IT = 4, 3
CHILD = """
import resource, sys
from shadownet.graph import parse
from shadownet.wire.errors import ModelError
content = open(sys.argv[1], "rb").read()
seconds, memory = int(sys.argv[2]), int(sys.argv[3])
used = resource.getrusage(resource.RUSAGE_SELF)
limit = int(used.ru_utime + used.ru_stime) + 1 + seconds
resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
try:
    parse(content)
    code = 0
except ModelError:
    code = 3
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used.ru_maxrss) * 1024
print(grown >> 20, "MiB")
sys.exit(code if grown < memory else 4)
"""


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda f: f.__name__)
def test_a_small_file_cannot_claim_much(claim: Callable[[], bytes], tmp_path: Path) -> None:
    path = tmp_path / "claims.tflite"
    path.write_bytes(claim())
    assert path.stat().st_size < 32 << 20
    command = [sys.executable, "-c", CHILD, str(path), str(SECONDS), str(MEMORY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=limit_address_space)
    assert done.returncode != -signal.SIGXCPU, f"took more than {SECONDS} seconds"
    assert done.returncode != TOO_LARGE, f"took {done.stdout.strip()}"
    assert done.returncode in ((REFUSED_IT,) if claim in REFUSED else (0, REFUSED_IT)), done.stderr[-2000:]


def limit_address_space() -> None:
    """Of the child: enough for its libraries, too little to hurt."""
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))


def test_a_model_of_a_usual_size_is_not_refused_for_it() -> None:
    """The limits above must leave real models alone: 5,000 ops in a row, as in no model we know."""
    net = Model().net()
    x = y = net.input(1, 4)
    for _ in range(5000):
        y = net.unary("RELU", y)
    graph = parse(net.output(y).model.content())
    assert len(graph.subgraphs[0].ops) == 5000 and graph.subgraphs[0].inputs == (x,)


# Through the whole conversion, where LiteRT reads the file as well


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


def assert_refused(content: bytes, folder: Path) -> Exception:
    """``convert`` refuses, by name, and leaves nothing in the folder."""
    source = folder.parent / "damaged.tflite"
    source.write_bytes(content)
    with pytest.raises(shadownet.Error) as caught:
        shadownet.convert(source, folder / "damaged.shadow")
    assert os.listdir(folder) == []
    assert "Traceback" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("fault", ["buffer too short for the shape", "a cycle", "unknown type", "no subgraph"])
def test_convert_refuses_what_the_reader_refuses(fault: str, empty: Path, device_key: Path) -> None:
    assert isinstance(assert_refused(with_change(FAULTS[fault][0]), empty), ModelError)


@pytest.mark.parametrize("size", [0, 3, 100, 4000])
def test_convert_refuses_a_file_that_was_cut(size: int, empty: Path, device_key: Path) -> None:
    assert isinstance(assert_refused(MLP.read_bytes()[:size], empty), ModelError)


def options_of_another_op(raw: Any) -> None:
    """LiteRT takes this model: it ignores options of the wrong kind."""
    layer = dense_op(raw)
    layer.builtinOptionsType, layer.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()


def no_options(raw: Any) -> None:
    layer = dense_op(raw)
    layer.builtinOptionsType, layer.builtinOptions = 0, None


@pytest.mark.parametrize("change", [options_of_another_op, no_options], ids=lambda f: f.__name__)
def test_strange_options_that_litert_ignores_convert(change: Any, empty: Path, device_key: Path) -> None:
    source = empty.parent / "strange.tflite"
    source.write_bytes(with_change(change))
    litert(source.read_bytes(), [np.zeros((1, 8, 8, 1), np.float32)])
    shadownet.convert(source, empty / "strange.shadow")


def runs_itself_for_ever() -> bytes:
    """A WHILE whose body is the subgraph that it stands in: preparing it never ends."""
    model = Model()
    main = model.net()
    x, y = main.input(1, dtype="bool"), main.tensor((1,), dtype="bool")
    main.writer.op("WHILE", [x], [y], schema.WhileOptionsT(1, 0))
    main.output(y)
    condition = model.net("condition")
    condition.output(condition.input(1, dtype="bool"))
    return model.content()


def crashes_when_it_runs() -> bytes:
    """LiteRT prepares a DEPTHWISE_CONV_2D without bias, and reads the missing tensor when it runs."""
    net = Model().net()
    return net.output(net.depthwise(net.input(1, 8, 8, 3), bias=False)).model.content()


@pytest.mark.parametrize("make", [runs_itself_for_ever, crashes_when_it_runs], ids=lambda f: f.__name__)
def test_a_crash_of_litert_is_an_error_of_the_model(make: Callable[[], bytes], empty: Path, device_key: Path) -> None:
    error = assert_refused(make(), empty)
    assert isinstance(error, ModelError) and "crashed" in str(error)


def stride_zero(raw: Any) -> None:
    conv = next(o for o in raw.subgraphs[0].operators if o.builtinOptionsType == schema.BuiltinOptions.Conv2DOptions)
    conv.builtinOptions.strideW = 0


def inputs_missing(raw: Any) -> None:
    dense_op(raw).inputs = ints()


def output_missing(raw: Any) -> None:
    dense_op(raw).outputs = ints()


def constant_as_input(raw: Any) -> None:
    raw.subgraphs[0].inputs = ints(*raw.subgraphs[0].inputs, dense_op(raw).inputs[1])


def bias_too_short(raw: Any) -> None:
    bias = raw.subgraphs[0].tensors[dense_op(raw).inputs[2]]
    bias.shape, raw.buffers[bias.buffer].data = ints(3), np.zeros(12, np.uint8)


def batch_of_none(raw: Any) -> None:
    raw.subgraphs[0].tensors[raw.subgraphs[0].inputs[0]].shape = ints(0, 8, 8, 1)


@pytest.mark.parametrize(
    "change",
    [stride_zero, inputs_missing, output_missing, constant_as_input, bias_too_short, batch_of_none],
    ids=lambda f: f.__name__,
)
def test_convert_refuses_what_only_litert_can_refuse(change: Any, empty: Path, device_key: Path) -> None:
    """Consistent as a file, and still no model that runs."""
    content = with_change(change, CNN)
    parse(content)
    assert_refused(content, empty)


def inner_changes(count: int) -> list[bytes]:
    """Random damage that the reader does not find: it is up to LiteRT, in its child process."""
    rng, content, found = np.random.default_rng(1), MLP.read_bytes(), []
    ends = np.r_[0:1500, len(content) - 1500 : len(content)]
    while len(found) < count:
        damaged = damaged_copy(content, [(int(p), int(rng.integers(1, 256))) for p in rng.choice(ends, 3)], 1 << 30)
        try:
            parse(damaged)
        except ModelError:
            continue
        found.append(damaged)
    return found


@pytest.mark.parametrize("number", range(20))
def test_damage_that_the_reader_cannot_see_converts_or_is_refused(number: int, empty: Path, device_key: Path) -> None:
    source = empty.parent / "damaged.tflite"
    source.write_bytes(inner_changes(20)[number])
    try:
        shadownet.convert(source, empty / "damaged.shadow")
    except shadownet.Error:
        assert os.listdir(empty) == []
    else:
        assert os.listdir(empty) == ["damaged.shadow"]
