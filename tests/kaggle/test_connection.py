"""Credentials, waits and the sentence for each failure, as `kit.kaggle.submit` meets them."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import push_desk
import pytest
from conftest import ROOT
from kaggle_kernels_server import KernelsServer
from kaggle_server import FOREVER, KEY, USER, KaggleServer
from submission_desk import SLUG, Desk


@pytest.fixture
def server():
    with KaggleServer() as kaggle:
        yield kaggle


@pytest.fixture
def desk(tmp_path, server):
    return Desk(tmp_path, server)


@pytest.mark.parametrize(
    ("method", "status", "expected"),
    [
        ("GetCompetition", 401, "refused the credentials: make a new token"),
        ("GetCompetition", 403, f"rules at https://www.kaggle.com/competitions/{SLUG}/rules"),
        ("GetCompetition", 404, f"does not know the competition {SLUG}: check the spelling"),
        ("StartSubmissionUpload", 413, "too large: write fewer decimals"),
        ("CreateSubmission", 400, f"join {SLUG}"),
        ("CreateSubmission", 403, "accept its rules"),
    ],
)
def test_a_refusal_says_what_to_do_and_is_not_repeated(desk, server, method, status, expected):
    server.fail(method, FOREVER, status=status, message=f"Because\n{KEY} of this.")
    outcome = desk.submit()
    assert outcome.code == 1
    assert expected in outcome.sentence
    assert outcome.sentence.endswith(f"(HTTP {status}: Because … of this).")
    assert server.count(method) == 1
    assert not desk.ledger.exists()


@pytest.mark.parametrize(
    ("method", "status"),
    [("GetCompetition", 429), ("StartSubmissionUpload", 503), ("PUT", 429), ("PUT", 503)],
)
def test_a_server_that_is_busy_once_is_asked_again(desk, server, method, status):
    server.fail(method, status=status, headers={"Retry-After": "7"})
    outcome = desk.submit()
    assert outcome.code == 0, outcome.stderr
    assert outcome.waits == [7.0]
    assert server.count(method) == 2
    assert len(server.submissions) == 1


@pytest.mark.parametrize(
    ("method", "status"), [("GetCompetition", 429), ("PUT", 429), ("PUT", 503)]
)
def test_a_server_that_stays_busy_is_asked_five_times(desk, server, method, status):
    server.fail(method, FOREVER, status=status)
    outcome = desk.submit()
    assert outcome.code == 1
    assert outcome.waits == [1.0, 2.0, 4.0, 8.0]
    assert server.count(method) == 5
    assert f"HTTP {status}" in outcome.sentence
    assert "run the same command again" in outcome.sentence
    assert server.submissions == []


def test_a_server_that_asks_for_an_hour_is_not_waited_for(desk, server):
    server.fail("GetCompetition", FOREVER, status=429, headers={"Retry-After": "3600"})
    outcome = desk.submit()
    assert outcome.code == 1
    assert outcome.waits == []


def test_a_page_for_people_with_502_becomes_one_sentence(desk, server):
    server.fail("GetCompetition", FOREVER, status=502, page="<html>Bad <b>gateway</b></html>")
    outcome = desk.submit()
    assert outcome.code == 1
    assert outcome.sentence.startswith("Kaggle's server failed: wait")
    assert "HTTP 502" in outcome.sentence
    assert "html" not in outcome.stderr


def test_a_sign_in_page_instead_of_an_answer_becomes_one_sentence(desk, server):
    server.fail("GetCompetition", FOREVER, page="<html>Welcome to the hotel</html>")
    outcome = desk.submit()
    assert outcome.code == 1
    assert "a sign-in page may stand in between" in outcome.sentence


@pytest.mark.parametrize("nothing", [None, ""])
def test_missing_credentials_are_said_in_one_sentence(desk, server, nothing):
    outcome = desk.submit({"KAGGLE_USERNAME": nothing, "KAGGLE_KEY": nothing})
    assert outcome.code == 1
    assert outcome.sentence.startswith("No Kaggle credentials were found: make a token")
    assert outcome.stdout == 'RESULT {"entry": null, "waits": []}\n', "the client's help was shown"
    assert server.requests == []


def test_a_token_that_has_run_out_is_named_as_what_outranks_the_key(desk, server):
    (desk.home / ".kaggle").mkdir()
    (desk.home / ".kaggle" / "access_token").write_text("STALE-TOKEN")
    server.fail("GetCompetition", FOREVER, status=401, message="STALE-TOKEN is not valid")
    outcome = desk.submit()
    assert outcome.code == 1
    [request] = server.find("GetCompetition")
    assert request.headers["Authorization"] == "Bearer STALE-TOKEN"
    assert "remove an old KAGGLE_API_TOKEN or ~/.kaggle/access_token" in outcome.sentence
    assert "STALE" not in outcome.stdout + outcome.stderr


@pytest.mark.parametrize("name", ["KAGGLE_API_TOKEN", "KAGGLE_KEY"])
def test_a_line_break_after_a_credential_is_not_sent_and_nothing_is_shown(desk, server, name):
    server.fail("GetCompetition", FOREVER, status=401, message="PASTED-TOKEN is not valid")
    outcome = desk.submit({name: "PASTED-TOKEN\r\n"})
    assert outcome.code == 1
    [request] = server.find("GetCompetition")
    basic = base64.b64encode(f"{USER}:PASTED-TOKEN".encode()).decode()
    expected = {"KAGGLE_API_TOKEN": "Bearer PASTED-TOKEN", "KAGGLE_KEY": f"Basic {basic}"}
    assert request.headers["Authorization"] == expected[name]
    assert outcome.sentence.endswith("(HTTP 401: … is not valid).")
    assert "PASTED" not in outcome.stdout + outcome.stderr


def test_a_token_too_long_for_a_file_name_is_sent_and_not_shown(desk, server):
    token = "PASTED" * 100
    server.fail("GetCompetition", FOREVER, status=401, message=f"{'.' * 299}{token}")
    outcome = desk.submit({"KAGGLE_API_TOKEN": token})
    assert outcome.code == 1
    [request] = server.find("GetCompetition")
    assert request.headers["Authorization"] == f"Bearer {token}"
    assert "PASTED" not in outcome.stdout + outcome.stderr


def test_a_missing_network_is_said_in_one_sentence(desk):
    outcome = desk.submit({"http_proxy": "http://127.0.0.1:1"})
    assert outcome.code == 1
    assert outcome.sentence.startswith("No answer from Kaggle")
    assert "check the network" in outcome.sentence


def test_a_server_that_falls_silent_does_not_hold_the_command_for_ever(desk, server):
    server.fail("GetCompetition", FOREVER, stall=0.6)
    outcome = desk.submit(patience=[0.2, 0.2])
    assert outcome.code == 1
    assert "No answer from Kaggle (it took too long)" in outcome.sentence


def test_a_client_told_to_be_verbose_stays_silent(desk):
    outcome = desk.submit({"VERBOSE": "1"})  # `finish` looks for secrets
    assert outcome.code == 0
    assert outcome.stderr == ""


def test_no_credential_is_shown_by_a_traceback(desk, server):
    server.fail("PUT", FOREVER, lose_reply=True)
    outcome = desk.submit(message="uncaught")
    assert outcome.code == 1
    assert "Traceback" in outcome.stderr
    assert "KaggleError: No answer from Kaggle (ProxyError)" in outcome.sentence


PLACES = {
    "GetCompetition": ("userHasEntered", "submissionsDisabled"),
    "GetSubmissionLimits": ("numAllowedNow", "numToday"),
    "StartSubmissionUpload": ("token", "createUrl"),
    "CreateSubmission": ("ref", "message"),
    "GetSubmission": ("status", "privateScore", "errorDescription"),
    "ListSubmissions": ("submissions", "nextPageToken"),
    "GetDataset": ("description", "currentVersionNumber"),
    "GetDatasetStatus": ("status",),
    "StartBlobUpload": ("token", "createUrl"),
    "CreateDataset": ("status", "error"),
    "SaveKernel": ("versionNumber", "error", "invalidDatasetSources", "url"),
    "GetKernelSessionStatus": ("status", "failureMessage"),
    "ListKernelSessionOutput": ("files", "log", "nextPageToken"),
}
VALUES = (None, 5, -1.5, True, "", "text", "\x00\x1b[2J", [], [5], ["x"], [[]], {}, {"a": 1}, [{}])
BODIES = (
    b"", b"null", b"[]", b"7", b'"text"', b"{", b'{"code": "x"}', b'{"code": 500}', b"<html>",
    b'{"code": 404, "message": {"a": []}}', b"[" * 100_000, b"\xff\xfe\x00", b"{}" * 2,
)  # fmt: skip
HEADERS = (
    {"Content-Type": "application/json", "Retry-After": "9" * 5000},
    {"Content-Type": "application/json", "Retry-After": "Wed, 99 Foo 0000 99:99:99 GMT"},
    {"Content-Type": "text/html", "Content-Encoding": "gzip"},
    {"Content-Type": "application/json", "Content-Length": "999999"},
    {"Location": "http://[", "Content-Type": "application/json"},
    {"Location": "ftp://nowhere/", "Content-Type": ""},
)


def draw_oddity(draw: random.Random, server: KernelsServer) -> str:
    """Let one method of the API answer oddly from now on; says which and how."""
    method = draw.choice(sorted(PLACES))
    kind = draw.choice(["field", "missing", "body", "status", "headers", "page", "huge"])
    fault: dict = {"headers": {"Content-Type": "application/json"}}
    if kind == "field":
        server.replaced[method] = {draw.choice(PLACES[method]): draw.choice(VALUES)}
        return f"{method} {server.replaced[method]}"
    if kind == "missing":
        fault["raw"] = b"{}"
    elif kind == "body":
        fault["raw"] = draw.choice(BODIES)
    elif kind == "status":
        fault |= {"status": draw.choice([302, 400, 404, 418, 429, 500, 599]), "message": "no"}
        fault["raw"] = draw.choice(BODIES)
    elif kind == "headers":
        fault |= {"status": draw.choice([200, 302, 429, 503]), "raw": b"{}"}
        fault["headers"] = draw.choice(HEADERS)
    elif kind == "page":
        fault["raw"] = b"<html>" + b"sign in " * 1000
    else:
        fault["raw"] = b'{"message": "' + b"x" * (70 << 20) + b'"}'
    server.fail(method, FOREVER, **fault)
    told = {name: value[:40] if name == "raw" else value for name, value in fault.items()}
    return f"{method} {told}"


TRIES = """
import io, json, random, sys, time, traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_connection import USER, draw_oddity
from kaggle_kernels_server import KernelsServer
from types import SimpleNamespace
from kit import KitError
from kit.kaggle import connection, session
from kit.kaggle.ledger import list_submissions
from kit.kaggle.push import push
from kit.kaggle.submit import submit
from kit.progress import show_messages
import os, shutil
show_messages()
clock = [0.0]  # waits are noted instead of spent
connection.TIMEOUT = (5, 0.5)
connection.time = session.time = SimpleNamespace(monotonic=lambda: clock[0])
folder, seed, tries = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
wait = lambda seconds: clock.append(clock.pop() + seconds)
for number in range(tries):
    draw = random.Random(seed + number)
    with KernelsServer() as server:
        server.output = {"outcome.json": b'{"left": "predictions", "reason": ""}'}
        server.submissions = [{"ref": 1, "description": "x", "date": "2026-11-23T14:00:00Z"}]
        said = draw_oddity(draw, server)
        os.environ.update(server.environment(folder / "home"))
        for name in ("submissions", "desk/pushed.json", "desk/output"):
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        out, ends = io.StringIO(), []
        with redirect_stdout(out), redirect_stderr(out):
            for call in (
                lambda: submit(folder / "run7/submission.csv", "m", folder / "sample.csv",
                               timeout=60, ledger=folder / "submissions/l.jsonl", sleep=wait),
                lambda: list_submissions(ledger=folder / "submissions/l.jsonl", sleep=wait),
                lambda: push(["predict"], folder / "desk", 1.0, sleep=wait),
            ):
                try:
                    call()
                    ends.append("ok")
                except (KitError, OSError) as error:
                    ends.append(str(error))
                except Exception:
                    ends.append("TRACEBACK " + traceback.format_exc())
        text = out.getvalue() + " ".join(ends)
        secret = any(word in text for word in ("SECRETKEY", "SIGNED"))
        print(json.dumps({"odd": said, "ends": ends, "secret": secret}), flush=True)
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_kaggle_answers_ends_in_a_sentence(tmp_path, seed):
    """Odd answers of every method, drawn by a seed: sentences, no tracebacks, no credentials."""
    with KernelsServer() as server:
        Desk(tmp_path, server)
        (tmp_path / "desk").mkdir()
        push_desk.Desk(tmp_path / "desk", server)
    words = [sys.executable, "-c", TRIES, str(Path(__file__).parent), str(tmp_path)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [*words, str(seed * 1000), "25"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    tries = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(tries) == 25, done.stderr
    for found in tries:
        assert not any("TRACEBACK" in end for end in found["ends"]), found
        assert not found["secret"], found
        for end in found["ends"]:
            assert end.isprintable(), found
            assert end == "ok" or end.endswith((".", ")")), found
    assert sum(set(found["ends"]) != {"ok"} for found in tries) > 10


def test_an_answer_without_end_is_given_up(desk, server):
    server.fail("GetCompetition", FOREVER, raw=b'{"message": "' + b"x" * (70 << 20) + b'"}')
    outcome = desk.submit()
    assert outcome.code == 1
    assert "No answer from Kaggle (it took too long)" in outcome.sentence


def test_a_list_without_end_is_given_up(desk, server, monkeypatch):
    server.replaced["ListSubmissions"] = {"nextPageToken": "again"}
    outcome = desk.submit(most_pages=5)
    assert outcome.code == 1
    assert outcome.sentence.startswith(f"Kaggle's list about {SLUG} has no end: wait a few minutes")
    assert server.count("ListSubmissions") == 5
