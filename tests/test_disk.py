"""Disks that are full, read-only or closed to the user, and files that go away in between."""

import contextlib
import os
import random
import re
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import kit
from conftest import TINY_FLAGS as FLAGS
from conftest import TINY_NOTE as NOTE
from conftest import limit_files
from failure_tries import note_tries

from kit.cli.commands import main
from kit.competition import LABELS
from kit.embeddings import seal_store
from kit.files import write_json
from kit.report.page import write_page
from kit.runs.tables import write_frame
from kit.slices.index import index_files, list_files
from kit.submission import write_submission
from kit.training.checkpoints import save_tensors

TABLES = ("oof.parquet", "test.parquet")


class Disk:
    """A filesystem of 32 MB, mounted at `path`."""

    def __init__(self, path):
        self.path, self.ballast = path, path / "ballast"

    def leave(self, kib: int) -> None:
        """Fill all but `kib` of it."""
        self.ballast.unlink(missing_ok=True)
        state = os.statvfs(self.path)
        with open(self.ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_bsize - kib * 1024)

    def empty(self) -> None:
        self.ballast.unlink()

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.path)], check=True)

    def list_parts(self) -> list[str]:
        return [path.name for path in self.path.rglob("*") if ".part" in path.suffixes]


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a filesystem of its own needs root")
    yield Disk(path)
    subprocess.run(["umount", "-l", str(path)], check=True)


def fail(capsys, *arguments) -> str:
    """What a command that must fail says: one line, the same form every time.

    Before it there is the note that indexing makes of the phantom's doubled series, and no more.
    """
    capsys.readouterr()
    assert main([*map(str, arguments), "--quiet"]) == 1
    errors = re.sub(NOTE, "", capsys.readouterr().err)
    assert errors.startswith("kit: ")
    assert errors.count("\n") == 1
    return errors.strip()


# What `kit run` writes, in its order, and KiB left in which the file before it fits, not it.
STAGES = [
    (0, "config.json"),
    (24, "slices.parquet"),
    (800, "fold0/classifier/epoch1.safetensors"),
    (2600, "fold0/classifier/checkpoint.safetensors"),
    (200, "fold0/embeddings/epoch1/embeddings.npy.part"),
    (700, "fold0/lstm/epoch1/epoch1.safetensors"),
    (2000, "fold0/lstm/epoch1/checkpoint.safetensors"),
]


