"""Lowering: a tagged graph becomes the public model, the trusted model and the enclave's program."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from enclave.exact import Residues, largest_sum, plan, prime_above
from enclave.formats import MASK_BOUND
from enclave.limbs import split
from enclave.rng import Rng
from enclave.schemes import LayerWeights, Obfuscated, Scheme
from shadownet import tiling
from shadownet.cost import sending
from shadownet.gathering import gathers
from shadownet.graph import Graph, ModelWriter, Op, Subgraph, SubgraphWriter
from shadownet.graph.ir import OP_NAMES
from shadownet.interface import interface_spec
from shadownet.linear import OPTIONS, LinearOp
from shadownet.partition import HANDLES, Partition, Step
from shadownet.progress import track
from shadownet.quantized import Bits, Numbers, constants, numbers
from shadownet.relatives import against, factored
from shadownet.wire.errors import InputError
from shadownet.wire.precision import mask_share
from shadownet.wire.tensors import DTYPES

Array = np.ndarray[Any, Any]


@dataclass
class Lowered:
    """Everything a bundle is made of. ``accelerator`` is b"" when nothing is outsourced."""

    accelerator: bytes
    program: dict[str, Any]
    blobs: dict[str, Array]
    layers: list[dict[str, Any]]  # the public description of each outsourced layer


@dataclass
class Cut:
    """A layer's weights as they are computed with: ``public`` on the accelerator, ``true`` for pop masks, both float32
    [groups, filters, d]. Inputs are stacked ``stack`` times; ``record`` says how answers are put together."""

    public: Array
    true: Array
    stack: int
    record: dict[str, Any]


class Lowering:
    """Lowers the partitions of all entries of one model. ``rms`` maps (entry, tensor) to its root mean square.

    ``bits`` are those of exact activations, None for float ones; ``checked`` is the share of answers to be checked.
    ``base`` has the public rows for each op id, for schemes that need one, whose difference to the true rows may be
    approximated within ``tolerance`` (relative, Frobenius). ``precision`` is the coarsest of an accelerator.
    """

    def __init__(
        self, graph: Graph, scheme: Scheme, ratio: float, rng: Rng, bits: Bits | None, checked: float,
        base: dict[int, Array], tolerance: float, precision: str,
    ) -> None:  # fmt: skip
        self._graph, self._scheme, self._ratio, self._rng, self._bits = graph, scheme, ratio, rng, bits
        self._checked, self._base, self._tolerance, self._precision = checked, base, tolerance, precision
        self._public = ModelWriter(
            f"Public half of a shadownet bundle ({scheme.name}): all that the accelerator, and so an attacker, has of "
            "the weights. One signature per outsourced layer; the enclave sends x and takes y."
        )
        self._trusted = ModelWriter("trusted half of a shadownet bundle: segments")
        self._linear = ModelWriter("trusted half of a shadownet bundle: true weights")
        self._blobs: dict[str, Array] = {}
        self._layers: list[dict[str, Any]] = []
        self._described: list[dict[str, Any]] = []

    def run(
        self,
        content: bytes,
        partitions: dict[int, Partition],
        folded: dict[int, dict[int, Array]],
        rms: dict[int, dict[int, float]],
    ) -> Lowered:
        everything = [(e, p, lin) for e, p in partitions.items() for lin in p.linear]
        dense = [lin for _, _, lin in everything if lin.kind in ("FULLY_CONNECTED", "BATCH_MATMUL")]
        numbers: dict[int, int] = {}
        for entry, part, lin in track(everything, "hiding layers"):
            numbers[id(lin)] = len(self._layers)
            self._layer(part, lin, folded[entry], rms[entry].get(lin.input, 1.0), bool(dense) and lin is dense[-1])
        # With nothing to outsource the enclave runs the model as it is.
        entry_of = self._entry if everything else self._whole
        entries = {
            str(entry): entry_of(part, [numbers.get(id(step.linear), -1) for step in part.steps], folded[entry])
            for entry, part in partitions.items()
        }
        has_trusted = bool(self._trusted.model.subgraphs)
        trusted = content if not everything else self._trusted.finish() if has_trusted else b""
        linear = self._linear.finish() if everything else b""
        self._blobs["trusted"], self._blobs["linear"] = (np.frombuffer(model, np.uint8) for model in (trusted, linear))
        program = {
            "checked": self._checked,
            "precision": self._precision,
            "stateful": any(_stateful(graph) for graph in self._graph.subgraphs),
            "entries": entries,
            "layers": self._layers,
            "signatures": [
                {"key": s.key, "entry": s.subgraph, "inputs": s.inputs, "outputs": s.outputs}
                for s in self._graph.signatures
            ],
        }
        accelerator = self._public.finish() if self._layers else b""
        for layer, parts in zip(self._layers, weight_parts(accelerator), strict=True):
            layer["public"]["parts"] = [
                [at, shape, used] for (at, shape), (used, _) in zip(parts, layer["public"].pop("tiles"), strict=True)
            ]
        own = weight_parts(linear)
        for layer in self._layers:
            layer["weights"] = own[layer["pop"]]
            if layer["private"] is not None:
                layer["private"]["weights"] = own[layer["private"]["subgraph"]]
        return Lowered(accelerator, program, self._blobs, self._described)

    def _layer(self, part: Partition, lin: LinearOp, folded: dict[int, Array], rms: float, last_dense: bool) -> None:
        name = f"layer{len(self._layers):03d}_{lin.kind.lower()}"
        values = numbers(lin, part.graph, constants(lin, part.graph, folded), self._bits)
        difference = None
        if self._scheme.needs_base:
            values, difference = against(values, self._base[lin.op.id], self._bits)
        weights = LayerWeights(
            values.rows, lin.depthwise, values.exact, values.record["kind"] == "fixed", last_dense, lin.input_shape[-1]
        )
        hidden = self._scheme.obfuscate(weights, self._ratio, self._rng)
        cut = self._residues(lin, values, hidden) if self._bits else self._floats(values, hidden)
        target = self._public.subgraph(name)
        crossing = lin.stacked(cut.stack)
        slots = cut.public.shape[0] * cut.public.shape[1]
        tiles = tiling.choose(crossing, slots) if self._scheme.tuned else [(slots, 1)]
        x, y = tiling.emit(crossing, target, lin.weights_from(cut.public), tiles)
        self._public.signature(name, target, {"x": x}, {"y": y})
        trusted = self._linear.subgraph(f"{name}_pop")
        _, pop_output = lin.emit(trusted, lin.weights_from(cut.true))
        mask = self._scheme.mask
        maskable = mask is not None or self._bits is not None
        own_input = lin.public_input and not self._scheme.masks_input
        _label(target, name, maskable and not own_input)
        self._layers.append(
            {
                "signature": name,
                "input": lin.input,
                "output": lin.result,
                "shapes": [list(lin.input_shape), list(lin.output_shape)],
                "slots": slots,
                "sigma": mask.sigma(rms) * mask_share(self._precision) if mask else 0.0,
                "maskable": maskable,
                "public_input": own_input,
                "private": None if difference is None else self._private(name, lin, values, difference),
                "pop": trusted.index,
                "pop_output": pop_output,
                "public": lin.geometry() | {"tiles": tiles},
                "format": self._format(name, values) | self._epilogue(name, lin),
                "restore": {
                    key: self._blob(f"{name}.restore.{key}", value) for key, value in hidden.restore.to_blobs().items()
                },
                **cut.record,
            }
        )
        self._described.append(
            {
                "signature": name,
                "op": lin.kind,
                "id": lin.op.id,
                "input": list(crossing.input_shape),
                "output": [*crossing.output_shape[:-1], slots],
                "tiles": tiles,
                "filters": lin.filters,
                "limbs": slots // (hidden.rows.shape[0] * hidden.rows.shape[1]),
                "input_limbs": cut.stack,
                "numbers": values.record["kind"],
                "macs": lin.macs,
                "masked": maskable and not own_input,
                "private_macs": self._private_macs(lin, values, difference),
            }
        )

    def _private(self, name: str, lin: LinearOp, values: Numbers, difference: Array) -> dict[str, Any]:
        """Write the enclave's own part of a layer: factored where that is less work and within the tolerance."""
        graph = self._linear.subgraph(f"{name}_private")
        if values.exact and values.record["kind"] != "fixed":
            cut, *limbs = split(difference, values.largest)
            _, output = lin.emit(graph, lin.weights_from(cut))
            return {"subgraph": graph.index, "output": output, "limbs": [difference.shape[0], *limbs]}
        factors = self._factored(lin, values, difference)
        output = (
            lin.emit(graph, lin.weights_from(difference))[1] if factors is None else lin.emit_factored(graph, *factors)
        )
        return {"subgraph": graph.index, "output": output, "limbs": [difference.shape[0], 1, 1]}

    def _factored(self, lin: LinearOp, values: Numbers, difference: Array) -> tuple[Array, Array] | None:
        if values.record["kind"] in ("integer", "hybrid"):
            return None  # results must be exact
        return factored(lin, difference, self._tolerance * float(np.linalg.norm(values.rows + difference)))

    def _private_macs(self, lin: LinearOp, values: Numbers, difference: Array | None) -> int:
        """Multiply-adds of the enclave's own part."""
        if difference is None:
            return 0
        factors = self._factored(lin, values, difference)
        if factors is None:
            return lin.macs
        rank = factors[1].shape[0]
        return lin.positions * rank * (lin.depth + lin.filters)

    @staticmethod
    def _floats(values: Numbers, hidden: Obfuscated) -> Cut:
        """For float activations. Exact layers are cut into limbs where their sums would not fit a float32."""
        groups = hidden.rows.shape[0]

        def limbs(rows: Array) -> tuple[Array, int, int]:
            # The bound counts the mask even where there is none by default: --mask-input adds one at run time.
            return split(rows, values.largest + MASK_BOUND) if values.exact else (rows, 1, 1)

        public, *public_limbs = limbs(hidden.rows)
        true, *pop_limbs = limbs(values.rows)
        record = {"limbs": [groups, *public_limbs], "pop_limbs": [groups, *pop_limbs], "residues": None}
        return Cut(public, true, 1, record)

    @staticmethod
    def _residues(lin: LinearOp, values: Numbers, hidden: Obfuscated) -> Cut:
        """For exact activations. Raises ``InputError`` if the scheme's integers are too large."""
        late = not np.array_equal(hidden.restore.coefficient, np.rint(hidden.restore.coefficient))
        # Restored late, the enclave needs the sums of the public rows; otherwise those of the true ones.
        own = hidden.rows if late else values.rows
        try:
            prime = prime_above(2 * largest_sum(own, values.largest))
            public, product = plan(hidden.rows, prime, sending(lin))
            true, pop = plan(own, prime, sending(lin))
        except ValueError:
            raise InputError("a hidden layer's sums cannot be kept exact", "use fewer --bits") from None
        found = Residues(prime, product, pop, late)
        if not found.restorable(hidden.restore):
            raise InputError("the scheme's restoring map is too large to be exact", "use a smaller group")
        record = {"limbs": [1, 1, 1], "pop_limbs": [1, 1, 1], "residues": found.to_json()}
        return Cut(public, true, product.digits.count, record)

    def _epilogue(self, name: str, lin: LinearOp) -> dict[str, Any]:
        """The record of what a float layer's kernel does after restoring."""
        epilogue = lin.epilogue
        record: dict[str, Any] = {"first": epilogue.first.to_json(), "second": epilogue.second.to_json()}
        record["residual"] = epilogue.residual
        for key, vector in (("gain", epilogue.gain), ("shift", epilogue.shift)):
            record[key] = "" if vector is None else self._blob(f"{name}.epilogue.{key}", vector)
        return record

    def _format(self, name: str, values: Numbers) -> dict[str, Any]:
        """The record of a layer's number format, its arrays replaced by the names of blobs."""
        stored = {key: self._blob(f"{name}.format.{key}", value) for key, value in values.blobs.items()}
        return values.record | stored

    def _blob(self, name: str, value: Array) -> str:
        assert name not in self._blobs
        self._blobs[name] = value
        return name

    def _entry(self, part: Partition, numbers: list[int], folded: dict[int, Array]) -> dict[str, Any]:
        graph = part.graph
        steps = [
            self._segment(part, step) if step.linear is None else {"layer": number}
            for step, number in zip(part.steps, numbers, strict=True)
        ]
        values = {t: graph.tensors[t].values() for t in graph.outputs if graph.tensors[t].is_constant}
        values |= {t: folded[t] for t in graph.outputs if t in folded}
        constants = {str(t): self._blob(f"entry{graph.index}.tensor{t}", value) for t, value in values.items()}
        specs = [[interface_spec(part, t).to_json() for t in side] for side in (graph.inputs, graph.outputs)]
        return {"inputs": specs[0], "outputs": specs[1], "steps": steps, "constants": constants}

    def _whole(self, part: Partition, numbers: list[int], folded: dict[int, Array]) -> dict[str, Any]:
        graph = part.graph
        specs = [[interface_spec(part, t).to_json() for t in side] for side in (graph.inputs, graph.outputs)]
        made = [t for t in dict.fromkeys(graph.outputs) if t not in graph.inputs]
        step = {
            "subgraph": graph.index,
            "inputs": [[t, t] for t in graph.inputs],
            "outputs": [[t, t] for t in made],
            **_sizes(part, range(len(graph.tensors)), made),
        }
        return {"inputs": specs[0], "outputs": specs[1], "steps": [step], "constants": {}}

    def _segment(self, part: Partition, step: Step) -> dict[str, Any]:
        """Copy a trusted segment's ops into the trusted model."""
        source = part.graph
        target = self._trusted.subgraph(f"segment_{step.ops[0].id}")
        touched = {t for op in step.ops for t in (*op.reads(), *op.outputs)} | set(step.inputs)
        for op in step.ops:
            if op.raw.intermediates is not None:
                touched.update(int(t) for t in op.raw.intermediates if t >= 0)
        mapping = {}
        for t in sorted(touched):
            shape = part.shapes.shape[t] if t in step.inputs else None
            mapping[t] = target.copy_tensor(source, source.tensors[t], shape)
        joins = _joined_for_pooling(source, step)
        joining = {join.id for join in joins.values()}
        for op in step.ops:
            if op.id in joins:
                self._pool_then_join(part, target, op, joins[op.id], mapping)
            elif op.id not in joining:
                target.copy_op(self._graph, op, mapping)
        target.interface([mapping[t] for t in step.inputs], [mapping[t] for t in step.outputs])
        return {
            "subgraph": target.index,
            "inputs": [[t, mapping[t]] for t in step.inputs],
            "outputs": [[t, mapping[t]] for t in step.outputs],
            "gathers": gathers(source, step, part.shapes.shape),
            **_sizes(part, touched, step.outputs),
        }

    def _pool_then_join(
        self, part: Partition, target: SubgraphWriter, pool: Op, join: Op, mapping: dict[int, int]
    ) -> None:
        """Max-pooling keeps channels apart, so parts pooled before they are joined give the same in fewer bytes."""
        pooled, shape = [], part.shapes.shape
        for t in join.inputs:
            pooled.append(target.tensor("pooled", (*shape[pool.outputs[0]][:3], shape[t][3])))
            target.copy_op(self._graph, pool, {pool.inputs[0]: mapping[t], pool.outputs[0]: pooled[-1]})
        parts = dict(zip(join.inputs, pooled, strict=True))
        target.copy_op(self._graph, join, parts | {join.outputs[0]: mapping[pool.outputs[0]]})


