"""The Kaggle notebooks and the datasets they need, built into a folder ready to be pushed.

FOLDER/datasets/{wheels,weights,backbone}/   each with its dataset-metadata.json
FOLDER/kernels/{tonight,train-classifier,train-lstm,predict}/   notebook and kernel-metadata.json
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
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

import kit
from kit import KitError
from kit.files import write_json
from kit.models.backbones import find_backbone
from kit.progress import log
from kit.recipes import find_recipe
from kit.runs.directory import ALL_DATA
from kit.training.config import ClassifierConfig

BUILD = Path("build/kaggle")
NOTEBOOKS = ("tonight", "train-classifier", "train-lstm", "predict")
REQUIREMENTS = "kit-requirements.txt"  # the file by which the notebooks find the wheels
BACKBONE = "backbone.safetensors"  # the file by which notebooks that train find initial weights
DECODERS = ("pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg")
PYTHONS = ("3.12", "3.13")  # of Kaggle's images
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_INSTALL = "# %% install.py\n"  # where each notebook has the cell of kernels/install.py
# The earliest time that a zip can record: a rebuilt wheel has the same bytes.
_EPOCH = "315532800"


class BuildError(KitError, RuntimeError):
    """What is missing for the build, in one sentence."""


def build_kernels(
    user: str,
    runs: list[Path] | None = None,
    fold: int = 0,
    backbone: Path | None = None,
    recipe: str = "tonight",
    synthetic: bool = False,
    folder: Path = BUILD,
    project: Path = Path(),
) -> dict[str, int]:
    """Build wheels, notebooks and, where given, the weights of `runs` and the `backbone`.

    With `runs`, the notebook that predicts by them; else those that train `recipe` (a single
    `fold` of it, or its model on all data, but for `tonight`). `user` owns everything on Kaggle.
    Returns what was built, with its bytes. An earlier build is replaced in the end. Raises
    `BuildError` for inputs that cannot be used, among them runs on synthetic data unless
    `synthetic`.
    """
    _check_places(user, folder, project)
    part = _choose_fold(recipe, fold)
    if backbone:
        _check_backbone(backbone, find_recipe(recipe).classifier, find_backbone(recipe) or "NAME")
    _check_runs(runs or [], synthetic)
    names = ["predict"] if runs else ["train-classifier", "train-lstm"]
    names = ["tonight"] if not runs and recipe == "tonight" else names
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as scratch:
        datasets, kernels = Path(scratch) / "datasets", Path(scratch) / "kernels"
        _fill_datasets(datasets, user, runs or [], backbone, project)
        for name in names:
            build_kernel(project / "kernels" / name, kernels / name, user, part, recipe)
        for built in (datasets, kernels):  # the fetched output beside them stays
            shutil.rmtree(folder / built.name, ignore_errors=True)
            built.rename(folder / built.name)
    places = sorted([*folder.glob("datasets/*"), *folder.glob("kernels/*")])
    return {
        str(place): sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        for place in places
    }


def _choose_fold(recipe: str, fold: int) -> int | str:
    """The fold that the notebooks train; all data where the recipe holds nothing out."""
    if find_recipe(recipe).train_folds:
        return fold
    if fold:
        raise BuildError(f"the recipe {recipe} trains one model on all data: it has no fold {fold}")
    return ALL_DATA


def _check_places(user: str, folder: Path, project: Path) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", user):
        raise BuildError(
            f"set KAGGLE_USER (or --user) to your Kaggle user name; it is {user or 'not set'}"
        )
    if not (project / "kernels").is_dir() or not (project / "setup.py").is_file():
        raise BuildError(f"{project.absolute()} is not the project's folder: run this from there")
    for stray in [*folder.glob("datasets/*"), *folder.glob("kernels/*")]:
        if not stray.is_dir():
            raise BuildError(f"{stray} is not of an earlier build: move it away")


def _fill_datasets(
    datasets: Path, user: str, runs: list[Path], backbone: Path | None, project: Path
) -> None:
    """Write the datasets: what may be wrong with the inputs comes first."""
    from kit.runs.directory import Run
    from kit.runs.export import export_runs

    if backbone:
        (datasets / "backbone").mkdir(parents=True)
        shutil.copyfile(backbone, datasets / "backbone" / BACKBONE)
    if runs:
        export_runs([Run(run) for run in runs], datasets / "weights")
    build_wheels(project, datasets / "wheels")
    for dataset in datasets.iterdir():
        name = name_dataset(dataset.name)
        metadata = {"id": f"{user}/{name}", "title": name, "licenses": [{"name": "other"}]}
        write_json(dataset / "dataset-metadata.json", metadata)


def _check_runs(runs: list[Path], synthetic: bool) -> None:
    from kit.runs.directory import Run
    from kit.runs.provenance import read_provenance

    for path in runs:
        if read_provenance(Run(path))["synthetic"] and not synthetic:
            raise BuildError(
                f"{path} was trained on synthetic heads, and its predictions of the real ones mean "
                "nothing; --synthetic (SYNTHETIC=1 for make) builds it all the same"
            )


def _check_backbone(path: Path, config: ClassifierConfig, name: str) -> None:
    """Refuse what the notebook would refuse as well, but hours of upload and waiting later."""
    if not path.is_file():
        raise BuildError(f"{path}: there is no such file; kit fetch {name} writes one")
    try:
        with safe_open(path, "pt") as weights:
            weights.keys()
    except (SafetensorError, OSError) as error:
        raise BuildError(f"{path}: not a .safetensors file of weights ({error})") from error

    import torch

    from kit.classifier import make_backbone

    with torch.random.fork_rng(devices=[]):
        make_backbone(replace(config, weights=str(path)), load=True)


def build_kernel(
    source: Path, folder: Path, user: str, fold: int | str = 0, recipe: str = "blog"
) -> None:
    """Write a notebook and its metadata, with user, fold and recipe filled in, to `folder`."""
    folder.mkdir(parents=True)
    text = (source / "kernel-metadata.json").read_text(encoding="utf-8")
    metadata = json.loads(text.replace("{user}", user).replace("{fold}", str(fold)))
    write_json(folder / "kernel-metadata.json", metadata)
    script = read_script(source)
    values = {"FOLD": fold, "RECIPE": recipe, "KIT": kit.__version__}
    parameters = {name: values[name] for name in values if f"\n{name} = " in script}
    notebook = render_notebook(script, parameters)
    (folder / metadata["code_file"]).write_text(notebook, encoding="utf-8")


def read_script(source: Path) -> str:
    """The script of the notebook in the folder `source`, with the cell that installs kit."""
    script = (source / f"{source.name}.py").read_text(encoding="utf-8")
    install = (source.parent / "install.py").read_text(encoding="utf-8")
    return script.replace(_INSTALL, install)


def render_notebook(script: str, parameters: dict | None = None) -> str:
    """A percent-format script as a notebook's JSON; the same script gives the same bytes.

    `parameters` replace the right sides of assignments in cells that begin with
    `# %% tags=["parameters"]`. Raises `BuildError` where there is no such assignment.
    """
    import jupytext

    notebook = jupytext.reads(script, fmt="py:percent")
    left = dict(parameters or {})
    for number, cell in enumerate(notebook.cells):
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source = _set_parameters(cell.source, left)
        # jupytext gives a cell another id each time.
        cell.id = hashlib.sha256(f"{number}\n{cell.source}".encode()).hexdigest()[:12]
    if left:
        raise BuildError(f"the notebook has no parameter {min(left)}")
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


def _render_all(folder: Path) -> None:
    """Render the notebooks of `kernels/` from the scripts beside them."""
    for name in NOTEBOOKS:
        notebook = render_notebook(read_script(folder / name))
        (folder / name / f"{name}.ipynb").write_text(notebook, encoding="utf-8")


def _set_parameters(source: str, left: dict) -> str:
    """Set those of the parameters `left` that the cell assigns, and take them out."""
    for name in list(left):
        found = re.search(rf"^{name} = .*?(?=  #|$)", source, re.MULTILINE)
        if found:
            value = f"{name} = {left.pop(name)!r}"
            source = source[: found.start()] + value + source[found.end() :]
    return source


if __name__ == "__main__":
    _render_all(Path("kernels"))
