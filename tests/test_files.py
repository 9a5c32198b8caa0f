"""A file is written beside its place, put on the disk, and only then given its name."""

import errno
import os
import subprocess
import zipfile

import pytest

from kit import InputError
from kit.files import (
    FileError,
    list_archive,
    name_errors,
    open_file,
    read_commit,
    read_json,
    read_text,
    replace_file,
)


def test_the_content_is_on_the_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "file", []
    synchronize = os.fsync

    def note(number):
        seen.append((os.readlink(f"/proc/self/fd/{number}"), path.exists()))
        synchronize(number)

    monkeypatch.setattr(os, "fsync", note)
    with replace_file(path) as part:
        part.write_text("whole")
    assert seen == [(f"{path}.part", False)]
    assert path.read_text() == "whole"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError, OSError])
def test_whatever_stops_the_writing_leaves_the_earlier_file(stop, tmp_path):
    path = tmp_path / "file"
    path.write_text("earlier")

    def write():
        with replace_file(path) as part:
            part.write_text("ha")
            raise stop

    with pytest.raises(stop):
        write()
    assert path.read_text() == "earlier"
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_names_the_file_unless_it_names_another(tmp_path):
    path = tmp_path / "file"
    for given, named in ((None, path), (path.with_name("file.part"), path), ("other", "other")):
        with (
            pytest.raises(OSError, match="No space left") as caught,
            name_errors(path, path.with_name("file.part")),
        ):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), given)
        assert str(caught.value.filename) == str(named)
    with pytest.raises(OSError, match=rf"^{path}: no number$"), name_errors(path):
        raise OSError("no number")


def test_a_file_that_is_no_text_is_named_and_not_read(tmp_path):
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a terabyte of zeros, none of them on the disk
    with pytest.raises(FileError, match=f"^{path}: larger than any text or table: 1099512 MB$"):
        read_text(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FileError, match=f"^{path}: not a regular file$"):
        read_text(path)
    path.unlink()
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match=f"^{path}: not UTF-8 text"):
        read_text(path)
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match=f"^{path}: not JSON that can be read"):
        read_json(path)


def test_a_zip_whose_names_are_no_text_is_named(tmp_path):
    """The names stand in the directory at the end and again before each member."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("é", b"content")
    whole, name = path.read_bytes(), "é".encode()
    for place, reason in (
        (whole.index(name), r"a\.zip/é: zip member is damaged"),
        (whole.rindex(name), r"a\.zip: not a zip archive that can be read"),
    ):
        path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        with pytest.raises(FileError, match=reason):
            open_file(path / "é")


def test_a_zip_with_a_nameless_member_is_listed(tmp_path):
    nameless = zipfile.ZipInfo("name")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(nameless, b"")
        nameless.filename = ""  # what the directory at the end will say
    assert list_archive(tmp_path / "a.zip") == [f"{tmp_path}/a.zip/"]


def test_a_link_in_the_place_of_the_part_is_not_followed(tmp_path):
    other, path = tmp_path / "other", tmp_path / "file"
    other.write_text("mine")
    (tmp_path / "file.part").symlink_to(other)
    with replace_file(path) as part:
        part.write_text("whole")
    assert (path.read_text(), other.read_text()) == ("whole", "mine")


def test_the_commit_is_that_of_the_folder_and_says_where_files_differ(tmp_path):
    assert read_commit(tmp_path) is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run(["git", *identity, *command], cwd=tmp_path, check=True)
    commit = read_commit(tmp_path)
    assert len(commit) == 40
    assert int(commit, 16) >= 0
    (tmp_path / "file").touch()
    subprocess.run(["git", "add", "file"], cwd=tmp_path, check=True)
    assert read_commit(tmp_path) == f"{commit}-dirty"
