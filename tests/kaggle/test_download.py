"""`kit.kaggle.download` with the real Kaggle client against a server on 127.0.0.1."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from kaggle_server import BASIC, FOREVER, KEY, KaggleServer

SLUG = "rsna-intracranial-hemorrhage-detection"

DRIVER = """
import json, sys
from kit.kaggle.connection import KaggleError
from kit.kaggle.download import download_competition
from kit.progress import show_messages
show_messages()
waits = []
try:
    paths = download_competition(sleep=waits.append, **json.loads(sys.argv[1]))
except KaggleError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
print("RESULT " + json.dumps({"paths": [str(path) for path in paths], "waits": waits}))
"""


def make_zip(first: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(first, first + 40):
            archive.writestr(f"stage_2_test/ID_{number:09x}.dcm", bytes([number]) * 10_000)
    return buffer.getvalue()


ARCHIVE = make_zip(0)
CHUNK = 65_536  # what is lost of a transfer that breaks off is less than this


class Download:
    """How one download in a process of its own ended."""

    def __init__(self, server: KaggleServer, home: Path, **options):
        process = subprocess.run(
            [sys.executable, "-c", DRIVER, json.dumps(options)],
            cwd=ROOT,
            env=server.environment(home),
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.code, self.stdout, self.stderr = process.returncode, process.stdout, process.stderr
        for secret in (KEY, BASIC, "SIGNED"):
            assert secret not in self.stdout + self.stderr, "a credential was shown"
        result = [line for line in self.stdout.splitlines() if line.startswith("RESULT ")]
        found = json.loads(result[-1].removeprefix("RESULT ")) if result else {}
        self.paths, self.waits = [Path(path) for path in found.get("paths", [])], found.get("waits")

    @property
    def sentence(self) -> str:
        return self.stderr.strip().splitlines()[-1]


@pytest.fixture
def server():
    with KaggleServer() as kaggle:
        kaggle.files[f"{SLUG}.zip"] = ARCHIVE
        yield kaggle


@pytest.fixture
def download(server, tmp_path):
    return lambda **options: Download(
        server, tmp_path, **{"directory": str(tmp_path / "data")} | options
    )


def ranges(server) -> list[str | None]:
    """The Range of each request to the storage that reads the body (the others only ask)."""
    bodies = [r for r in server.find("GET") if r.headers["Accept-Encoding"] == "identity"]
    return [request.headers.get("Range") for request in bodies]


def spare_the_question(server) -> None:
    """Let the next GET pass, which only asks for the size, so that a fault meets the body."""
    server.fail("GET")


def test_the_competition_arrives_whole_as_one_zip(download, server, tmp_path):
    md5 = base64.b64encode(hashlib.md5(ARCHIVE).digest()).decode()
    server.file_headers["x-goog-hash"] = f"crc32c=AAAAAA==, md5={md5}"
    outcome = download()
    assert outcome.code == 0, outcome.stderr
    assert outcome.paths == [tmp_path / "data" / f"{SLUG}.zip"]
    assert outcome.paths[0].read_bytes() == ARCHIVE
    assert [path.name for path in (tmp_path / "data").iterdir()] == [f"{SLUG}.zip"]
    size = f"{len(ARCHIVE) / 1000:.1f} kB"
    assert outcome.stdout.startswith(
        f"{SLUG}.zip: {size}, 0.0 kB of it here\n{size} of disk needed"
    )
    assert all("Authorization" not in request.headers for request in server.find("GET"))


def test_a_whole_file_is_left_alone(download, server):
    assert download().code == 0
    outcome = download()
    assert outcome.code == 0
    assert "0.0 kB of disk needed" in outcome.stdout
    assert ranges(server) == [None]


@pytest.mark.parametrize("checksum", [True, False])
def test_a_damaged_file_of_the_right_size_is_downloaded_again(download, server, tmp_path, checksum):
    """Both where Kaggle gives a checksum and where only the zip's own are there."""
    if checksum:
        md5 = base64.b64encode(hashlib.md5(ARCHIVE).digest()).decode()
        server.file_headers["x-goog-hash"] = f"md5={md5}"
    path = tmp_path / "data" / f"{SLUG}.zip"
    path.parent.mkdir()
    damaged = bytearray(ARCHIVE)
    damaged[5000] ^= 1
    path.write_bytes(damaged)
    outcome = download()
    assert outcome.code == 0, outcome.stderr
    assert "; it is downloaded again" in outcome.stderr
    assert path.read_bytes() == ARCHIVE


def test_a_file_without_any_checksum_is_not_believed(download, server, tmp_path):
    server.files["stage_2_sample_submission.csv"] = b"ID,Label\n"
    path = tmp_path / "data" / "stage_2_sample_submission.csv"
    path.parent.mkdir()
    path.write_bytes(b"ID,Lobel\n")
    outcome = download(files=[path.name])
    assert outcome.code == 0, outcome.stderr
    assert path.read_bytes() == b"ID,Label\n"


def test_a_size_that_is_no_number_is_told(download, server):
    server.file_headers["Content-Length"] = "many"
    outcome = download()
    assert outcome.code == 1
    assert "Traceback" not in outcome.stderr


