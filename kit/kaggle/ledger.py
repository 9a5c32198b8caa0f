"""The ledger of submissions: one JSON object per line, append-only; its table; Kaggle's list."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kit.competition import SLUG
from kit.files import open_whole, read_commit, write_text
from kit.kaggle.connection import AGAIN, CompetitionClient, KaggleError, quote_reason
from kit.progress import log
from kit.runs.metrics import read_out_of_fold

LEDGER = Path("submissions/ledger.jsonl")
_LOCK_SECONDS = 600.0  # longer than one command sends
_SCORE_KEYS = ("public_score", "private_score", "error")

_TABLE_HEAD = """\
# Submissions

Rendered from `ledger.jsonl`, which `kit submit` writes; do not edit. Lower is better. The
out-of-fold score is the run's own estimate. Compare it with the private score: in the second stage
of this competition the public score carries no information.

| sent (UTC) | ref | message | run | out of fold | public | private | status | file | commit |
|---|---|---|---|---|---|---|---|---|---|
"""


def describe_submission(csv: Path, content: bytes, message: str, competition: str) -> dict:
    """The ledger entry of a submission that was not sent yet: ref None, status PENDING."""
    message = " ".join(message.split())
    if not message:
        raise KaggleError("The message is empty: say in a few words what this submission is.")
    metrics = csv.with_name("metrics.json")
    return {
        "time": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "competition": competition,
        "ref": None,
        "file": csv.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "message": message,
        "commit": read_commit("."),
        "run": csv.resolve().parent.name if metrics.exists() else None,
        "out_of_fold": read_out_of_fold(metrics),
        "status": "PENDING",
        "public_score": None,
        "private_score": None,
        "error": None,
    }


def append_entry(ledger: Path, entry: dict) -> None:
    """Lock the ledger and do as `write_entry`."""
    with lock_ledger(ledger):
        write_entry(ledger, entry)


def write_entry(ledger: Path, entry: dict) -> None:
    """Add `entry` as a line of `ledger`, on the disk before this returns, and render the table.

    The caller holds the lock.
    """
    with open(ledger, "a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        gap = b"\n" if file.read(1) not in (b"", b"\n") else b""  # after a line that was cut
        file.write(gap + json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
        render_ledger(ledger)


@contextlib.contextmanager
def lock_ledger(ledger: Path) -> Iterator[None]:
    """Keep other writers out, for ten minutes at most. Raises `KaggleError`."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(ledger.with_suffix(".lock"), timeout=_LOCK_SECONDS)
    try:
        with lock:
            yield
    except Timeout:
        raise KaggleError(
            f"{ledger}: another command has been at work for ten minutes: {AGAIN}."
        ) from None


def read_entries(ledger: Path) -> list[dict]:
    """The submissions of `ledger` in the order they were sent, each as its last line describes it.

    Without a ledger there are none. A line that is no submission is named in a warning and passed
    over: before it sends, `submit` also asks Kaggle whether the file is there already. Raises
    `OSError` where the ledger is no file, such as a pipe, or larger than any ledger.
    """
    if not ledger.exists():
        return []
    with open_whole(ledger) as file:
        lines = file.read().decode("utf-8", "replace").split("\n")
    entries: dict[tuple, dict] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = _check_entry(json.loads(line)) if line.strip() else None
        except (ValueError, KeyError, TypeError, RecursionError):
            log.warning(f"{ledger}: line {number} cannot be read as a submission: it is ignored.")
        else:
            if entry is not None:
                entries[entry["competition"], entry["ref"]] = entry
    return list(entries.values())


def _check_entry(entry: Any) -> dict:
    """The entry with every field. Raises `TypeError` or `KeyError` where it is no submission."""
    texts = {name: entry[name] for name in ("competition", "sha256", "status", "time", "message")}
    if not all(isinstance(text, str) for text in texts.values()) or type(entry["ref"]) is not int:
        raise TypeError
    scores = [entry.get(name) for name in ("out_of_fold", "public_score", "private_score")]
    if not all(score is None or isinstance(score, int | float) for score in scores):
        raise TypeError
    return dict.fromkeys((*_SCORE_KEYS, "out_of_fold", "run", "commit", "file")) | entry


