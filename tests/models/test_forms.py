"""Releases are told apart by what is there, and mistakes at once."""

import pytest
from command_line import check_told_at_once

from kit import InputError
from kit.models.forms import find_form


def test_a_form_is_found_by_what_is_there(tmp_path):
    (tmp_path / "sequence").mkdir()
    (tmp_path / "sequence" / "model.safetensors").touch()
    assert find_form(tmp_path) == "ianpan"
    (tmp_path / "fold0_ep3.pt").touch()
    assert find_form(tmp_path / "fold0_ep3.pt") == "appian"
    with pytest.raises(InputError, match="there is no kind 'other'; there are ianpan, appian"):
        find_form(tmp_path, "other")


def test_what_is_no_release_is_told_before_torch_is_loaded(tmp_path):
    (tmp_path / "README.md").touch()
    words = ["import-model", str(tmp_path / "README.md"), "--out", str(tmp_path / "model")]
    check_told_at_once(words, 1, "not a release that kit knows")
