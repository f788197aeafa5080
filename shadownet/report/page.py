"""The page: one HTML file with its style, script and data inside, that asks the network for nothing.

Data never becomes markup: it is a JSON block in which ``<``, ``>`` and ``&`` are escaped, and the script writes it as
text only. The policy allows exactly this script and this style, by their hashes, and pictures from data URLs.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any

# One file per part of the page; main.js comes last and draws them.
SCRIPTS = ("dom.js", "graph.js", "table.js", "charts.js", "heat.js", "pictures.js", "main.js")


def render(report: dict[str, Any]) -> str:
    """The page for a report that :func:`~shadownet.report.assemble.assemble` made."""
    style = _file("report.css")
    script = "(() => {\n'use strict';\n" + "\n".join(_file(name) for name in SCRIPTS) + "\n})();"
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    data = json.dumps(report, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    parts = {"@POLICY@": policy, "@STYLE@": style, "@DATA@": data, "@SCRIPT@": script}
    before, page = "", _file("report.html")
    for mark, content in parts.items():  # in the template's order, and never inside what was put in
        head, page = page.split(mark)
        before += head + content
    return before + page


def _file(name: str) -> str:
    return (resources.files("shadownet.report") / "page" / name).read_text("utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
