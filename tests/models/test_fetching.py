"""`kit fetch` against a repository on the loopback: pinned, checked, resumed; without a network."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from hugging_face_server import COMMIT, serve_repository
from released_models import shrink_ianpan, write_ianpan

from kit.models.fetching import FetchError, download_file, fetch_model, name_network_errors
from kit.runs.directory import Run, read_config

# The command line, with the release of a small model.
_SMALL = """
import sys, pytest
from released_models import shrink_ianpan
from kit.cli.commands import main
with pytest.MonkeyPatch.context() as patch:
    shrink_ianpan(patch)
    patch.setattr("kit.models.fetching.PAUSES", (0, 0))
    sys.exit(main(sys.argv[1:]))
"""


def fetch(address, cache, *words, token=""):
    """Run `kit fetch WORDS` against a server with an empty environment of Hugging Face's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env = {**kept, "HF_ENDPOINT": address, "HF_HOME": str(cache), "no_proxy": "127.0.0.1",
           **({"HF_TOKEN": token} if token else {}),
           "PYTHONPATH": f"{ROOT}:{ROOT}/tests"}  # fmt: skip
    command = [sys.executable, "-c", _SMALL, "fetch", *map(str, words), "--quiet"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)


@pytest.fixture
def release(tmp_path, monkeypatch):
    shrink_ianpan(monkeypatch)
    return write_ianpan(tmp_path / "release")


def test_a_model_is_downloaded_resumed_checked_and_imported(release, tmp_path):
    model, names = (
        tmp_path / "model",
        [f"{n}/model.safetensors" for n in ("classifier", "sequence")],
    )
    with serve_repository(release) as server:
        server.halved, server.broken = names
        done = fetch(server.address, tmp_path / "cache", "ianpan", "--out", model)
        assert done.returncode == 1
        assert "could not be downloaded" in done.stderr
        assert not model.exists()
        half = (release / names[0]).stat().st_size // 2
        asked = [entry for entry in server.asked if entry[0] == names[0]]
        # Half arrives, the rest at the next attempt; of the other nothing, at three attempts.
        assert asked == [(names[0], ""), (names[0], f"bytes={half >> 16 << 16}-")]
        assert [name for name, _ in server.asked].count(names[1]) == 3
        server.broken, server.asked = "", []
        done = fetch(server.address, tmp_path / "cache", "ianpan", "--out", model)
        assert done.returncode == 0, done.stderr
        assert server.asked == [(names[1], "")]  # the other is there
    assert not (tmp_path / "model.partial").exists()
    assert "Model: ianpan" in done.stdout
    assert "licence: MIT" in done.stdout
    assert read_config(Run(model))["provenance"]["revision"] == "e6d89c2"


def test_a_file_that_is_not_the_released_one_is_refused_and_fetched_again(release, tmp_path):
    file, model = release / "sequence/model.safetensors", tmp_path / "model"
    right = file.read_bytes()
    with serve_repository(release) as server:
        file.write_bytes(right[:-1] + b"?")
        done = fetch(server.address, tmp_path / "cache", "ianpan", "--out", model)
        assert done.returncode == 1
        assert "is not the released file: its checksum is another" in done.stderr
        assert not model.exists()
        file.write_bytes(right)
        done = fetch(server.address, tmp_path / "cache", "ianpan", "--out", model)
        assert done.returncode == 0, done.stderr


def find_partial(server, release, tmp_path):
    """Leave the classifier half fetched; return where it stands and how much of it."""
    name = "classifier/model.safetensors"
    server.broken = name
    part = tmp_path / "model.partial" / name
    part.parent.mkdir(parents=True)
    half = (release / name).stat().st_size // 2
    part.write_bytes((release / name).read_bytes()[:half])
    done = fetch(server.address, tmp_path / "cache", "ianpan", "--out", tmp_path / "model")
    assert done.returncode == 1
    assert part.stat().st_size == half
    server.broken, server.asked = "", []
    return part, half


def test_a_second_call_continues_a_half_fetched_file_and_no_token_goes_to_the_storage(
    release, tmp_path
):
    with serve_repository(release) as server, serve_repository(release) as storage:
        part, half = find_partial(server, release, tmp_path)
        server.storage = storage
        done = fetch(
            server.address, tmp_path / "cache", "ianpan", "--out", tmp_path / "model", token="hf_x"
        )
    assert done.returncode == 0, done.stderr
    assert storage.asked[0] == ("classifier/model.safetensors", f"bytes={half}-")
    assert "Bearer hf_x" in server.tokens
    assert set(storage.tokens) == {None}
    assert not part.exists()


def test_a_server_without_ranges_and_a_part_of_another_file_begin_anew(release, tmp_path):
    with serve_repository(release) as server:
        part, half = find_partial(server, release, tmp_path)
        part.write_bytes(bytes(half))  # of another file
        done = fetch(server.address, tmp_path / "cache", "ianpan", "--out", tmp_path / "model")
        assert done.returncode == 1
        assert "its checksum is another. What had arrived was removed" in done.stderr
        assert not part.exists()
        part.write_bytes(bytes(half))
        server.whole, server.asked = True, []
        done = fetch(server.address, tmp_path / "cache", "ianpan", "--out", tmp_path / "model")
        assert done.returncode == 0, done.stderr
    assert server.asked[0] == ("classifier/model.safetensors", f"bytes={half}-")


def test_a_full_disk_is_named_as_what_it_is(release, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    full = tmp_path / "full"
    full.symlink_to("/dev/full")  # takes no byte
    with serve_repository(release) as server:
        url = f"{server.address}/resolve/main/sequence/model.safetensors"
        with (
            pytest.raises(OSError, match=f"No space left on device: '{full}'"),
            name_network_errors("ianpan", "import it"),
        ):
            download_file(url, full, 1000, "")


def test_another_revision_is_not_taken(release, tmp_path):
    with serve_repository(release) as server:
        server.commits = ["f" * 40]
        done = fetch(server.address, tmp_path / "cache", "ianpan", "--out", tmp_path / "model")
    assert done.returncode == 1
    assert "has no revision e6d89c2 any more" in done.stderr
    assert COMMIT.startswith("e6d89c2")


def test_without_a_network_a_sentence_says_what_to_do(tmp_path):
    done = fetch("http://127.0.0.1:9", tmp_path / "cache", "ianpan", "--out", tmp_path / "model")
    assert done.returncode == 1
    assert "could not be downloaded" in done.stderr
    assert "use kit import-model" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_cannot_be_fetched_is_told_with_what_can(tmp_path):
    with pytest.raises(FetchError, match="download by hand, then: kit import-model"):
        fetch_model("appian", tmp_path / "model")
    with pytest.raises(FetchError, match="kit fetch has no 'seutao'; it has ianpan"):
        fetch_model("seutao", tmp_path / "model")
