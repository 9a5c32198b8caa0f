"""`kit.kaggle.submit` with the real Kaggle client against a server on 127.0.0.1."""

from __future__ import annotations

import gzip
import hashlib
import json
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from kaggle_server import BASIC, FOREVER, SCORED, KaggleServer
from submission_desk import SLUG, Desk, write_submission


@pytest.fixture
def server():
    with KaggleServer() as kaggle:
        yield kaggle


@pytest.fixture
def desk(tmp_path, server):
    return Desk(tmp_path, server)


def test_a_submission_is_sent_scored_and_written_down(desk, server):
    server.outcomes.appendleft({"status": "PENDING"})
    metrics = {"scores": {"bag": {"all": {"any": 0.1, "weighted": 0.0571}}}, "slices": 3}
    (desk.csv.parent / "metrics.json").write_text(json.dumps(metrics))

    outcome = desk.submit()

    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.splitlines()[:-1] == [
        "Submission 7001 created.",
        "Submission 7001: waiting for its score.",
        "Submission 7001: private score 0.04400, public score 0.71000.",
    ]
    content = desk.csv.read_bytes()
    assert gzip.decompress(server.uploads["blob-1"]) == content
    assert server.uploads["blob-1"][4:8] == bytes(4), "the gzip header carries a time"
    [start] = server.find("StartSubmissionUpload")
    assert start.fields == {
        "competitionName": SLUG,
        "contentLength": len(server.uploads["blob-1"]),
        "lastModifiedEpochSeconds": int(desk.csv.stat().st_mtime),
        "fileName": "submission.csv.gz",
    }
    [created] = server.submissions
    assert created["description"] == f"[{desk.token}] first try"
    assert created["blob"] == "blob-1"
    sent, scored = desk.lines
    assert sent["status"] == "PENDING"
    assert scored == outcome.entry
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    assert scored["commit"].removesuffix("-dirty") == commit
    del scored["commit"], scored["time"]
    assert scored == {
        "competition": SLUG,
        "ref": 7001,
        "file": "submission.csv",
        "sha256": hashlib.sha256(content).hexdigest(),
        "message": "first try",
        "run": "run7",
        "out_of_fold": 0.0571,
        "status": "COMPLETE",
        "public_score": 0.71,
        "private_score": 0.044,
        "error": None,
    }
    table = (desk.ledger.parent / "README.md").read_text().splitlines()
    assert table[-1].split(" | ")[1:8] == [
        "7001", "first try", "run7", "0.05710", "0.71000", "0.04400", "COMPLETE",
    ]  # fmt: skip


def test_the_api_is_told_who_asks_and_the_storage_is_not(desk, server):
    assert desk.submit().code == 0
    for request in server.requests:
        if request.name == "PUT":
            assert "Authorization" not in request.headers
        else:
            assert request.headers["Authorization"] == f"Basic {BASIC}"


def test_a_gzipped_submission_counts_as_the_same_file(desk, server):
    assert desk.submit().code == 0
    packed = desk.folder / "again.csv.gz"
    packed.write_bytes(gzip.compress(desk.csv.read_bytes()))
    outcome = desk.submit(csv=str(packed), dry_run=True)
    assert outcome.code == 1
    assert "sent before, as submission 7001" in outcome.sentence
    assert len(server.submissions) == 1


def test_a_dry_run_needs_neither_credentials_nor_network_nor_kaggle(desk):
    nobody = {"KAGGLE_USERNAME": "", "KAGGLE_KEY": "", "http_proxy": "http://127.0.0.1:1"}
    outcome = desk.submit(nobody, dry_run=True)
    assert outcome.code == 0, outcome.stderr
    assert outcome.entry["status"] == "DRY RUN"
    assert not desk.ledger.exists()
    assert desk.server.requests == []