def find_entries(ledger: Path, competition: str, sha256: str) -> list[dict]:
    """The submissions of this content to `competition`, the last one last."""
    names = {"competition": competition, "sha256": sha256}
    return [entry for entry in read_entries(ledger) if entry | names == entry]


def render_ledger(ledger: Path = LEDGER) -> Path:
    """Write `README.md` beside `ledger`: its submissions as a table, the newest first."""
    rows = [_format_row(entry) for entry in reversed(read_entries(ledger))]
    readme = ledger.with_name("README.md")
    write_text(readme, _TABLE_HEAD + "".join(rows))
    return readme


def list_submissions(
    competition: str = SLUG,
    ledger: str | Path = LEDGER,
    sleep: Callable[[float], None] = time.sleep,
) -> list[dict]:
    """Ledger and server side by side, one dict per submission, the newest (largest ref) first.

    Keys: ref, time, message, `ledger` and `kaggle` (the status, None where the submission is not
    known there), public_score, private_score, error. Kaggle's values take precedence.
    """
    rows = {
        entry["ref"]: {key: entry.get(key) for key in ("ref", "time", "message", *_SCORE_KEYS)}
        | {"ledger": entry["status"], "kaggle": None}
        for entry in read_entries(Path(ledger))
        if entry["competition"] == competition
    }
    for submission in iterate_submissions(CompetitionClient(competition, sleep)):
        row = rows.setdefault(submission.ref, {"ledger": None})
        row.update(
            ref=submission.ref,
            time=f"{submission.date:%Y-%m-%d %H:%M:%S}" if submission.date else row.get("time"),
            message=submission.description,
            kaggle=submission.status.name,
            **read_outcome(submission),
        )
    return [rows[ref] for ref in sorted(rows, reverse=True)]


def format_submissions(rows: list[dict]) -> str:
    """The rows of `list_submissions` as a table for the terminal; the message comes last."""
    head = ("ref", "time (UTC)", "in ledger", "at Kaggle", "private", "public")
    template = "{:<10} {:<19} {:<9} {:<9} {:>8} {:>8}  {}"
    lines = [template.format(*head, "message")]
    for row in rows:
        cells = (row["ref"], row["time"], row["ledger"], row["kaggle"])
        scores = (_format_score(row["private_score"]), _format_score(row["public_score"]))
        said = row["message"] + (f" ({row['error']})" if row["error"] else "")
        said = quote_reason(said) if said.strip() else ""  # others may have written it
        lines.append(template.format(*(cell or "-" for cell in cells + scores), said))
    return "\n".join(lines)


def iterate_submissions(client: CompetitionClient) -> Iterator:
    """This account's submissions to the competition, as Kaggle lists them, page after page."""
    for page in client.iterate_pages(
        lambda service: service.list_submissions, competition_name=client.subject
    ):
        yield from page.submissions


def read_outcome(submission: Any) -> dict:
    """Kaggle's `public_score`, `private_score` and `error`; None where hidden or missing."""
    return {
        "public_score": _parse_score(submission.public_score),
        "private_score": _parse_score(submission.private_score),
        "error": " ".join(submission.error_description.split()) or None,
    }


def _parse_score(text: str) -> float | None:
    """Parse a score, which Kaggle sends as text; None where it is hidden or missing."""
    try:
        score = float(text)
    except ValueError:
        return None
    return score if math.isfinite(score) else None


def describe_scores(entry: dict) -> str:
    """The scores of a ledger entry in words."""
    private = _format_score(entry["private_score"]) or "hidden"
    public = _format_score(entry["public_score"]) or "hidden"
    return f"private score {private}, public score {public}"


def _format_score(score: float | None) -> str:
    """A score with Kaggle's five decimals, empty where there is none."""
    return "" if score is None else f"{score:.5f}"


def _format_row(entry: dict) -> str:
    status = entry["status"] + (f": {entry['error']}" if entry.get("error") else "")
    cells = [entry.get(name) for name in ("time", "ref", "message", "run")]
    cells += [_format_score(entry.get(name)) for name in ("out_of_fold", *_SCORE_KEYS[:2])]
    commit = f"`{entry['commit'][:12]}`" if entry.get("commit") else None
    cells += [status, f"`{entry['sha256'][:12]}`", commit]
    return "| " + " | ".join(_escape(cell) for cell in cells) + " |\n"


def _escape(cell: object) -> str:
    text = "" if cell is None else " ".join(str(cell).split())
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
