"""`kit.kaggle.ledger`: what is written, what the table shows, and Kaggle's list beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT
from kaggle_server import BASIC, KEY, SCORED, KaggleServer

from kit.kaggle.connection import KaggleError
from kit.kaggle.ledger import (
    append_entry,
    describe_submission,
    find_entries,
    read_entries,
    read_outcome,
    render_ledger,
)

ENTRY = {
    "time": "2026-11-23 14:00:00",
    "competition": "c",
    "ref": 7001,
    "file": "submission.csv",
    "sha256": "ab" * 32,
    "message": "first",
    "commit": "cd" * 20,
    "run": None,
    "out_of_fold": None,
    "status": "PENDING",
    "public_score": None,
    "private_score": None,
    "error": None,
}


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "submissions" / "ledger.jsonl"


def test_the_last_line_about_a_submission_holds_and_none_is_ever_changed(ledger):
    append_entry(ledger, ENTRY)
    append_entry(ledger, ENTRY | {"ref": 7002, "sha256": "ef" * 32})
    append_entry(ledger, ENTRY | {"status": "COMPLETE", "private_score": 0.044})
    assert len(ledger.read_text().splitlines()) == 3
    assert [(e["ref"], e["status"]) for e in read_entries(ledger)] == [
        (7001, "COMPLETE"),
        (7002, "PENDING"),
    ]
    assert [e["private_score"] for e in find_entries(ledger, "c", "ab" * 32)] == [0.044]
    assert find_entries(ledger, "another competition", "ab" * 32) == []


def test_the_table_shows_the_newest_first_and_survives_any_message(ledger):
    append_entry(ledger, ENTRY)
    append_entry(
        ledger,
        ENTRY
        | {"ref": 7002, "message": "a | b \u2028 <i>", "status": "ERROR", "error": "no\nreason"},
    )
    rows = (ledger.parent / "README.md").read_text().splitlines()[-2:]
    assert rows == [
        "| 2026-11-23 14:00:00 | 7002 | a \\| b &lt;i> |  |  |  |  | ERROR: no reason "
        "| `abababababab` | `cdcdcdcdcdcd` |",
        "| 2026-11-23 14:00:00 | 7001 | first |  |  |  |  | PENDING "
        "| `abababababab` | `cdcdcdcdcdcd` |",
    ]
    assert [entry["ref"] for entry in read_entries(ledger)] == [7001, 7002]


def test_the_table_in_the_repository_is_rendered_from_its_ledger(tmp_path):
    written = ROOT / "submissions" / "ledger.jsonl"
    copy = tmp_path / "ledger.jsonl"
    if written.exists():
        copy.write_bytes(written.read_bytes())
    assert render_ledger(copy).read_text() == (ROOT / "submissions" / "README.md").read_text()


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"\xff\x00",
        b"[" * 100_000,
        b'{"ref": 1}',
        b'{"competition": "c", "ref": []}',
        json.dumps(ENTRY | {"private_score": "low"}).encode(),
        json.dumps(ENTRY | {"status": None}).encode(),
    ],
)
def test_a_line_that_is_no_submission_is_named_kept_and_passed_over(ledger, line, caplog):
    append_entry(ledger, ENTRY)
    with open(ledger, "ab") as file:
        file.write(line + b"\n")
    append_entry(ledger, ENTRY | {"ref": 7002})
    assert [entry["ref"] for entry in read_entries(ledger)] == [7001, 7002]
    assert f"{ledger}: line 2 cannot be read as a submission: it is ignored." in caplog.messages
    assert ledger.read_bytes().split(b"\n")[1] == line
    assert "| 7002 |" in (ledger.parent / "README.md").read_text()


def test_a_ledger_without_its_last_line_break_gets_one(ledger):
    append_entry(ledger, ENTRY)
    ledger.write_bytes(ledger.read_bytes().rstrip(b"\n"))
    append_entry(ledger, ENTRY | {"ref": 7002})
    assert [entry["ref"] for entry in read_entries(ledger)] == [7001, 7002]
    assert ledger.read_bytes().count(b"\n") == 2


def test_writers_at_the_same_time_lose_no_line(ledger):
    code = (
        "import json, sys; from pathlib import Path; from kit.kaggle.ledger import append_entry\n"
        "entry = json.loads(sys.argv[2])\n"
        "for number in range(20):\n"
        "    append_entry(Path(sys.argv[1]), entry | {'ref': int(sys.argv[3]) + number})\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, ledger, json.dumps(ENTRY), first], cwd=ROOT)
        for first in ("1000", "2000", "3000")
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    refs = [entry["ref"] for entry in read_entries(ledger)]
    assert sorted(refs) == [first + n for first in (1000, 2000, 3000) for n in range(20)]
    assert (ledger.parent / "README.md").read_text().count("| PENDING |") == 60


def test_a_lock_that_is_never_given_back_is_not_waited_for_for_ever(ledger, monkeypatch):
    from filelock import FileLock

    monkeypatch.setattr("kit.kaggle.ledger._LOCK_SECONDS", 0.1)
    ledger.parent.mkdir()
    with (
        FileLock(ledger.with_suffix(".lock")),
        pytest.raises(KaggleError, match="another command has been at work"),
    ):
        append_entry(ledger, ENTRY)


def test_a_pipe_in_the_place_of_the_ledger_is_refused_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "ledger.jsonl")
    with pytest.raises(OSError, match=r"ledger\.jsonl"):
        read_entries(tmp_path / "ledger.jsonl")


def test_outside_git_and_without_metrics_the_entry_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = describe_submission(tmp_path / "submission.csv", b"x", " two\n words ", "c")
    assert entry["commit"] is entry["run"] is entry["out_of_fold"] is None
    assert entry["message"] == "two words"
    sha256 = subprocess.run(["sha256sum"], input=b"x", capture_output=True).stdout.decode()[:64]
    assert entry["sha256"] == sha256


def test_a_run_that_held_nothing_out_has_no_out_of_fold_score(tmp_path):
    (tmp_path / "metrics.json").write_text('{"scores": {}, "slices": 0}')
    entry = describe_submission(tmp_path / "submission.csv", b"x", "message", "c")
    assert entry["out_of_fold"] is None
    assert entry["run"] == tmp_path.name


def test_a_score_that_is_hidden_is_none():
    def read_private(text: str) -> float | None:
        submission = SimpleNamespace(public_score="", private_score=text, error_description="")
        return read_outcome(submission)["private_score"]

    assert [read_private(text) for text in ("0.04383", "", "NaN", "None")] == [
        0.04383, None, None, None,
    ]  # fmt: skip


def test_ledger_and_kaggle_are_listed_side_by_side(ledger, tmp_path):
    append_entry(ledger, ENTRY)
    append_entry(ledger, ENTRY | {"ref": 7002, "message": "lost"})
    append_entry(ledger, ENTRY | {"ref": 7003, "competition": "another"})
    driver = (
        "import json, sys; from kit.kaggle.ledger import format_submissions, list_submissions; "
        "rows = list_submissions('c', sys.argv[1]); "
        "print(json.dumps(rows)); print(format_submissions(rows))"
    )
    with KaggleServer() as server:
        server.page_size = 1
        server.submissions += [
            {"ref": 7001, "description": "[abababababab] first", "date": "2026-11-23T14:00:09Z"}
            | SCORED,
            {"ref": 7000, "description": "by hand", "date": "2026-11-22T09:30:00.5Z"},
        ]
        result = subprocess.run(
            [sys.executable, "-c", driver, str(ledger)],
            cwd=ROOT,
            env=server.environment(tmp_path),
            capture_output=True,
            text=True,
        )
    assert result.returncode == 0, result.stderr
    assert KEY not in result.stdout + result.stderr
    assert BASIC not in result.stdout + result.stderr
    rows = [
        tuple(row[key] for key in ("ref", "time", "ledger", "kaggle", "private_score"))
        for row in json.loads(result.stdout.splitlines()[0])
    ]
    assert rows == [
        (7002, "2026-11-23 14:00:00", "PENDING", None, None),
        (7001, "2026-11-23 14:00:09", "PENDING", "COMPLETE", 0.044),
        (7000, "2026-11-22 09:30:00", None, "PENDING", None),
    ]
    assert result.stdout.splitlines()[2:4] == [
        "7002       2026-11-23 14:00:00 PENDING   -                -        -  lost",
        "7001       2026-11-23 14:00:09 PENDING   COMPLETE   0.04400  0.71000  "
        "[abababababab] first",
    ]