@pytest.mark.parametrize("dry_run", [True, False])
def test_an_invalid_file_is_never_sent(desk, server, dry_run):
    desk.csv.write_text(desk.csv.read_text().replace("0.25", "1.25", 1))
    outcome = desk.submit(dry_run=dry_run)
    assert outcome.code == 1
    assert outcome.sentence.startswith(f"{desk.csv}: line 2 ")
    assert server.requests == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"csv": "nowhere.csv"}, "No such file or directory: 'nowhere.csv'"),
        ({"csv": "submission.zip"}, "a submission is a .csv or a .csv.gz file"),
        ({"message": "  "}, "The message is empty"),
        ({"sample": "nowhere.csv"}, "No such file or directory: 'nowhere.csv'"),
    ],
)
def test_what_cannot_be_sent_is_named(desk, server, options, expected):
    outcome = desk.submit(**options)
    assert outcome.code == 1
    assert expected in outcome.sentence
    assert server.requests == []


def test_a_submission_of_other_images_than_the_sample_is_never_sent(desk, server):
    sample = desk.folder / "sample.csv"
    write_submission(sample, 0.5, images=4)
    outcome = desk.submit(sample=str(sample))
    assert outcome.code == 1
    assert "lacks ID_000000003" in outcome.sentence
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "flags", "code"), [("COMPLETE", [], 0), ("ERROR", [], 1), (None, ["--dry-run"], 0)]
)
def test_the_command_succeeds_only_with_a_score_or_a_dry_run(desk, server, status, flags, code):
    server.outcomes[0] = {"status": status, "errorDescription": "bad", "privateScore": "0.044"}
    command = [sys.executable, "-m", "kit", "submit", str(desk.csv), "--message", "by hand", *flags]
    command += ["--sample", str(desk.sample)]
    environment = server.environment(desk.home, PYTHONPATH=str(ROOT))
    result = subprocess.run(
        command, cwd=desk.folder, env=environment, capture_output=True, text=True
    )
    assert result.returncode == code, result.stderr
    assert len(server.submissions) == (status is not None)
    if status is not None:
        assert desk.lines[-1]["status"] == status
    assert ("bad" in result.stderr) == (status == "ERROR")


def test_a_file_already_scored_is_refused_without_a_request(desk, server):
    assert desk.submit().code == 0
    seen = len(server.requests)
    outcome = desk.submit(message="second try")
    assert outcome.code == 1
    assert "sent before, as submission 7001" in outcome.sentence
    assert len(server.requests) == seen


def test_a_file_of_a_lost_ledger_is_found_at_kaggle_and_not_sent_again(desk, server):
    assert desk.submit().code == 0
    desk.ledger.unlink()
    server.page_size = 1
    server.submissions += [
        {"ref": 8000 + n, "description": f"[{n:012x}] other", "date": "2026-11-23T15:00:00Z"}
        for n in range(3)
    ]
    outcome = desk.submit()
    assert outcome.code == 0, outcome.stderr
    assert outcome.entry["ref"] == 7001
    assert "Kaggle already has this file, as submission 7001" in outcome.stdout
    assert "created" not in outcome.stdout
    assert server.count("CreateSubmission") == server.count("PUT") == 1


@pytest.mark.parametrize(
    ("competition", "expected"),
    [
        ({}, f"accept the rules at https://www.kaggle.com/competitions/{SLUG}/rules"),
        ({"userHasEntered": True, "submissionsDisabled": True}, "is closed"),
        ({"userHasEntered": True, "isKernelsSubmissionsOnly": True}, "takes notebooks only"),
    ],
)
def test_a_competition_that_takes_no_file_is_seen_before_the_upload(
    desk, server, competition, expected
):
    server.competition = competition
    outcome = desk.submit()
    assert outcome.code == 1
    assert expected in outcome.sentence
    assert server.count("PUT") == server.count("CreateSubmission") == 0


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"numToday": 5, "numTotal": 9}, "daily limit"),
        ({"numTotal": 9, "limitedByTotal": True}, "All submissions"),
    ],
)
def test_a_limit_that_is_reached_is_seen_before_the_upload(desk, server, limits, expected):
    server.limits = limits
    outcome = desk.submit()
    assert outcome.code == 1
    assert expected in outcome.sentence
    assert server.count("PUT") == server.count("CreateSubmission") == 0


