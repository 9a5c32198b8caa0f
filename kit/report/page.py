"""One self-contained HTML page: data, style and script in one file, nothing from a network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from kit.files import replace_file
from kit.runs.directory import Run
from kit.runs.provenance import (
    SYNTHETIC,
    UNRECORDED,
    is_recorded,
    list_facts,
    read_provenance,
)

_STYLES = ("report.css", "reader.css", "print.css")
_SCRIPTS = (
    *("page.js", "plot.js", "pixels.js", "reader.js", "series.js", "controls.js"),
    *("explanation.js", "studies.js", "sheets.js", "report.js"),
)


def write_page(path: Path, data: dict, images: Sequence[str] = ()) -> Path:
    """Render to `path`, which is replaced only by a complete page, and return `path`."""
    page = render_page(data, images)
    with replace_file(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


def describe_model(run: Run) -> dict:
    """What a page says first: where the model comes from; in red, for what it is no use; in amber,
    that nothing is recorded of its training.
    """
    provenance = read_provenance(run)
    warning = SYNTHETIC if provenance["synthetic"] else None
    unknown = None if is_recorded(provenance) else UNRECORDED
    return {"model": list_facts(provenance), "warning": warning, "unknown": unknown}


def render_page(data: dict, images: Sequence[str] = ()) -> str:
    """Render `data` as HTML, with the `images` of each series, which the browser parses on demand.

    No value of `data` can become markup: it is JSON without `<`, and the script writes it as text.
    The page's content security policy lets the browser run this script alone and load nothing
    from the network.
    """
    style = "\n".join(map(read_asset, _STYLES))
    script = "\n".join(map(read_asset, _SCRIPTS))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Base64 holds no `<`. Outside the JSON, so that opening the page does not parse them.
    blocks = "\n".join(
        f'<script type="text/plain" id="px-{number}">{text}</script>'
        for number, text in enumerate(images)
    )
    page = read_asset("report.html")
    # The data go in last, so that nothing in them is taken for a placeholder.
    for name, value in (
        ("digest", digest),
        ("style", style),
        ("script", script),
        ("images", blocks),
        ("data", text.replace("<", "\\u003c")),
    ):
        page = page.replace(f"[[{name}]]", value, 1)
    return page


def read_asset(name: str) -> str:
    """Read the text of a file of `assets`."""
    return resources.files("kit.report").joinpath("assets", name).read_text(encoding="utf-8")
