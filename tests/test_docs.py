"""Every command in the documentation's `console` blocks runs, in reading order, on a phantom.

The commands run as they are written, in one folder, `make` by the project's Makefile and Kaggle on
127.0.0.1; to what would take days on the real data, words are added that make the models small.
"""

import io
import json
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hugging_face_server import serve_repository
from kaggle_kernels_server import KernelsServer
from nbclient import NotebookClient
from safetensors.torch import save_file
from submission_desk import write_submission

from kit.competition import SLUG
from kit.recipes import SMALL_RESNEXT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# The page's name: how many commands it has at least.
READING_ORDER = {
    "README.md": 6,
    "docs/real-data.md": 14,
    "docs/own-scans.md": 8,
    "docs/evaluate.md": 9,
    "docs/tonight.md": 5,
}

SMALL = {
    "classifier-architecture": "resnext50_32x4d",
    "classifier-architecture-options": json.dumps(SMALL_RESNEXT),
    "classifier-image-size": "64",
    "lstm-hidden-size": "16",
}
ADDED = {
    "kit run data": [word for name in SMALL for word in (f"--{name}", SMALL[name])],
    "kit index data": ["--lstm-hidden-size", "16"],
    "make submit FILE=runs/single": ["SAMPLE=demo/data/stage_2_sample_submission.csv"],
}


def read_blocks(page: Path, language: str = "console") -> list[str]:
    pattern = rf"^```{language}\n(.*?)^```"
    return re.findall(pattern, page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def desk(small_data, tmp_path_factory):
    """A folder with all that the pages take for granted, and the environment to work in it."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "demo").mkdir()
    (folder / "demo" / "data").symlink_to(small_data)
    (folder / "SCANS").symlink_to(small_data / "stage_2_test")
    write_weights(folder / "resnext101_wsl.safetensors")
    write_release(folder / "fold0_ep3.pt")
    write_embeddings(folder, small_data)
    for name in ("kernels", "kit", "setup.py", "pyproject.toml", "README.md"):
        (folder / name).symlink_to(ROOT / name)  # the notebooks are built from them
    write_submission(folder / "sent.csv", 0.25, images=121_232)
    (folder / "hub").mkdir()
    write_published(folder / "hub" / "model.safetensors")
    with KernelsServer() as server, serve_repository(folder / "hub") as hub:
        server.files[f"{SLUG}.zip"] = zip_folder(small_data)
        server.output = {
            "outcome.json": b'{"left": "predictions", "reason": ""}',
            "submission.csv": (folder / "sent.csv").read_bytes(),
        }
        # Without an index pip leaves the decoders out.
        elsewhere = {"PIP_NO_INDEX": "1", "HF_ENDPOINT": hub.address, "no_proxy": "127.0.0.1"}
        yield folder, server.environment(folder, **elsewhere)


def write_weights(path: Path) -> None:
    import timm

    model = timm.create_model("resnext50_32x4d", **SMALL_RESNEXT)
    save_file(model.state_dict(), path)


def write_published(path: Path) -> None:
    """Initial weights of the published architecture, which the notebooks' build checks: zeros."""
    import timm
    import torch

    with torch.device("meta"):
        named = timm.create_model("resnext101_32x8d").state_dict()
    save_file({name: torch.zeros(one.shape).half() for name, one in named.items()}, path)


def write_release(path: Path) -> None:
    """A classifier as the 11th place released it, with random weights."""
    import timm
    import torch

    model = timm.create_model("legacy_seresnext50_32x4d", num_classes=6)
    torch.save({"model": model.state_dict(), "optim": {}, "detail": {}}, path)


def write_embeddings(folder: Path, data: Path) -> None:
    """Embeddings of every slice in the form and the three files that the authors published."""
    images = [path.stem for part in ("train", "test") for path in data.glob(f"stage_2_{part}/*")]
    values = np.random.default_rng(0).normal(size=(len(images), 32)).astype(np.float32)
    for name, rows in zip(
        ("trn", "val", "tst"), np.array_split(np.arange(len(images)), 3), strict=True
    ):
        np.savez(folder / f"emb_{name}.npz", values[rows])
        pd.Series(images, name="Image").iloc[rows].to_csv(folder / f"ids_{name}.csv")


def zip_folder(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, f"{SLUG}/{path.relative_to(folder)}")
    return buffer.getvalue()


def complete(command: str) -> list[str]:
    """The command's words, with the programs of this environment and the words to be added."""
    program, *words = shlex.split(command, comments=True)
    added = next((ADDED[start] for start in ADDED if command.startswith(start)), [])
    if program == "make":
        installed = Path(sys.prefix) / ".kit-installed"
        ours = ["-f", str(ROOT / "Makefile"), "-o", str(installed), f"VENV={sys.prefix}"]
        return ["make", *ours, *words, *added]
    assert program == "kit"
    return [sys.executable, "-m", "kit", *words, *added]


@pytest.mark.parametrize("name", READING_ORDER)
def test_every_command_of_a_page_runs(name, desk):
    folder, environment = desk
    commands = [line for block in read_blocks(ROOT / name) for line in block.splitlines()]
    assert len(commands) >= READING_ORDER[name]
    for command in commands:
        if command.startswith("make test "):  # what runs this
            assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
            continue
        words = complete(command)
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    for code in read_blocks(ROOT / name, "python"):
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def test_the_notebook_on_scans_runs(small_data, small_run, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "data").symlink_to(small_data)
    (tmp_path / "demo" / "run").symlink_to(small_run.path)
    notebook = nbformat.read(ROOT / "docs" / "scans.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [output.data["text/plain"] for output in shown if "data" in output]
    assert "<TrainedModel" in texts[0]
    assert float(texts[-1]) < 1e-5
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_stand_in_blocks_that_are_run(page):
    text = page.read_text(encoding="utf-8")
    name = str(page.relative_to(ROOT))
    rest = re.sub(r"^```console\n.*?^```", "", text, flags=re.M | re.S)
    assert not re.findall(r"^(?:    |\t|\$ )(?:kit|make|pip|python3?) .*", rest, re.MULTILINE)
    assert name in READING_ORDER or not read_blocks(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_mentioned_exists(page):
    from kit.cli.commands import COMMANDS

    text = page.read_text(encoding="utf-8")
    mentioned = set(re.findall(r"(?:^|`|\s{4})kit ([a-z][a-z-]+)", text, re.MULTILINE))
    assert mentioned <= set(COMMANDS)
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`|\s{4})make ([a-z][a-z-]+)", text, re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_linked_exists(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_the_reference_begins_with_what_most_people_want_and_links_the_rest(tmp_path):
    pytest.importorskip("pdoc", reason="pdoc is not installed")
    command = [sys.executable, str(ROOT / "docs" / "reference.py"), str(tmp_path / "api")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'api' / 'index.html'}\n"
    assert "Warn" not in done.stderr
    front = (tmp_path / "api" / "kit.html").read_text()
    for name in ("load_model", "predict", "read_hounsfield", "index_slices"):
        assert f'<section id="{name}">' in front
    linked = set(re.findall(r'href="(kit/[a-z/_]+\.html)', front))
    assert {"kit/pipeline.html", "kit/lstm.html", "kit/runs/prediction.html"} <= linked
    for page in linked:
        assert (tmp_path / "api" / page).exists()
