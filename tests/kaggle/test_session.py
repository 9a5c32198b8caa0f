"""Credentials: where they are found, that they can be sent, and that no answer shows them."""

from __future__ import annotations

import json

import pytest
from kaggle_server import BASIC, KEY, USER, KaggleServer
from submission_desk import Desk


@pytest.fixture
def server():
    with KaggleServer() as kaggle:
        yield kaggle


@pytest.fixture
def desk(tmp_path, server):
    return Desk(tmp_path, server)


@pytest.mark.parametrize(
    ("environment", "files"),
    [
        ({"KAGGLE_API_TOKEN": "PASTEDTOKEN\nPASTEDTOKEN"}, {}),
        ({"KAGGLE_API_TOKEN": "PASTEDTOKENé"}, {}),
        ({"KAGGLE_KEY": "PASTEDTOKEN\x7f"}, {}),
        ({}, {".kaggle/access_token": b"PASTEDTOKEN\nPASTEDTOKEN"}),
        ({}, {".kaggle/access_token": b"PASTEDTOKEN\xff"}),
        ({"KAGGLE_KEY": None}, {"kaggle.json": b'{"username": "me", "key": "PASTEDTOKEN'}),
        ({"KAGGLE_KEY": None}, {"kaggle.json": b'["PASTEDTOKEN"]'}),
    ],
)
def test_credentials_that_cannot_be_sent_are_not_shown(desk, server, environment, files):
    for name, content in files.items():
        (desk.home / name).parent.mkdir(exist_ok=True)
        (desk.home / name).write_bytes(content)
    outcome = desk.submit(environment)
    assert outcome.code == 1
    assert "PASTED" not in outcome.stdout + outcome.stderr
    assert "make a " in outcome.sentence
    assert "token" in outcome.sentence
    assert server.requests == []


def test_a_token_file_named_with_a_line_break_is_read(desk, server):
    (desk.home / "token").write_text("PASTED-TOKEN\n")
    assert desk.submit({"KAGGLE_API_TOKEN": f"{desk.home}/token\n"}).code == 0
    assert server.find("GetCompetition")[0].headers["Authorization"] == "Bearer PASTED-TOKEN"


def test_the_key_of_the_clients_file_is_used(desk, server):
    (desk.home / "kaggle.json").write_text(json.dumps({"username": USER, "key": f"{KEY}\n"}))
    assert desk.submit({"KAGGLE_USERNAME": None, "KAGGLE_KEY": None}).code == 0
    assert server.find("GetCompetition")[0].headers["Authorization"] == f"Basic {BASIC}"


def test_the_browsers_sign_in_is_used_and_renewed(desk, server):
    (desk.home / ".kaggle").mkdir()
    saved = {"refresh_token": "REFRESHING", "access_token": "", "username": USER}
    (desk.home / ".kaggle" / "credentials.json").write_text(json.dumps(saved))
    assert desk.submit({"KAGGLE_USERNAME": None, "KAGGLE_KEY": None}).code == 0
    assert server.find("GetCompetition")[0].headers["Authorization"] == "Bearer RENEWED-TOKEN"


@pytest.mark.parametrize("quoted", [KEY, BASIC])
def test_an_answer_that_quotes_a_credential_is_not_repeated(desk, server, quoted):
    server.outcomes[0] = {"status": "ERROR", "errorDescription": f"bad {quoted}."}
    outcome = desk.submit()  # `finish` looks for secrets, in the ledger too
    assert outcome.code == 1
    assert "(bad …)" in outcome.sentence
