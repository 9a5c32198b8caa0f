"""What a release is known by, and the order of its labels."""

import pytest
import torch
from released_models import write_appian

from kit import InputError
from kit.models.kinds import KINDS, find_kind


def test_a_release_is_found_by_what_is_there(tmp_path):
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "model.safetensors").touch()
    assert find_kind(tmp_path) is KINDS["ianpan"]
    (tmp_path / "fold0_ep3.pt").touch()
    assert find_kind(tmp_path / "fold0_ep3.pt") is KINDS["appian"]
    with pytest.raises(InputError, match="it would be a folder with classifier"):
        find_kind(tmp_path / "fold0_ep3.pt", "ianpan")


def test_the_head_of_a_file_is_named_and_ordered_as_the_kits(tmp_path):
    path = write_appian(tmp_path / "fold0_ep3.pt", model={"last_linear.bias": torch.arange(6)})
    (part,) = KINDS["appian"].read(path).classifiers
    assert part.rename("head.bias") == "last_linear.bias"
    assert part.rename("backbone.layer0.conv1.weight") == "layer0.conv1.weight"
    labels = ["any", "epidural", "subdural", "subarachnoid", "intraventricular", "intraparenchymal"]
    assert [labels[place] for place in part.order] == [
        "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any",
    ]  # fmt: skip
