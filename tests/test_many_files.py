"""A folder of 100,000 files, of which a few are a head."""

import random
import shutil
import time

import pytest

from kit.slices.index import index_slices

SECONDS = 60  # measured: 7 on two busy cores


@pytest.mark.slow
def test_a_hundred_thousand_files_are_indexed_in_a_minute(small_data, tmp_path):
    """Other files of every short length, text and noise, in folders of 1,000, around one series."""
    alone, _ = index_slices(small_data / "stage_2_test", workers=1)
    series = alone[alone["series"] == alone["series"].iloc[0]].reset_index(drop=True)
    rng = random.Random(0)
    noise = rng.randbytes(400)
    for number in range(100_000 - len(series)):
        folder = tmp_path / f"{number // 1000:03}"
        if number % 1000 == 0:
            folder.mkdir()
        content = noise[: number % 400] if number % 2 else b"not an image\n" * (number % 20)
        (folder / f"file{number}.dcm").write_bytes(content)
    for path in series["path"]:
        shutil.copy(path, tmp_path / "050")
    started = time.monotonic()
    slices, skipped = index_slices(tmp_path)
    seconds = time.monotonic() - started
    print(f"100,000 files indexed in {seconds:.0f} s")
    assert len(slices) + len(skipped) == 100_000
    assert skipped["reason"].notna().all()
    columns = ["SOPInstanceUID", "seq", "position"]
    assert slices[columns].equals(series[columns])
    assert seconds < SECONDS
