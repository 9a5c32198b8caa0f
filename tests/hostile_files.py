"""Files that a stranger made, or a disk spoilt, of every kind that kit reads beside DICOM."""

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

Change = Callable[[Path], None]  # spoils the file at a path, which is good before

VALUES = (None, "x", "", -1, 0, 10**9, 10**400, 1e308, float("nan"), True, [], {}, [[]], "\ud800")


def spoil_bytes(seed: int = 0) -> dict[str, Change]:
    """Changes that know nothing of what is in the file."""
    contents = {
        "empty": b"", "one byte": b"\0", "zeros": bytes(4096), "not UTF-8": b"\xff\xfe" * 50,
        "text": b"hello\n", "a page": b"<!doctype html><title>404</title>", "null": b"null",
        "a list": b"[]", "a number": b"3", "an object": b"{}", "nested": b"[" * 100_000,
        "a long number": b"9" * 100_000, "a pickle": b"\x80\x04\x95\x0b\0\0\0.", "a zip": b"PK\3\4",
    }  # fmt: skip
    changes: dict[str, Change] = {
        name: (lambda path, content=content: path.write_bytes(content))
        for name, content in contents.items()
    }
    for share in (0.1, 0.5, 0.9, 0.999):
        changes[f"cut at {share}"] = lambda path, share=share: os.truncate(
            path, int(path.stat().st_size * share)
        )
    for number in range(6):
        changes[f"flipped {number}"] = lambda path, number=number: _flip(path, seed + number)
    changes["a folder"] = lambda path: (path.unlink(), path.mkdir())  # type: ignore[assignment]
    changes["a pipe"] = lambda path: (path.unlink(), os.mkfifo(path))  # type: ignore[assignment]
    changes["a link to itself"] = lambda path: _link(path, path)
    changes["endless"] = lambda path: _link(path, Path("/dev/zero"))
    changes["nothing"] = lambda path: _link(path, Path("/dev/null"))
    changes["lost"] = lambda path: _link(path, path.with_name("nowhere"))
    changes["sparse"] = lambda path: os.truncate(path, 1 << 37)
    return changes


def _flip(path: Path, seed: int) -> None:
    content, rng = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(8):
        content[rng.randrange(min(len(content), 4096))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _link(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def spoil_document(document: Any, place: tuple = ()) -> Iterator[tuple[str, Any]]:
    """(name, other document): each value replaced by each of `VALUES`, or left out."""
    for value in VALUES:
        yield f"{'.'.join(map(str, place)) or 'all'} = {str(value)[:20]}", value
    entries = document.items() if isinstance(document, dict) else ()
    for name, inner in entries:
        rest = {other: kept for other, kept in document.items() if other != name}
        yield f"without {'.'.join(map(str, (*place, name)))}", rest
        for how, changed in spoil_document(inner, (*place, name)):
            yield how, {**document, name: changed}


def write_document(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")


def spoil_table(path: Path) -> dict[str, Change]:
    """Changes of a table's columns, one at a time; `path` is the good one."""
    table = pd.read_parquet(path)
    changed = {"no row": table.iloc[:0], "no column": table[[]], "twice": pd.concat([table] * 2)}
    for name in table:
        changed[f"without {name}"] = table.drop(columns=name)
        for value in (None, 7.5, "x", b"x", True, np.inf, -3):
            changed[f"{name} = {value}"] = table.assign(**{name: value})
    return {
        name: (lambda path, table=table: table.to_parquet(path)) for name, table in changed.items()
    }


def split_weights(content: bytes) -> tuple[dict, bytes]:
    """The header and the data of a `.safetensors` file."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def join_weights(header: dict, data: bytes) -> bytes:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data


def spoil_weights(content: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, content) of weights whose header says something else."""
    header, data = split_weights(content)
    for length in (0, 7, 2**31, 2**63, 2**64 - 1):
        yield f"header of {length}", length.to_bytes(8, "little") + content[8:]
    yield "more data", content + b"\0" * 64
    first, *_, last = [name for name in header if name != "__metadata__"]
    kinds = ("F64", "F16", "BF16", "I64", "I8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64", "X")

    def change(name: str, **entries: Any) -> bytes:
        return join_weights({**header, name: {**header[name], **entries}}, data)

    for name in (first, last):
        entry = header[name]
        for kind in kinds:
            yield f"{name} is {kind}", change(name, dtype=kind)
        shapes = ([], [1], entry["shape"][::-1], [*entry["shape"], 1], [2**40], [-1], ["a"], None)
        for shape in shapes:
            yield f"{name} of {shape}", change(name, shape=shape)
        for offsets in ([0, 0], [4, 0], [-4, 0], [0, 2**60], None):
            yield f"{name} at {offsets}", change(name, data_offsets=offsets)
        renamed = {"strange" if key == name else key: value for key, value in header.items()}
        yield f"{name} renamed", join_weights(renamed, data)
        start, end = entry["data_offsets"]
        for value in (np.nan, np.inf):
            filled = np.full((end - start) // 4, value, np.float32).tobytes()
            yield f"{name} is {value}", join_weights(header, data[:start] + filled + data[end:])
    for metadata in (None, {}, [], {"kit": 3}, {"kit": ""}, {"kit": "[" * 50_000}, {"other": "x"}):
        other = {**header, "__metadata__": metadata}
        yield f"metadata {str(metadata)[:20]}", join_weights(other, data)
    document = json.loads(header["__metadata__"]["kit"])
    for name, changed in spoil_document(document):
        try:
            text = json.dumps(changed)
        except ValueError:  # a number of 400 digits is written, not more
            continue
        yield name, join_weights({**header, "__metadata__": {"kit": text}}, data)


# Configurations that would be built for minutes, or ask for what is not in the file.
GREEDY = [
    {"architecture": "vit_giant_patch14_dinov2"},
    {"architecture": "vit_gigantic_patch14_clip_224", "architecture_options": {}},
    {"architecture": "resnetv2_152x4_bit", "architecture_options": {}},
    {"architecture_options": {"layers": [300, 300, 300, 300]}},
    {"architecture_options": {"layers": [10**9, 1, 1, 1]}},
    {"architecture_options": {"layers": [1, 1, 1, 1], "channels": [20_000] * 4}},
    {"architecture_options": {"layers": [1, 1, 1, 1], "base_width": 10**12}},
    {"architecture_options": {"stem_width": 10**6, "stem_type": "deep"}},
    {"architecture_options": {"layers": [1] * 500_000}},
    {"architecture_options": {"pretrained": True}},
    {"architecture_options": {"checkpoint_path": "/etc/passwd"}},
    {"architecture_options": {"block": "x" * 10**6}},
    {"architecture_options": {"act_layer": {"a": [{}]}}},
    {"architecture": "hf-hub:some/where"},
    {"architecture": "local-dir:/etc"},
    {"architecture": "../../etc/passwd"},
    {"architecture": "x" * 10**6},
    {"image_size": 10**9},
]