def test_a_run_on_a_full_disk_names_the_file_and_ends_in_the_same_bytes(tiny, disk, capsys):
    run = disk.path / "run"
    command = ["run", tiny / "data", "--run", run, *FLAGS]
    for kib, name in STAGES:
        if "embeddings" in name:  # the checkpoint, which needs more, is removed before them
            disk.empty()
            assert main(["train-classifier", str(run), "--quiet"]) == 0
        disk.leave(kib)
        assert fail(capsys, *command) == f"kit: {run / name}: No space left on device"
        assert not (run / name).exists() or name.endswith(".npy.part")
    disk.empty()
    assert main(["train-lstm", str(run), "--quiet"]) == 0
    # Parquet files have another size by another version of Arrow: these are of this one's.
    oof, test = ((tiny / "run" / name).stat().st_size // 1024 for name in TABLES)
    for kib, name in ((oof // 2, TABLES[0]), (oof + test // 2, TABLES[1]), (200, "report.html")):
        disk.leave(kib)
        assert fail(capsys, *command) == f"kit: {run / name}: No space left on device"
        assert not (run / name).exists()
    assert disk.list_parts() == []
    disk.empty()
    assert main(list(map(str, command))) == 0
    for name in ("submission.csv", "oof.parquet", "slices.parquet"):
        assert (run / name).read_bytes() == (tiny / "run" / name).read_bytes()


@pytest.mark.slow
def test_a_disk_that_fills_at_any_instant_loses_nothing(tiny, disk):
    """At least 25 times, at instants drawn from a whole run; what is left goes on to its end."""
    run, rng, tries, number, noted = disk.path / "run", random.Random(2), [], 0, 0
    command = ["run", tiny / "data", "--run", run, *FLAGS]
    started = time.monotonic()
    assert kit(*command).returncode == 0
    seconds = time.monotonic() - started
    while noted < 25:
        if number % 6 == 0:
            shutil.rmtree(run)
        number += 1
        filling = threading.Timer(rng.uniform(0, seconds), disk.leave, [rng.choice((0, 4, 60))])
        filling.start()
        done = kit(*command)
        filling.cancel()
        filling.join()
        if disk.ballast.exists():
            disk.empty()
        if done.returncode:
            line = re.sub(NOTE, "", done.stderr)
            said = re.fullmatch(rf"kit: {run}/?(\S*): No space left on device\n", line)
            assert said, done.stderr
            tries.append(re.sub(r"fold\d/|\d+|\.part", "", said[1]) or "run")
        if done.returncode == 0 or number % 6 == 0:
            again = kit(*command)
            alike = [
                (run / name).read_bytes() == (tiny / "run" / name).read_bytes()
                for name in ("submission.csv", "oof.parquet", "slices.parquet")
            ]
            note_tries("disk full", tries[noted:], again.returncode == 0 and all(alike))
            noted = len(tries)
    assert disk.list_parts() == []


def test_a_phantom_that_does_not_fit_leaves_nothing(disk, capsys):
    command = ["phantom", disk.path / "data", "--patients", "3", "--size", "32", "--quiet"]
    for kib in (0, 100):
        disk.leave(kib)
        said = fail(capsys, *command)
        assert said == f"kit: {disk.path / 'data'}: No space left on device"
        assert os.listdir(disk.path) == ["ballast"]
    disk.empty()
    assert main(list(map(str, command))) == 0


def test_predictions_that_do_not_fit_name_the_file(tiny, disk, capsys):
    out = disk.path / "out" / "table.csv"
    command = ["predict", tiny / "data" / "stage_2_test", "--run", tiny / "run", "--out", out]
    command += ["--report", "--workers", "1", "--quiet"]
    work = ".table.kit-work"
    for kib, file in ((0, r"source\.json"), (8, r"embeddings\.npy\.part")):
        disk.leave(kib)
        assert re.search(rf"{file}: No space left on device$", fail(capsys, *command))
        assert os.listdir(out.parent) == [work]
    disk.leave(150)
    assert fail(capsys, *command) == f"kit: {out.with_suffix('.html')}: No space left on device"
    # The page comes last: the predictions, which did fit, are there.
    tables = [f"table.{ending}" for ending in ("csv", "json", "series.csv", "skipped.csv")]
    assert sorted(os.listdir(out.parent)) == [work, *tables]
    disk.empty()
    assert main(list(map(str, command))) == 0
    assert work not in os.listdir(out.parent)
    assert len(pd.read_csv(out)) == len(os.listdir(tiny / "data" / "stage_2_test")) - 1  # cut short


def test_a_read_only_disk_is_named(tiny, disk, capsys):
    shutil.copytree(tiny / "run", disk.path / "run")
    disk.remount("ro")
    run, new, scans = disk.path / "run", disk.path / "new", tiny / "data" / "stage_2_test"
    for named, *command in (
        (run / ".lock", "run", tiny / "data", "--run", run, *FLAGS),
        (run / ".lock", "ensemble", run),
        (new, "index", tiny / "data", "--run", new, *FLAGS),
        (new, "phantom", new / "data", "--patients", "3", "--size", "32"),
        (new, "predict", scans, "--run", run, "--out", new / "out.csv", "--workers", "1"),
    ):
        assert fail(capsys, *command) == f"kit: {named}: Read-only file system"
    disk.remount("rw")
    assert main(["run", str(tiny / "data"), "--run", str(run), *FLAGS]) == 0


@contextlib.contextmanager
def without_privileges():
    """Root may read and write everything: be nobody for a while."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)


def test_a_file_or_folder_closed_to_the_user_is_named(tiny, capsys):
    with tempfile.TemporaryDirectory() as home:
        os.chmod(home, 0o755)
        data, mine = Path(home, "data"), Path(home, "mine")
        shutil.copytree(tiny / "data", data)
        mine.mkdir()
        mine.chmod(0o777)
        closed = [
            data / "stage_2_test_truth.csv",
            data / "stage_2_train.csv",
            *data.glob("*/*0.dcm"),
        ]
        for path in closed:
            path.chmod(0)
        with without_privileges():
            command = ["index", data, *FLAGS, "--run"]
            said = fail(capsys, *command, Path(home, "closed"))
            assert said == f"kit: {home}/closed: Permission denied"
            said = fail(capsys, *command, mine / "run")
            assert str(closed[1]) in said
            assert said.endswith("Permission denied")
        closed[1].chmod(0o644)
        with without_privileges():
            assert main(list(map(str, [*command, mine / "run"]))) == 0
        skipped = pd.read_csv(mine / "run" / "skipped.csv").set_index("path")["reason"]
        assert skipped[list(map(str, closed[2:]))].str.contains("Permission denied").all()


FRAME = pd.DataFrame(np.random.default_rng(0).random((2000, 6)), columns=list(LABELS))
WIDE = FRAME.set_axis([f"ID_{number:09x}" for number in range(len(FRAME))])
WRITERS = {
    "submission.csv": lambda path: write_submission(WIDE, path),
    "table.csv": lambda path: write_frame(path, FRAME),
    "table.parquet": lambda path: write_frame(path, FRAME),
    "values.json": lambda path: write_json(path, list(range(10_000))),
    "weights.safetensors": lambda path: save_tensors(path, {"a": torch.zeros(10_000)}, {}),
    "page.html": lambda path: write_page(path, {"series": "x" * 10_000}),
    "ids.txt": lambda path: seal_store(path.parent, WIDE.index, {}),
}


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_file_cut_off_while_it_is_written_leaves_the_earlier_one(name, tmp_path):
    path = tmp_path / name
    path.write_text("what was there before")
    with limit_files(4096), pytest.raises(OSError, match="File too large") as caught:
        WRITERS[name](path)
    assert caught.value.filename == str(path)
    assert os.listdir(tmp_path) == [name]
    assert path.read_text() == "what was there before"
    WRITERS[name](path)
    assert path.stat().st_size > 4096


def test_a_file_gone_between_listing_and_reading_is_listed(tiny, tmp_path):
    data = shutil.copytree(tiny / "data" / "stage_2_test", tmp_path / "scans")
    paths = list_files(data)
    os.unlink(paths[5])
    slices, skipped = index_files(paths, str(data), 1)
    assert "No such file" in skipped.set_index("path")["reason"][paths[5]]
    assert len(slices) + len(skipped) == len(paths)


def test_weights_gone_between_two_stages_are_named(tiny, tmp_path, capsys):
    run = shutil.copytree(tiny / "run", tmp_path / "run")
    gone = run / "fold0" / "classifier" / "epoch1.safetensors"
    gone.unlink()
    for command in (["embed", run], ["predict", tiny / "data", "--run", run, "--out", "x.csv"]):
        assert fail(capsys, *command).startswith(f"kit: {gone} is missing")


def test_data_that_go_away_stop_the_run_which_goes_on_when_they_are_back(tiny, tmp_path, capsys):
    data, run = shutil.copytree(tiny / "data", tmp_path / "data"), tmp_path / "run"
    assert main(["index", str(data), "--run", str(run), *FLAGS]) == 0
    away, place = tmp_path / "away", data / "stage_2_train"
    for stage in ("train-classifier", "embed"):
        place.rename(away)
        said = fail(capsys, stage, run, "--workers", "1")
        assert re.fullmatch(
            rf"kit: {place}/ID_\w+\.dcm: was there when it was indexed \(No such file or "
            r"directory\): put it back and go on; an empty file in its place leaves the slice out",
            said,
        )
        away.rename(place)
        assert main([stage, str(run), "--workers", "1", "--quiet"]) == 0
    assert main(["run", str(data), "--run", str(run), *FLAGS]) == 0
    assert (run / "submission.csv").read_bytes() == (tiny / "run/submission.csv").read_bytes()


def test_a_run_without_a_single_image_stops_and_says_why(tiny, tmp_path, capsys):
    data, run = shutil.copytree(tiny / "data", tmp_path / "data"), tmp_path / "run"
    assert main(["index", str(data), "--run", str(run), *FLAGS]) == 0
    for path in data.glob("*/*.dcm"):
        os.truncate(path, path.stat().st_size - 1000)
    said = fail(capsys, "train-classifier", run, "--workers", "1")
    assert re.match(rf"kit: epoch 1: no file gives an image; the first is {data}/\S+\.dcm: ", said)
    shutil.copytree(
        tiny / "run" / "fold0" / "classifier", run / "fold0" / "classifier", dirs_exist_ok=True
    )
    for _ in range(2):
        said = fail(capsys, "embed", run, "--workers", "1")
        assert re.match(r"kit: no slice gives an image; the first is ID_\w+: ", said)
