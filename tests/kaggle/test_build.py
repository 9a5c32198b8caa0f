"""Building: percent format to notebook, wheels, metadata; the same sources give the same bytes."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file

import kit
from kit import KitError
from kit.classifier import make_backbone
from kit.kaggle import build as notebooks
from kit.kaggle.build import (
    NOTEBOOKS,
    REQUIREMENTS,
    BuildError,
    build_kernel,
    build_kernels,
    build_wheels,
    read_script,
    render_notebook,
)
from kit.recipes import find_recipe

SOURCE = """\
# %% [markdown]
# # Title
#
# Text.

# %%
import os

print(os.sep)

# %% tags=["parameters"]
FOLD = 0
NAME = "blog"

# %%
import os

print(os.sep)
"""


def _hash_tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def offline(monkeypatch):
    """No downloads: the decoders are left out."""
    monkeypatch.setattr(notebooks, "PYTHONS", ())


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of the project, to which a test may add files."""
    copy = tmp_path / "project"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("kit", "kernels"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copyfile(ROOT / name, copy / name)
    return copy


def test_a_percent_script_becomes_a_valid_notebook():
    notebook = nbformat.reads(render_notebook(SOURCE), as_version=4)
    nbformat.validate(notebook)
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code", "code", "code"]
    assert notebook.cells[0].source == "# Title\n\nText."
    assert notebook.cells[1].source == "import os\n\nprint(os.sep)"
    assert notebook.cells[2].metadata.tags == ["parameters"]
    assert notebook.metadata.kernelspec.name == "python3"
    # Equal cells have ids of their own, all the same.
    assert len({cell.id for cell in notebook.cells}) == 4


def test_an_id_follows_from_place_and_content():
    first, second = (json.loads(render_notebook(SOURCE))["cells"] for _ in range(2))
    assert first == second
    changed = json.loads(render_notebook(SOURCE.replace("Text.", "Other.")))["cells"]
    assert [a["id"] == b["id"] for a, b in zip(first, changed, strict=True)] == [
        False,
        True,
        True,
        True,
    ]
    expected = hashlib.sha256(b'2\nFOLD = 0\nNAME = "blog"').hexdigest()[:12]
    assert first[2]["id"] == expected


def test_parameters_are_set_where_they_are_assigned():
    notebook = nbformat.reads(render_notebook(SOURCE, {"FOLD": 3, "NAME": "a\\1b"}), 4)
    assert notebook.cells[2].source == "FOLD = 3\nNAME = 'a\\\\1b'"
    with pytest.raises(BuildError, match="the notebook has no parameter HOURS"):
        render_notebook(SOURCE, {"HOURS": 1})


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_built_notebook_is_that_of_its_source(name):
    folder = ROOT / "kernels" / name
    built = (folder / f"{name}.ipynb").read_text(encoding="utf-8")
    assert built == render_notebook(read_script(folder))
    notebook = nbformat.reads(built, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 6
    assert max(len(cell.source.splitlines()) for cell in notebook.cells) <= 17


def test_the_notebooks_are_rendered_beside_their_sources(tmp_path):
    folder = shutil.copytree(ROOT / "kernels", tmp_path / "kernels")
    before = _hash_tree(folder)
    for notebook in folder.glob("*/*.ipynb"):
        notebook.write_text("{}")
    command = [sys.executable, "-m", "kit.kaggle.build"]
    subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert _hash_tree(folder) == before


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_hold_no_logic_but_calls_into_kit(name):
    """All but the installation, which is the second of every notebook."""
    notebook = nbformat.reads(render_notebook(read_script(ROOT / "kernels" / name)), 4)
    _, install, *cells = [cell.source for cell in notebook.cells]
    assert (ROOT / "kernels" / "install.py").read_text(encoding="utf-8").endswith(f"{install}\n")
    assert "pip = [" in install
    assert not re.search(r"os\.walk|rglob|\*\*/", install)
    for cell in cells:
        assert not re.search(r"^\s*(if|for|while|def|class|try|with)\b", cell, re.MULTILINE)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_metadata_write_out_every_surprising_default(name, tmp_path):
    build_kernel(_copy_kernel(name, tmp_path), tmp_path / "built", "some-one", fold=2)
    metadata = json.loads((tmp_path / "built" / "kernel-metadata.json").read_text())
    expected = {
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_tpu": False,
        "enable_internet": False,
        "machine_shape": "NvidiaTeslaT4",
        "docker_image_pinning_type": "latest",
        "competition_sources": ["rsna-intracranial-hemorrhage-detection"],
        "model_sources": [],
        "keywords": [],
    }
    assert {key: metadata[key] for key in expected} == expected
    owner, _, slug = metadata["id"].partition("/")
    assert owner == "some-one"
    # Kaggle makes the slug from the title; another one gives a second notebook.
    assert re.sub(r"[^a-z0-9]+", "-", metadata["title"].lower()) == slug
    assert "{" not in json.dumps(metadata["id"] + "".join(metadata["dataset_sources"]))
    assert (tmp_path / "built" / metadata["code_file"]).is_file()


def _copy_kernel(name: str, folder: Path) -> Path:
    shutil.copy(ROOT / "kernels" / "install.py", folder)
    return Path(shutil.copytree(ROOT / "kernels" / name, folder / name))


def test_the_fold_reaches_notebook_slug_and_sources(tmp_path):
    build_kernel(_copy_kernel("train-lstm", tmp_path), tmp_path / "built", "me", fold=2)
    metadata = json.loads((tmp_path / "built" / "kernel-metadata.json").read_text())
    assert metadata["id"] == "me/hemorrhage-train-lstm-fold2"
    assert metadata["kernel_sources"] == [
        "me/hemorrhage-train-classifier-fold2",
        "me/hemorrhage-train-lstm-fold2",
    ]
    notebook = nbformat.read(tmp_path / "built" / "train-lstm.ipynb", 4)
    assert notebook.cells[2].source.splitlines()[0] == "FOLD = 2"


def test_a_recipe_without_folds_is_trained_on_all_data(project, tmp_path, offline):
    folder = tmp_path / "built"
    build_kernels("reader", recipe="single", folder=folder, project=project)
    for name in ("train-classifier", "train-lstm"):
        notebook = nbformat.read(folder / "kernels" / name / f"{name}.ipynb", 4)
        assert "FOLD = 'all'" in notebook.cells[2].source.splitlines()
        metadata = json.loads((folder / "kernels" / name / "kernel-metadata.json").read_text())
        assert metadata["id"] == f"reader/hemorrhage-{name}-foldall"
    with pytest.raises(BuildError, match="single trains one model on all data: it has no fold 1"):
        build_kernels("reader", fold=1, recipe="single", folder=folder, project=project)


def test_recipe_and_version_reach_the_notebook(tmp_path):
    source = _copy_kernel("tonight", tmp_path)
    build_kernel(source, tmp_path / "built", "me", recipe="single")
    cells = nbformat.read(tmp_path / "built" / "tonight.ipynb", 4).cells
    assert f"KIT = {kit.__version__!r}  # the version" in cells[1].source
    assert cells[2].source.splitlines()[0] == "RECIPE = 'single'"


def test_a_rebuild_has_the_same_bytes(project, tmp_path, offline, small_run):
    first, second = tmp_path / "first", tmp_path / "second"
    build_kernels("reader", [small_run.path], synthetic=True, folder=first, project=project)
    (second / "output").mkdir(parents=True)
    (second / "output" / "kept").touch()
    (second / "datasets" / "stale").mkdir(parents=True)
    listed = build_kernels(
        "reader", [small_run.path], synthetic=True, folder=second, project=project
    )
    assert (second / "output" / "kept").exists()  # what was fetched is not built
    shutil.rmtree(second / "output")
    built = _hash_tree(first)
    assert built == _hash_tree(second)
    assert {name.split("/")[1] for name in built} == {"wheels", "weights", "predict"}
    assert listed == {
        str(place): sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        for place in second.glob("*/*")
    }


@pytest.fixture
def small_classifiers(monkeypatch):
    """Every recipe trains the classifier of `demo`, whose weights are quickly made."""

    def shrink(name):
        return replace(find_recipe(name), classifier=find_recipe("demo").classifier)

    monkeypatch.setattr(notebooks, "find_recipe", shrink)


@pytest.mark.parametrize(
    ("recipe", "names"),
    [("tonight", {"tonight"}), ("demo", {"train-classifier", "train-lstm"})],
)
def test_the_recipe_chooses_the_notebooks(
    recipe, names, project, tmp_path, offline, small_classifiers
):
    backbone = tmp_path / "w.safetensors"
    weights = make_backbone(find_recipe("demo").classifier, load=False).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, backbone)
    before = torch.get_rng_state()
    built = tmp_path / "built"
    build_kernels("me", recipe=recipe, backbone=backbone, folder=built, project=project)
    assert {path.name for path in (built / "kernels").iterdir()} == names
    copied = built / "datasets" / "backbone" / "backbone.safetensors"
    assert copied.read_bytes() == backbone.read_bytes()
    assert torch.equal(torch.get_rng_state(), before)


def test_inputs_that_cannot_be_used_leave_the_earlier_build(
    project, tmp_path, offline, small_run, copied_run, small_classifiers
):
    built = tmp_path / "built"
    build_kernels("me", folder=built, project=project)
    before = _hash_tree(built)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x08")
    nothing = tmp_path / "nothing.safetensors"
    other = tmp_path / "other.safetensors"
    save_file({"conv1.weight": torch.zeros(3)}, other)
    for wrong, reason in (
        ({"backbone": broken}, "broken.safetensors: not a .safetensors file"),
        ({"backbone": nothing}, "nothing.safetensors: there is no such file; kit fetch resnext"),
        ({"backbone": nothing, "recipe": "modern"}, "no such file; kit fetch convnext_small"),
        ({"backbone": other}, r"other.safetensors: conv1.weight is \(3,\), not \(64, 3, 7, 7\)"),
        ({"recipe": "tonite"}, "there is no recipe 'tonite'; there are"),
        ({"runs": [tmp_path / "no"]}, "no: there is no run here"),
        ({"runs": [copied_run.path], "synthetic": True}, "is missing: the run"),
        ({"runs": [small_run.path]}, "was trained on synthetic heads, and its predictions of the"),
    ):
        with pytest.raises(KitError, match=reason):
            build_kernels("me", **wrong, folder=built, project=project)
        assert _hash_tree(built) == before
        assert {path.name for path in built.iterdir()} == {"datasets", "kernels"}


@pytest.mark.parametrize("place", ["datasets", "kernels"])
def test_a_stray_file_in_the_earlier_build_is_named_and_kept(place, project, tmp_path, offline):
    stray = tmp_path / "built" / place / "notes.txt"
    stray.parent.mkdir(parents=True)
    stray.write_text("mine")
    with pytest.raises(BuildError, match=r"notes\.txt is not of an earlier build: move it away"):
        build_kernels("me", folder=tmp_path / "built", project=project)
    assert stray.read_text() == "mine"


def test_building_writes_nothing_into_the_source_folder(project, tmp_path, offline):
    before = _hash_tree(project)
    build_kernels("reader", fold=2, folder=tmp_path / "built", project=project)
    assert _hash_tree(project) == before


def test_the_wheel_is_pure_and_complete(project, tmp_path, offline):
    # What an earlier build left would be taken along by setuptools.
    stale = project / "build" / "lib" / "kit" / "stale.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    build_wheels(project, tmp_path / "wheels")
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    assert wheel.name == f"kit-{kit.__version__}-py3-none-any.whl"
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("kit/")}
    packaged = {".py", ".html", ".css", ".js", ".typed"}
    assert names == {
        str(path.relative_to(ROOT))
        for path in (ROOT / "kit").rglob("*.*")
        if path.suffix in packaged
    }
    assert (tmp_path / "wheels" / REQUIREMENTS).read_text() == f"kit=={kit.__version__}\n"


