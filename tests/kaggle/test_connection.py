"""Credentials, waits and the sentence for each failure, as `kit.kaggle.submit` meets them."""

from __future__ import annotations

import base64

import pytest
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