def _joined_for_pooling(graph: Subgraph, step: Step) -> dict[int, Op]:
    """Float concatenations of channels that nothing but a max-pooling reads, by that pooling's id."""
    makers = {op.outputs[0]: op for op in step.ops if op.kind == "CONCATENATION"}
    readers = Counter(t for op in step.ops for t in op.reads())
    found = {}
    for op in step.ops:
        join = makers.get(op.input(0)) if op.kind == "MAX_POOL_2D" else None
        if join is None or readers[join.outputs[0]] > 1 or join.outputs[0] in step.outputs:
            continue
        plain = join.options.fusedActivationFunction == 0 and join.options.axis in (3, -1)
        if plain and graph.tensors[join.outputs[0]].dtype == "float32" and len(set(join.inputs)) == len(join.inputs):
            found[op.id] = join
    return found


def _label(graph: SubgraphWriter, layer: str, masked: bool) -> None:
    """Name a public layer's tensors for whoever opens the file in Netron.

    The names say what everybody may know: the layer's number, its kind, and whether its input carries a mask. The
    model's own names stay in the sealed half; they can tell what a network is for, and whose it is.
    """
    known = {"x": "x_masked" if masked else "x", "y": "y_to_restore", "weights": "weights_public"}
    for tensor in graph.raw.tensors:
        tensor.name = f"{layer}/{known.get(tensor.name, tensor.name)}"