def test_a_deadline_in_the_past_and_an_account_without_a_team_are_no_reason_to_refuse(desk, server):
    server.competition["deadline"] = "2019-11-13T23:59:00Z"
    server.limits = {}
    assert desk.submit().code == 0


def test_a_lost_reply_after_creation_leaves_one_submission(desk, server):
    server.fail("CreateSubmission", lose_reply=True)
    outcome = desk.submit()
    assert outcome.code == 0, outcome.stderr
    assert outcome.entry["ref"] == 7001
    assert len(server.submissions) == server.count("CreateSubmission") == 1


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 502, "page": "<html></html>"}])
def test_a_creation_that_is_neither_confirmed_nor_listed_is_left_to_the_next_call(
    desk, server, fault
):
    server.fail("CreateSubmission", **fault)
    outcome = desk.submit()
    assert outcome.code == 1
    assert "did not confirm the submission and does not list it" in outcome.sentence
    assert outcome.waits == [1.0, 2.0, 4.0, 8.0]
    assert server.count("CreateSubmission") == 1
    assert desk.submit().code == 0
    assert len(server.submissions) == 1


def test_a_creation_is_not_repeated_when_the_list_fails_after_it(desk, server):
    server.fail("ListSubmissions", 2)  # as it should, before the upload and before the creation
    server.fail("CreateSubmission", status=503)
    server.fail("ListSubmissions", 5, status=503)  # which ends one search for the submission
    outcome = desk.submit()
    assert outcome.code == 1
    assert "did not confirm the submission and does not list it" in outcome.sentence
    assert server.count("CreateSubmission") == 1


def test_a_creation_that_meets_429_is_tried_again_after_a_look(desk, server):
    server.fail("CreateSubmission", status=429, headers={"Retry-After": "3"})
    outcome = desk.submit()
    assert outcome.code == 0, outcome.stderr
    assert outcome.waits == [3.0]
    names = [request.name for request in server.requests]
    second = len(names) - 1 - names[::-1].index("CreateSubmission")
    assert names[second - 2 : second + 1] == [
        "CreateSubmission", "ListSubmissions", "CreateSubmission",
    ]  # fmt: skip
    assert len(server.submissions) == 1


def test_a_success_without_a_submission_is_no_success(desk, server):
    server._create_submission = lambda fields: {"message": "Daily limit reached"}
    outcome = desk.submit()
    assert outcome.code == 1
    assert "Daily limit reached" in outcome.sentence
    assert not desk.ledger.exists()


def test_a_rejected_submission_gives_its_reason_and_is_not_sent_twice(desk, server):
    server.outcomes[0] = {"status": "ERROR", "errorDescription": "Evaluation: 3 rows\nare missing."}
    outcome = desk.submit()
    assert outcome.code == 1
    assert "rejected submission 7001 (Evaluation: 3 rows are missing)" in outcome.sentence
    assert desk.lines[-1]["status"] == "ERROR"
    assert desk.lines[-1]["error"] == "Evaluation: 3 rows are missing."
    outcome = desk.submit()
    assert outcome.code == 1
    assert "correct the file" in outcome.sentence
    assert len(server.submissions) == 1


def test_a_score_that_does_not_come_in_time_is_waited_for_by_the_next_call(desk, server):
    scored = server.outcomes[0]
    server.outcomes[0] = {"status": "PENDING"}
    outcome = desk.submit()
    assert outcome.code == 1
    assert "still PENDING after 0.3 seconds. Submission 7001 is in the ledger" in outcome.sentence
    assert [line["status"] for line in desk.lines] == ["PENDING"]
    assert outcome.waits[0] == pytest.approx(0.3, abs=0.3)
    server.outcomes[0] = scored
    outcome = desk.submit(message="another word for it")
    assert outcome.code == 0, outcome.stderr
    assert server.count("CreateSubmission") == server.count("PUT") == 1
    assert [line["status"] for line in desk.lines] == ["PENDING", "COMPLETE"]


