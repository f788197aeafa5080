#!/usr/bin/env python3
"""Compare the simulator with published measurements that it was not fitted to; write the table of docs/simulator.md.

    python tools/validate_simulator.py            # rewrite the table
    python tools/validate_simulator.py --check    # exit with 1 if the table is not the present one

Networks are rebuilt from their papers' layer lists, additions included. Where a device profile exists it is used as
shipped; tools/validation.toml has the measurements with their sources.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from shadownet.simulator import counts, predict, profile  # noqa: E402
from shadownet.simulator.fitting import fit  # noqa: E402
from shadownet.simulator.work import Work  # noqa: E402

TARGET = ROOT / "docs" / "simulator.md"
MARKS = "<!-- validation -->", "<!-- end of validation -->"
DATA = tomllib.loads((ROOT / "tools" / "validation.toml").read_text())


@dataclass(frozen=True)
class Line:
    """A row of the table. ``limit`` is the largest error that the project asked for, 0 if it asked for none."""

    what: str
    fitted: str
    points: int
    error: float
    worst: float
    limit: float = 0.0

    def row(self) -> str:
        verdict = "reported" if not self.limit else "held" if self.error <= self.limit else "**missed**"
        asked = f"{self.limit:.0%}" if self.limit else ""
        return (
            f"| {self.what} | {self.fitted} | {self.points} | {self.error:.0%} | {self.worst:+.0%} | {asked} "
            f"| {verdict} |"
        )


class Shapes:
    """Layers of a network, one after the other, as the simulator counts them."""

    def __init__(self, side: int, channels: int = 3) -> None:
        self.side, self.channels, self.works = side, channels, list[Work]()

    def conv(self, filters: int, kernel: int = 1, stride: int = 1, inputs: tuple[int, int] | None = None) -> Shapes:
        """A convolution, padded; ``inputs`` (side, channels) if it does not read the last layer."""
        side, channels = inputs or (self.side, self.channels)
        self.side, self.channels = -(-side // stride), filters
        outputs = self.side**2 * filters
        depth = kernel**2 * channels
        self.works.append(Work("CONV_2D", outputs * depth, side**2 * channels + outputs, 4 * filters * depth))
        return self

    def depthwise(self, stride: int = 1) -> Shapes:
        before = self.side**2 * self.channels
        self.side = -(-self.side // stride)
        outputs = self.side**2 * self.channels
        self.works.append(Work("DEPTHWISE_CONV_2D", 9 * outputs, before + outputs, 36 * self.channels))
        return self

    def passes(self, inputs: int = 1) -> Shapes:
        """An op that reads ``inputs`` maps of this size and writes one."""
        self.works.append(Work("ADD", 0, (inputs + 1) * self.side**2 * self.channels))
        return self

    def pool(self) -> Shapes:
        before = self.side**2 * self.channels
        self.side //= 2
        self.works.append(Work("MAX_POOL_2D", 0, before + self.side**2 * self.channels))
        return self

    def dense(self, units: int) -> Shapes:
        c = self.channels
        self.works.append(Work("FULLY_CONNECTED", c * units, c + units, 4 * c * units))
        return self


def _eighths(value: float) -> int:
    """Widths of MobileNet v2: multiples of 8, never less than nine tenths of what was asked for."""
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


def mobilenet_v1(width: float, side: int) -> list[Work]:
    """Howard et al. 2017, Table 1."""
    net = Shapes(side).conv(max(int(32 * width), 8), 3, 2)
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for filters, stride in plan:
        net.depthwise(stride).conv(int(filters * width))
    return net.dense(1001).works


def mobilenet_v2(width: float, side: int) -> list[Work]:
    """Sandler et al. 2018, Table 2."""
    net = Shapes(side).conv(_eighths(32 * width), 3, 2)
    plan = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, filters, count, first in plan:
        for k in range(count):
            before, stride = net.channels, first if k == 0 else 1
            if expansion > 1:
                net.conv(before * expansion)
            net.depthwise(stride).conv(_eighths(filters * width))
            if stride == 1 and before == net.channels:
                net.passes(2)
    return net.conv(_eighths(1280 * width) if width > 1 else 1280).dense(1001).works


def resnet(blocks: tuple[int, ...], wide: int) -> list[Work]:
    """He et al. 2016, Table 1, at 224: basic blocks (``wide`` 1), or bottlenecks (4) that stride in their 3x3, as in
    MLPerf's ResNet-50 v1.5."""
    net = Shapes(224).conv(64, 7, 2).pool()
    for stage, count in enumerate(blocks):
        filters = 64 << stage
        for k in range(count):
            start, stride = (net.side, net.channels), 2 if k == 0 and stage else 1
            if wide == 1:
                net.conv(filters, 3, stride).conv(filters, 3)
            else:
                net.conv(filters).conv(filters, 3, stride).conv(wide * filters)
            if start[1] != net.channels or stride == 2:
                net.conv(wide * filters, 1, stride, start)
            net.passes(2)
    return net.dense(1000).works


