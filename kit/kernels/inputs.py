"""The inputs attached to a Kaggle notebook, in both mount layouts, and earlier runs among them.

Inputs are searched for at the fixed places of the new layout (`competitions/SLUG`,
`datasets/OWNER/SLUG`, …) and of the old, flat one (`SLUG`); the tree of an input is not walked.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from kit import KitError
from kit.competition import SLUG
from kit.recipes import Recipe
from kit.runs.directory import Run, read_recipe
from kit.runs.plan import settle_size

# The inputs of each kind, as patterns below its folder in the root.
_LAYOUT = {"datasets": "*/*", "notebooks": "*/*", "models": "*/*/*/*/*"}


class KernelError(KitError, RuntimeError):
    """The reason why a notebook stops, in one sentence; shown without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


def _find_root(root: Path | None = None) -> Path:
    """The folder in which inputs are mounted: `root`, or `KIT_INPUT`, or `/kaggle/input`."""
    return root or Path(os.environ.get("KIT_INPUT", "/kaggle/input"))


def list_inputs(root: Path | None = None) -> list[Path]:
    """The folders of the attached datasets, models' versions and notebooks' outputs."""
    root = _find_root(root)
    new = [path for kind, depth in _LAYOUT.items() for path in (root / kind).glob(depth)]
    old = [path for path in root.glob("*") if path.name not in (*_LAYOUT, "competitions", SLUG)]
    return sorted(path for path in new + old if path.is_dir())


def find_marked(marker: str, root: Path | None = None) -> list[Path]:
    """The attached inputs that hold the file `marker`."""
    return [folder for folder in list_inputs(root) if (folder / marker).is_file()]


def find_data(root: Path | None = None) -> Path:
    """The folder of the competition. Raises `KernelError` if it is not attached."""
    root = _find_root(root)
    for path in (root / "competitions" / SLUG, root / SLUG):
        if path.is_dir():
            return path
    raise KernelError(
        f"The competition's data are not attached: add the competition {SLUG} to the notebook's "
        f"inputs (looked for in {root} and {root}/competitions)."
    )


def link_input(target: Path, name: str) -> Path:
    """Link `target` to a path that is the same in every session, in both mount layouts.

    A run notes the path of its data, and must find them there again.
    """
    link = Path(tempfile.gettempdir()) / "kit-input" / name
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    return link


def restore_run(
    run: Run,
    recipe: Recipe,
    earlier: list[Path],
    leave: tuple[str, ...] = (),
    any_size: bool = False,
) -> None:
    """Copy earlier runs of `recipe` to `run`, in order, except for the paths that match `leave`.

    With `any_size` their images may have another size. Unlike the attached inputs, the copies are
    writable. Runs of another recipe are left where they are, and this is said.
    """
    for folder in earlier:
        if read_recipe(Run(folder)) == settle_size(Run(folder), recipe, any_size):
            print(f"Continuing from {folder}")
            copy_files(folder, run.path, leave)
        else:
            print(f"{folder} was trained with other settings: this run does not continue from it.")


def copy_files(source: Path, target: Path, leave: tuple[str, ...] = ()) -> None:
    """Copy a folder's files, without their modes, except for the paths that match `leave`."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if any(path.match(pattern) for pattern in leave):
            continue
        if path.is_dir():
            copy_files(path, target / path.name, leave)
        else:
            shutil.copyfile(path, target / path.name)