def test_an_early_404_and_a_busy_server_are_waited_out_while_polling(desk, server):
    server.fail("GetSubmission", status=404)
    server.fail("GetSubmission", status=429, headers={"Retry-After": "9"})
    server.fail("GetSubmission", status=502, page="<html></html>")
    server.fail("GetSubmission", lose_reply=True)
    outcome = desk.submit(timeout=60)
    assert outcome.code == 0, outcome.stderr
    assert outcome.waits == [2.0, 9.0, 4.5, 6.75]


def test_credentials_refused_while_polling_leave_the_submission_in_the_ledger(desk, server):
    server.fail("GetSubmission", FOREVER, status=401)
    outcome = desk.submit()
    assert outcome.code == 1
    assert "make a new token" in outcome.sentence
    assert "Submission 7001 is in the ledger" in outcome.sentence
    assert [line["ref"] for line in desk.lines] == [7001]


def test_ctrl_c_while_polling_leaves_the_ref_and_the_next_call_resumes(desk, server):
    scored = server.outcomes[0]
    server.outcomes[0] = {"status": "PENDING"}
    process = desk.start(timeout=60, real_waits=True)
    deadline = time.monotonic() + 30
    while not server.count("GetSubmission") and time.monotonic() < deadline:
        time.sleep(0.02)
    # Between two questions: the libraries that read an answer were once seen to swallow it.
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    outcome = desk.finish(process)
    assert outcome.code == 1
    assert outcome.sentence.startswith("Interrupted while waiting")
    assert "Traceback" not in outcome.stderr
    assert [line["ref"] for line in desk.lines] == [7001]
    server.outcomes[0] = scored
    assert desk.submit().code == 0
    assert len(server.submissions) == 1


def test_a_ledger_line_that_cannot_be_read_does_not_lose_or_repeat_a_submission(desk, server):
    assert desk.submit().code == 0
    cut = desk.ledger.read_text().replace('{"time"', '{"ti')
    desk.ledger.write_text(cut)
    outcome = desk.submit()
    assert outcome.code == 0, outcome.stderr
    assert "ledger.jsonl: line 1 cannot be read as a submission" in outcome.stderr
    assert "Kaggle already has this file, as submission 7001" in outcome.stdout
    assert len(server.submissions) == 1
    assert desk.ledger.read_text().startswith(cut)


def test_other_line_ends_are_the_same_file(desk, server):
    assert desk.submit().code == 0
    content = desk.csv.read_bytes()
    for same in (content.replace(b"\n", b"\r\n"), content.rstrip()):
        desk.csv.write_bytes(same)
        outcome = desk.submit()
        assert outcome.code == 1
        assert "sent before, as submission 7001" in outcome.sentence
    assert len(server.submissions) == 1


def test_a_file_without_all_rows_needs_the_sample_that_says_so(desk, server):
    outcome = desk.submit(sample=None, dry_run=True)
    assert outcome.code == 1
    assert outcome.sentence.startswith(f"{desk.csv} has 18 of the 727,392 rows of {SLUG}: nothing ")
    assert server.requests == []
    assert desk.submit(sample=None, competition="another", dry_run=True).code == 0
    write_submission(desk.csv, 0.25, images=121_232)
    outcome = desk.submit(sample=None, dry_run=True)
    assert outcome.code == 0, outcome.stderr


def test_a_rejected_file_is_sent_again_where_that_is_asked(desk, server):
    server.outcomes[0] = {"status": "ERROR", "errorDescription": "An internal error."}
    assert desk.submit().code == 1
    assert "with --again (AGAIN=1); nothing was sent." in desk.submit().sentence
    server.outcomes[0] = SCORED
    outcome = desk.submit(again=True)
    assert outcome.code == 0, outcome.stderr
    assert outcome.entry["ref"] == 7002
    assert [s["description"] for s in server.submissions] == [
        f"[{desk.token}] first try",
        f"[{desk.token}-2] first try",
    ]
    assert "nothing was sent" in desk.submit(again=True).sentence  # it has a score now
    assert len(server.submissions) == 2