def test_decoders_are_required_of_the_pythons_they_were_built_for(tmp_path, monkeypatch):
    asked = []

    def run_pip(*arguments):
        asked.append(arguments)
        destination = Path(arguments[arguments.index("--dest") + 1])
        (destination / "pylibjpeg_libjpeg-2.4.0-cp312-cp312-manylinux2014_x86_64.whl").touch()

    monkeypatch.setattr(notebooks, "_run_pip", run_pip)
    assert notebooks._download_decoders("3.12", tmp_path) == [
        'pylibjpeg_libjpeg==2.4.0; python_version == "3.12"'
    ]
    assert "--only-binary=:all:" in asked[0]
    assert "--python-version=3.12" in asked[0]


def test_decoders_that_cannot_be_downloaded_are_said_to_be_left_out(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(notebooks, "DECODERS", (str(tmp_path / "nothing-here.whl"),))
    assert notebooks._download_decoders("3.13", tmp_path) == []
    [said] = caplog.messages
    assert said.startswith("The decoders for Python 3.13 are left out: pip download failed (")
    assert "the competition's are not compressed." in said


@pytest.mark.parametrize("user", ["", "me/you", "{user}"])
def test_an_owner_that_is_no_user_name_is_refused(user, tmp_path):
    with pytest.raises(BuildError, match=r"set KAGGLE_USER .* to your Kaggle user name"):
        build_kernels(user, folder=tmp_path, project=ROOT)


def test_building_needs_the_projects_folder(tmp_path):
    with pytest.raises(BuildError, match="is not the project's folder: run this from there"):
        build_kernels("me", folder=tmp_path / "build", project=tmp_path)


def test_the_command_names_what_is_missing_and_fails(tmp_path):
    command = [sys.executable, "-m", "kit", "kernels", "--user", "me"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"kit: {tmp_path} is not the project's folder: run this from there\n"