def _sizes(part: Partition, touched: Iterable[int], made: list[int]) -> dict[str, Any]:
    """What a segment takes: bytes of the tensors that it computes with, and of each of its outputs.

    Tensors whose shape is known only at run time count nothing, and neither do those of subgraphs that it calls.
    """

    def size(t: int) -> int:
        tensor = part.graph.tensors[t]
        item = DTYPES[tensor.dtype].itemsize if tensor.dtype in DTYPES else 0
        return item * math.prod(part.shapes.shape[t])

    computed = [t for t in touched if not part.graph.tensors[t].is_constant]
    return {"tensors": sum(map(size, computed)), "sizes": [size(t) for t in made]}


def _stateful(graph: Subgraph) -> bool:
    """Whether a subgraph may remember something from one run to the next."""
    return any(t.raw.isVariable for t in graph.tensors) or any(op.kind in HANDLES for op in graph.ops)


def weight_parts(content: bytes) -> list[list[tuple[int, list[int]]]]:
    """(byte offset, shape) of each weight tensor, by subgraph of a public model."""
    if not content:
        return []
    model, found = schema.Model.GetRootAs(content), []
    for k in range(model.SubgraphsLength()):
        graph, parts = model.Subgraphs(k), []
        for i in range(graph.OperatorsLength()):
            op = graph.Operators(i)
            code = model.OperatorCodes(op.OpcodeIndex()).BuiltinCode()
            if OP_NAMES[code] in OPTIONS:
                tensor = graph.Tensors(op.Inputs(1))
                table = model.Buffers(tensor.Buffer())._tab
                parts.append((table.Vector(table.Offset(4)), tensor.ShapeAsNumpy().tolist()))
        found.append(parts)
    return found
