"""Files of released weights: read without running anything, each defect named."""

import numpy as np
import pytest
import torch
from hostile_files import spoil_bytes
from safetensors.torch import save_file

from kit import InputError
from kit.models.reading import read_pickled, read_safetensors, rename_tensors


def test_tensors_and_numpy_scalars_are_read(tmp_path):
    detail = {"score": np.float64(0.5), "steps": [np.int64(3), np.float32(2)], "done": np.bool_(1)}
    torch.save({"model": {"a": torch.ones(2)}, "detail": detail}, tmp_path / "x.pt")
    saved = read_pickled(tmp_path / "x.pt")
    assert saved["detail"] == detail
    assert saved["model"]["a"].tolist() == [1, 1]


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", b"\x80\x02cos\nsystem\n."])
def test_what_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pt: not weights that can be read safely"):
        read_pickled(tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x\.pt: not a \.safetensors file"):
        read_safetensors(tmp_path / "x.pt")


@pytest.mark.parametrize("spoil", spoil_bytes())
def test_a_spoilt_file_is_named_and_nothing_waits_or_runs(tmp_path, spoil):
    path, said, found = tmp_path / "x.pt", "", None
    for read, write in ((read_pickled, torch.save), (read_safetensors, save_file)):
        write({"a": torch.ones(2000)}, path)
        spoil_bytes()[spoil](path)
        try:
            found = read(path)
        except InputError as error:
            said = str(error)
        if found is None or not spoil.startswith("flipped"):  # it may be one of the numbers
            assert said.startswith(f"{path}: not ")
            assert "\n" not in said
        path.rmdir() if path.is_dir() else path.unlink()


CLAIMS = b"\xff" * 8, b"\0\0\0\0\0\0\0\x7f{}", b"\2\0\0\0\0\0\0\0\xff{"


@pytest.mark.parametrize("content", CLAIMS)
def test_a_safetensors_header_of_any_length_or_bytes_is_named(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.safetensors: not a \.safetensors file"):
        read_safetensors(tmp_path / "x.safetensors")


def test_what_is_no_dictionary_is_named(tmp_path):
    torch.save([1], tmp_path / "x.pt")
    with pytest.raises(InputError, match="holds no dictionary"):
        read_pickled(tmp_path / "x.pt")


def test_a_count_of_batches_may_be_missing(tmp_path):
    wanted = {"a.num_batches_tracked": torch.tensor(7), "a.weight": torch.zeros(2)}
    found = rename_tensors(tmp_path, {"a.weight": torch.ones(2)}, wanted, str)
    assert {name: value.tolist() for name, value in found.items()} == {
        "a.num_batches_tracked": 0,
        "a.weight": [1, 1],
    }
