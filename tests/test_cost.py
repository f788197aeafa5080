"""The cost rule of ``--outsource auto``."""

from __future__ import annotations

from pathlib import Path

from build import Model, parted

import shadownet
from shadownet import cost


def linear_ops(content: bytes) -> list:
    return parted(content).linear


def test_a_large_layer_is_worth_it_and_a_tiny_one_is_not() -> None:
    net = Model().net()
    x = net.input(1, 64, 64, 64)
    content = net.output(net.conv(net.conv(x, 64), 1, kernel=1)).model.content()
    large, tiny = linear_ops(content)
    assert cost.verdict(large, 1.2) == ""
    assert "not worth it" in cost.verdict(tiny, 1.2)


def test_the_price_counts_every_byte_that_crosses() -> None:
    net = Model().net()
    (lin,) = linear_ops(net.output(net.conv(net.input(1, 8, 8, 3), 10, kernel=1)).model.content())
    crossed = 4 * (8 * 8 * 3 + 8 * 8 * 12)  # ceil(1.2 * 10) channels come back
    assert cost.price(lin, 1.2) == cost.PER_BYTE * crossed + cost.PER_CROSSING


def test_auto_outsources_what_is_worth_it(tmp_path: Path, device_key: Path) -> None:
    net = Model().net()
    x = net.input(1, 32, 32, 64)
    path = tmp_path / "m.tflite"
    path.write_bytes(net.output(net.conv(net.conv(x, 64), 1, kernel=1)).model.content())
    summary = shadownet.convert(path, tmp_path / "m.shadow", outsource="auto")
    assert summary["layers_outsourced"] == 1
