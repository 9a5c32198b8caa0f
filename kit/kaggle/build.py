"""The Kaggle notebooks and the datasets they need, built into a folder ready to be pushed.

FOLDER/datasets/{wheels,weights,backbone}/   each with its dataset-metadata.json
FOLDER/kernels/{predict,train-classifier,train-lstm}/   notebook and kernel-metadata.json
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from kit import KitError
from kit.files import write_json
from kit.progress import log

BUILD = Path("build/kaggle")
NOTEBOOKS = ("train-classifier", "train-lstm", "predict")
REQUIREMENTS = "kit-requirements.txt"  # the file by which the notebooks find the wheels
BACKBONE = "backbone.safetensors"  # the file by which train-classifier finds initial weights
DECODERS = ("pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg")
PYTHONS = ("3.12", "3.13")  # of Kaggle's images
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# The earliest time that a zip can record: a rebuilt wheel has the same bytes.
_EPOCH = "315532800"


class BuildError(KitError, RuntimeError):
    """What is missing for the build, in one sentence."""


def build_kernels(
    user: str,
    runs: list[Path] | None = None,
    fold: int = 0,
    backbone: Path | None = None,
    folder: Path = BUILD,
    project: Path = Path(),
) -> None:
    """Build wheels, notebooks and, where given, the weights of `runs` and the `backbone`.

    `user` owns everything on Kaggle; the training notebooks train `fold`. Raises `BuildError`
    where `project` is not the project's folder or `user` is no Kaggle user name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", user):
        raise BuildError(f"KAGGLE_USER is {user!r}: set it to your Kaggle user name")
    if not (project / "kernels").is_dir() or not (project / "setup.py").is_file():
        raise BuildError(f"{project.absolute()} is not the project's folder: run this from there")
    for name in ("datasets", "kernels"):  # the fetched output beside them stays
        shutil.rmtree(folder / name, ignore_errors=True)
    datasets = folder / "datasets"
    build_wheels(project, datasets / "wheels")
    if runs:
        from kit.runs.directory import Run
        from kit.runs.export import export_runs

        export_runs([Run(run) for run in runs], datasets / "weights")
    if backbone:
        (datasets / "backbone").mkdir()
        shutil.copyfile(backbone, datasets / "backbone" / BACKBONE)
    for dataset in datasets.iterdir():
        name = name_dataset(dataset.name)
        metadata = {"id": f"{user}/{name}", "title": name, "licenses": [{"name": "other"}]}
        write_json(dataset / "dataset-metadata.json", metadata)
    for name in NOTEBOOKS:
        build_kernel(project / "kernels" / name, folder / "kernels" / name, user, fold)


def build_kernel(source: Path, folder: Path, user: str, fold: int = 0) -> None:
    """Write a notebook and its metadata, with user and fold filled in, to `folder`."""
    folder.mkdir(parents=True)
    text = (source / "kernel-metadata.json").read_text(encoding="utf-8")
    metadata = json.loads(text.replace("{user}", user).replace("{fold}", str(fold)))
    write_json(folder / "kernel-metadata.json", metadata)
    script = (source / f"{source.name}.py").read_text(encoding="utf-8")
    parameters = {"FOLD": fold} if "\nFOLD = " in script else {}
    notebook = render_notebook(script, parameters)
    (folder / metadata["code_file"]).write_text(notebook, encoding="utf-8")


def render_notebook(script: str, parameters: dict | None = None) -> str:
    """A percent-format script as a notebook's JSON; the same script gives the same bytes.

    `parameters` replace the right sides of assignments in the cell that begins with
    `# %% tags=["parameters"]`. Raises `BuildError` where there is no such assignment.
    """
    import jupytext

    notebook = jupytext.reads(script, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source = _set_parameters(cell.source, parameters or {})
        # jupytext gives a cell another id each time.
        cell.id = hashlib.sha256(f"{number}\n{cell.source}".encode()).hexdigest()[:12]
    kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernelspec, "language_info": {"name": "python"}}
    return jupytext.writes(notebook, fmt="ipynb") + "\n"


def name_dataset(content: str) -> str:
    """The slug, and the title, of the dataset of `wheels`, `weights` or the `backbone`."""
    return f"hemorrhage-{content}"


def build_wheels(project: Path, directory: Path) -> None:
    """Build the wheel of kit, download the decoders' wheels, and list what is to be installed.

    Where decoders cannot be downloaded it logs so and continues: the competition's files are not
    compressed.
    """
    directory.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        # A copy, since setuptools would take removed modules from an old build folder.
        for name in ("setup.py", "pyproject.toml", "README.md"):
            shutil.copyfile(project / name, Path(scratch) / name)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(project / "kit", Path(scratch) / "kit", ignore=ignore)
        # With setuptools installed nothing is downloaded.
        local = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
        _run_pip("wheel", "--no-deps", *local, "--wheel-dir", str(directory), scratch)
    lines = [f"kit=={_read_version(next(directory.glob('kit-*.whl')))}"]
    for python in PYTHONS:
        lines += _download_decoders(python, directory)
    (directory / REQUIREMENTS).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _download_decoders(python: str, directory: Path) -> list[str]:
    """Download the decoders for one Python; return their requirements, none where that fails."""
    platforms = [f"--platform={platform}" for platform in _PLATFORMS]
    with tempfile.TemporaryDirectory() as scratch:
        options = ["--no-deps", "--only-binary=:all:", f"--python-version={python}", *platforms]
        try:
            _run_pip("download", *options, "--dest", scratch, *DECODERS)
        except BuildError as error:
            log.warning(
                f"The decoders for Python {python} are left out: {error}. On Kaggle compressed "
                "DICOM files will be skipped; the competition's are not compressed."
            )
            return []
        wheels = sorted(Path(scratch).glob("*.whl"))
        for wheel in wheels:
            shutil.copyfile(wheel, directory / wheel.name)
        return [
            f'{wheel.name.split("-")[0]}=={_read_version(wheel)}; python_version == "{python}"'
            for wheel in wheels
        ]


def _run_pip(*arguments: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": _EPOCH},
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no reason given"]
        raise BuildError(f"pip {arguments[0]} failed ({lines[-1].strip()})")


def _read_version(wheel: Path) -> str:
    return wheel.name.split("-")[1]


def _set_parameters(source: str, parameters: dict) -> str:
    for name, value in parameters.items():
        assignment = f"{name} = {value!r}".replace("\\", r"\\")
        source, count = re.subn(rf"^{name} = .*$", assignment, source, flags=re.MULTILINE)
        if count != 1:
            raise BuildError(f"the notebook has no parameter {name}")
    return source
