"""Read and write ``.tflite`` files through LiteRT's own schema module."""

from shadownet.graph.ir import Graph, Op, Signature, Subgraph, Tensor
from shadownet.graph.read import load, parse
from shadownet.graph.write import ModelWriter, SubgraphWriter

__all__ = ["Graph", "ModelWriter", "Op", "Signature", "Subgraph", "SubgraphWriter", "Tensor", "load", "parse"]
