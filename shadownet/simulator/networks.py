"""Small networks that ``shadownet calibrate`` times: chains of equal layers, in the shapes that real networks have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from shadownet.graph import ModelWriter
from shadownet.graph.write import SubgraphWriter

RELU = 1


@dataclass(frozen=True)
class Chain:
    """``depth`` layers of one kind on maps [1, side, side, channels]; a dense chain has ``side`` squared rows."""

    kind: str
    side: int
    channels: int
    kernel: int = 1
    depth: int = 2

    def model(self) -> bytes:
        """The network as a .tflite file."""
        writer = ModelWriter("calibration")
        graph = writer.subgraph("main")
        rng = np.random.default_rng(0)
        x = y = graph.tensor("x", self.shape)
        for layer in range(self.depth):
            y = self._layer(graph, y, x, layer, rng)
        graph.interface([x], [y])
        return writer.finish()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its input and of every layer's result."""
        if self.kind == "FULLY_CONNECTED":
            return (self.side * self.side, self.channels)
        return (1, self.side, self.side, self.channels)

    def _layer(self, graph: SubgraphWriter, x: int, first: int, layer: int, rng: np.random.Generator) -> int:
        y = graph.tensor(f"y{layer}", self.shape)
        if self.kind == "ADD":
            graph.op("ADD", [x, first], [y], schema.AddOptionsT(0))
        elif self.kind == "SOFTMAX":
            graph.op("SOFTMAX", [x], [y], schema.SoftmaxOptionsT(1.0))
        else:
            shape, options = self._filters()
            scale = 1 / np.sqrt(np.prod(shape[1:3] if self.kind.startswith("DEPTH") else shape[1:]))
            weights = rng.normal(0, scale, shape).astype(np.float32)
            w = graph.tensor(f"w{layer}", shape, weights)
            b = graph.tensor(f"b{layer}", (self.channels,), np.zeros(self.channels, np.float32))
            version = 2 if "CONV" in self.kind else 1
            graph.op(self.kind, [x, w, b], [y], options, version=version)
        return y

    def _filters(self) -> tuple[tuple[int, ...], object]:
        n, k = self.channels, self.kernel
        if self.kind == "CONV_2D":
            return (n, k, k, n), schema.Conv2DOptionsT(schema.Padding.SAME, 1, 1, RELU, 1, 1)
        if self.kind == "DEPTHWISE_CONV_2D":
            return (1, k, k, n), schema.DepthwiseConv2DOptionsT(schema.Padding.SAME, 1, 1, 1, RELU, 1, 1)
        return (n, n), schema.FullyConnectedOptionsT(fusedActivationFunction=RELU)


PLAIN = (
    *(Chain("CONV_2D", side, n, 3) for side, n in ((56, 64), (28, 128), (14, 256), (7, 512), (32, 16), (16, 32))),
    *(Chain("CONV_2D", side, n) for side, n in ((56, 128), (28, 256), (14, 512), (7, 1024))),
    *(Chain("DEPTHWISE_CONV_2D", side, n, 3) for side, n in ((112, 32), (56, 128), (28, 256), (14, 512))),
    # Weights of dense layers come from memory in real networks: these are larger than caches.
    Chain("FULLY_CONNECTED", 1, 2048, depth=4),
    Chain("FULLY_CONNECTED", 1, 3072, depth=3),
    Chain("FULLY_CONNECTED", 14, 192),
    Chain("FULLY_CONNECTED", 14, 768),
    *(Chain("ADD", side, n) for side, n in ((32, 16), (56, 64), (112, 64), (208, 32))),
    *(Chain("SOFTMAX", side, n) for side, n in ((14, 196), (1, 1000))),
)
PROTECTED = (
    *(Chain("CONV_2D", 32, 16, 3, depth) for depth in (2, 16)),
    *(Chain("CONV_2D", 8, 64, 3, 8), Chain("CONV_2D", 28, 128, 3, 3)),
    *(Chain("CONV_2D", side, n, depth=4) for side, n in ((112, 32), (28, 64), (14, 256))),
    *(Chain("DEPTHWISE_CONV_2D", side, n, 3, 4) for side, n in ((112, 64), (28, 128), (14, 256))),
)