def test_single_files_keep_their_name_and_say_when_kaggle_zipped_them(download, server):
    server.files["stage_2_sample_submission.csv"] = b"ID,Label\n"
    server.files["stage_2_train.csv.zip"] = ARCHIVE
    outcome = download(files=["stage_2_sample_submission.csv", "stage_2_train.csv"])
    assert outcome.code == 0, outcome.stderr
    names = [path.name for path in outcome.paths]
    assert names == ["stage_2_sample_submission.csv", "stage_2_train.csv.zip"]
    assert [path.read_bytes() for path in outcome.paths] == [b"ID,Label\n", ARCHIVE]


def test_an_interrupted_transfer_goes_on_where_it_broke_off(download, server):
    spare_the_question(server)
    server.fail("GET", cut_after=200_000)
    outcome = download()
    assert outcome.code == 0, outcome.stderr
    assert outcome.waits == [1.0]
    assert ranges(server) == [None, f"bytes={3 * CHUNK}-"]
    assert outcome.paths[0].read_bytes() == ARCHIVE


def test_a_download_that_gave_up_is_resumed_by_the_next_call(download, server, tmp_path):
    spare_the_question(server)
    server.fail("GET", cut_after=200_000)
    for _ in range(5):
        spare_the_question(server)
        server.fail("GET", status=503)
    outcome = download()
    assert outcome.code == 1
    assert "HTTP 503" in outcome.sentence
    assert [path.stat().st_size for path in (tmp_path / "data").iterdir()] == [3 * CHUNK]
    outcome = download()
    assert outcome.code == 0, outcome.stderr
    assert "196.6 kB of it here" in outcome.stdout
    assert ranges(server)[-1] == f"bytes={3 * CHUNK}-"
    assert outcome.paths[0].read_bytes() == ARCHIVE


def test_bytes_from_another_place_than_asked_are_never_appended(download, server, tmp_path):
    server.file_headers["Content-Range"] = f"bytes 0-{len(ARCHIVE) - 1}/{len(ARCHIVE)}"
    spare_the_question(server)
    server.fail("GET", cut_after=200_000)
    outcome = download()
    assert outcome.code == 1
    assert "at another place than asked" in outcome.sentence
    assert outcome.stderr.count("trying again in") == 5
    [part] = (tmp_path / "data").iterdir()
    assert part.read_bytes() == ARCHIVE[: 3 * CHUNK]


def test_a_file_that_changed_meanwhile_is_started_anew(download, server, tmp_path):
    spare_the_question(server)
    server.fail("GET", cut_after=200_000)
    server.fail("DownloadDataFiles")
    server.fail("DownloadDataFiles", status=403)
    assert download().code == 1
    assert len(list((tmp_path / "data").glob("*.part"))) == 1
    newer = make_zip(100)
    assert len(newer) == len(ARCHIVE)
    server.files[f"{SLUG}.zip"] = newer
    outcome = download()
    assert outcome.code == 0, outcome.stderr
    assert ranges(server) == [None, None]
    assert outcome.paths[0].read_bytes() == newer
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_a_damaged_file_is_deleted_and_not_given_its_name(download, server, tmp_path):
    wrong = base64.b64encode(hashlib.md5(b"something else").digest()).decode()
    server.file_headers["x-goog-hash"] = f"md5={wrong}"
    outcome = download()
    assert outcome.code == 1
    assert "arrived damaged (its checksum is not the one that Kaggle gives)" in outcome.sentence
    assert list((tmp_path / "data").iterdir()) == []


def test_a_zip_without_its_end_is_damaged(download, server, tmp_path):
    server.files[f"{SLUG}.zip"] = ARCHIVE[:-100]
    outcome = download()
    assert outcome.code == 1
    assert "it is not a whole zip file" in outcome.sentence
    assert list((tmp_path / "data").iterdir()) == []


def test_a_file_shorter_than_promised_is_never_called_finished(download, server, tmp_path):
    server.file_headers["Content-Length"] = str(len(ARCHIVE) + 5)
    server.fail("GET", FOREVER, cut_after=FOREVER)
    outcome = download()
    assert outcome.code == 1
    assert "run the same command again" in outcome.sentence
    [part] = (tmp_path / "data").iterdir()
    assert part.suffix == ".part"


def test_too_little_disk_is_said_before_the_first_byte(download, server):
    server.file_headers["Content-Length"] = str(10**18)
    outcome = download()
    assert outcome.code == 1
    assert outcome.sentence.startswith("Not enough disk: 1000000000.0 GB of disk needed")
    assert "nothing was downloaded" in outcome.sentence
    assert ranges(server) == []


def test_rules_that_were_not_accepted_are_said(download, server):
    server.fail("DownloadDataFiles", FOREVER, status=403)
    outcome = download()
    assert outcome.code == 1
    assert f"https://www.kaggle.com/competitions/{SLUG}/rules" in outcome.sentence


def test_a_file_that_kaggle_does_not_know_is_named(download):
    outcome = download(files=["stage_3_train.csv"])
    assert outcome.code == 1
    assert f"does not know stage_3_train.csv in {SLUG}" in outcome.sentence