def vgg16_features() -> list[Work]:
    """Simonyan and Zisserman 2015, D, with batch norm and without the dense layers, at 224."""
    net = Shapes(224)
    for stage, count in enumerate((2, 2, 3, 3, 3)):
        for _ in range(count):
            net.conv(min(64 << stage, 512), 3).passes().passes()
        net.pool()
    return net.works


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    args = parser.parse_args()
    text = TARGET.read_text()
    head, rest = text.split(MARKS[0])
    made = f"{head}{MARKS[0]}\n\n{table(lines())}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}"
    if args.check:
        return int(made != text)
    TARGET.write_text(made)
    print(table(lines()))
    return 0


def table(found: list[Line]) -> str:
    head = "| prediction | fitted to | held-out points | mean error | worst | asked for | |\n" + "|---" * 7 + "|"
    return "\n".join([head, *(line.row() for line in found)])


def lines() -> list[Line]:
    return [
        *_mobilenets(), *_resnet50(), _one("RPi3, ncnn: ResNet18", "the same board's MobileNet v1 and ResNet-50",
        _plain(resnet((2, 2, 2, 2), 1), "rpi3-optee"), DATA["rpi3_ncnn"]["resnet18"]), *_teeslice(), *_inside(),
        _ratio(), *_optee(), _energy(),
    ]  # fmt: skip


def _plain(works: list[Work], device: str) -> float:
    return predict.unprotected(works, profile.load(str(profile.PACKAGED / f"{device}.toml"))).latency_ms.expected


def _errors(what: str, fitted: str, pairs: list[tuple[float, float]], limit: float = 0.0) -> Line:
    """``pairs`` are (predicted, measured)."""
    off = np.array([predicted / measured - 1 for predicted, measured in pairs])
    return Line(what, fitted, len(off), float(np.abs(off).mean()), float(off[np.abs(off).argmax()]), limit)


def _one(what: str, fitted: str, predicted: float, measured: float, limit: float = 0.0) -> Line:
    return _errors(what, fitted, [(predicted, measured)], limit)


def fitted_hikey960() -> dict[str, float]:
    """op_us, gmac_s and gelem_s of the OpenCL runtime, from its MobileNet v1 sweep."""
    found = DATA["hikey960_opencl"]["mobilenet_v1"]
    rows = []
    for name in found:
        works = mobilenet_v1(*_setting(name))
        rows.append((len(works), sum(w.macs for w in works), sum(w.elements for w in works)))
    op, mac, element = fit(np.array(rows, float), np.array(list(found.values())))
    return {"op_us": op * 1e3, "gmac_s": 1e-6 / mac, "gelem_s": 1e-6 / element}


def _setting(name: str) -> tuple[float, int]:
    width, side = name.split("-")
    return float(width), int(side)


def _mobilenets() -> list[Line]:
    found = DATA["hikey960_opencl"]
    pairs = {
        name: [(_plain(build(*_setting(k)), "hikey960-optee"), ms) for k, ms in found[name].items()]
        for name, build in (("mobilenet_v1", mobilenet_v1), ("mobilenet_v2", mobilenet_v2))
    }
    return [
        _errors("HiKey960 GPU: MobileNet v1, 16 sizes (not held out)", "itself", pairs["mobilenet_v1"]),
        _errors("HiKey960 GPU: MobileNet v2, 22 sizes", "MobileNet v1", pairs["mobilenet_v2"], 0.2),
    ]


def _resnet50() -> list[Line]:
    works = resnet((3, 4, 6, 3), 4)
    found = []
    for name, record in DATA["resnet50"].items():
        if "profile" in record:
            predicted = _plain(works, record["profile"])
        else:
            macs, elements = sum(w.macs for w in works) / 1e6, sum(w.elements for w in works) / 1e6
            predicted = len(works) * record["op_ms"] + macs / record["gmac_s"] + elements / record["gelem_s"]
        found.append(_one(f"{name}: ResNet-50", "the same runtime's MobileNets", predicted, record["measured"]))
    return found


