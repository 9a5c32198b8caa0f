"""The hidden folder beside an output: whose it is, and who may work in it."""

import pytest
from conftest import predict_folder

from kit.runs.directory import RunError, lock_folder
from kit.runs.work import open_work


def test_what_is_not_of_kit_is_not_removed_and_a_second_process_is_refused(
    small_run, small_data, tmp_path
):
    work = tmp_path / ".out.kit-work"
    work.mkdir()
    (work / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="not a folder of kit predict"):
        predict_folder(small_data / "stage_2_test", small_run, tmp_path / "out.csv", workers=0)
    assert (work / "thesis.txt").read_text() == "mine"
    (work / "thesis.txt").unlink()
    (work / "source.json.part").touch()  # as a kill leaves it: that is of kit
    refused = pytest.raises(RunError, match="another process is at work")
    with lock_folder(work), refused:
        predict_folder(small_data / "stage_2_test", small_run, tmp_path / "out.csv", workers=0)


def test_work_made_from_another_source_is_removed(tmp_path):
    assert not open_work(tmp_path, {"files": "a"})
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "embeddings.npy").touch()
    assert open_work(tmp_path, {"files": "a"})
    assert (tmp_path / "1" / "embeddings.npy").exists()
    assert not open_work(tmp_path, {"files": "b"})
    assert [path.name for path in tmp_path.iterdir()] == ["source.json"]
    assert open_work(tmp_path, {"files": "b"})