BLOCKS = ((64, 56), (64, 56), (128, 28), (128, 28), (256, 14), (256, 14), (512, 7), (512, 7))


def _teeslice() -> list[Line]:
    def wall(slices: list[list[int]]) -> float:
        """Milliseconds an image."""
        per_mac, per_input, per_output, each = DATA["teeslice"]["conv"]
        total = 0.0
        for block, sources in enumerate(slices):
            filters, side = BLOCKS[block]
            for back in sources:
                channels = BLOCKS[block - 1 - back][0] if block > back else 64
                positions = 64 * side**2
                total += positions * (
                    channels * filters * per_mac * 1e-9 + channels * per_input * 1e-6 + filters * per_output * 1e-6
                )
                total += each
        fixed, factor = DATA["teeslice"]["wall"]
        return float(fixed + factor * total) / 64

    def pairs(kind: str) -> list[tuple[float, float]]:
        return [(wall(run["slices"]), run["wall"]) for run in DATA["teeslice"][kind].values()]

    return [
        _errors("TEESlice, wall time: three ResNet18 runs (not held out)", "four ResNet18 runs", pairs("fitted")),
        _errors("TEESlice, wall time: the held-out runs whose logs are readable", "four ResNet18 runs",
                pairs("held_out"), 0.1),
    ]  # fmt: skip


def _inside() -> list[Line]:
    """Everything in an SGX1 enclave."""
    device = profile.load(str(profile.PACKAGED / "sgx1-laptop.toml"))

    def inside(works: list[Work]) -> float:
        weights = sum(work.weights for work in works)
        step = counts.Step("all", enclave=tuple(works), held=4 * max(work.elements for work in works))
        return predict.protected(counts.Counts((step,), 0.0, weights, 0, 4 * 224 * 224 * 3), device).latency_ms.expected

    measured = DATA["sgx_inside"]
    basic = resnet((2, 2, 2, 2), 1)
    return [
        _one("SGX1 with paging: ResNet18 (its cliff not held out)", "ResNet18 prefixes", inside(basic),
             measured["resnet18"]),
        _one("SGX1 with paging: VGG16 features", "ResNet18 prefixes", inside(vgg16_features()),
             measured["vgg16_features"]),
    ]  # fmt: skip


def _ratio() -> Line:
    """ShadowNet's own curve: the plain time and the first point are given, the counts tell the rest."""
    plain, curve = DATA["shadownet_ratio"]["plain"], DATA["shadownet_ratio"]["curve"]
    works = mobilenet_v1(1.0, 224)
    fixed = sum(w.macs for w in works if w.kind.startswith("DEPTH"))
    scaled = sum(w.macs for w in works) - fixed

    def outside(ratio: float) -> float:
        return float(plain * (fixed + ratio * scaled) / (fixed + scaled))

    pairs = [(curve[0] + outside(1.1 + k / 10) - outside(1.1), measured) for k, measured in enumerate(curve) if k]
    return _errors("ShadowNet's ratio curve, r = 1.2 to 2.0", "its plain time and r = 1.1", pairs, 0.1)


def _optee() -> list[Line]:
    empty = counts.Counts((), 0.0, 0, 0, 0)
    rpi3 = profile.load(str(profile.PACKAGED / "rpi3-optee.toml"))
    crossing = predict.protected(empty, rpi3, 1 << 20).latency_ms.expected * 1e3
    hikey = profile.load(str(profile.PACKAGED / "hikey960-optee.toml"))
    gemm = 2.36e6 / (hikey.get("enclave", "gmac_s").value * 1e6)
    return [
        _one("OP-TEE on RPi3: an invoke, 1 MiB taken as its size", "two points of another board", crossing,
             DATA["crossing_us"]["rpi3"], 0.5),
        _one("HiKey960: a layer in a trusted application", "the same code outside", gemm,
             DATA["gemm_ms"]["hikey960_ta"]),
    ]  # fmt: skip


def _energy() -> Line:
    power = profile.load(str(profile.PACKAGED / "rpi3-optee.toml")).get("power", "accelerator_w").value
    return _one("RPi3: power of its cores above idle", "scheduler coefficients", power, DATA["watts"]["rpi3"])


if __name__ == "__main__":
    sys.exit(main())
