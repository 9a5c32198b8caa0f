"""A session of a Kaggle notebook on this machine: its mounts, and its notebook run for real."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import nbformat
from conftest import ROOT

from kit.kaggle.build import read_script, render_notebook

# Fields of the demo recipe with which a fold is trained in seconds.
CHANGES = {
    "folds": 2,
    "bag_lstm_epochs": 1,
    "classifier.epochs": 1,
    "lstm.epochs": 1,
    "lstm.hidden_size": 16,
}


@dataclass
class Session:
    """A notebook's session: `input` as Kaggle mounts it, `working` where it runs."""

    folder: Path
    layout: str

    @property
    def input(self) -> Path:
        return self.folder / "input"

    @property
    def working(self) -> Path:
        return self.folder / "working"

    def mount(self, kind: str, name: str, source: Path) -> Path:
        place = {
            "competitions": Path("competitions", name),
            "datasets": Path("datasets", "reader", name),
            "notebooks": Path("notebooks", "reader", name),
        }[kind]
        target = self.input / (place if self.layout == "new" else name)
        shutil.copytree(source, target)
        return target

    def run(self, interpreter: Path, name: str, parameters: dict | None = None, processes: int = 1):
        """Run the notebook `name`; (exit code, all that its cells printed)."""
        self.working.mkdir()
        (self.folder / "tmp").mkdir(exist_ok=True)
        text = read_script(ROOT / "kernels" / name)
        notebook = self.folder / f"{name}.ipynb"
        notebook.write_text(render_notebook(text, parameters), encoding="utf-8")
        mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        command = ["unshare", "--net", "--mount", "--map-root-user", "sh", "-c", mount]
        command += [self.input, interpreter, ROOT / "tests" / "run_notebook.py"]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "KIT_INPUT": str(self.input),
            "TMPDIR": str(self.folder.parent),
            "OMP_NUM_THREADS": "1",
            "KIT_PROCESSES": str(processes),
            "PYTHONDONTWRITEBYTECODE": "1",
            "JUPYTER_PLATFORM_DIRS": "1",
        }
        done = subprocess.run(
            [*map(str, command), str(notebook), str(notebook)],
            cwd=self.working,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, 1), done.stderr
        return done.returncode, _read_outputs(notebook)


def _read_outputs(path: Path) -> str:
    texts = []
    for cell in nbformat.read(path, 4).cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            texts += [output.get("text", ""), data.get("text/plain", "")]
            texts += ["image/png"] * ("image/png" in data) + output.get("traceback", [])
    return "\n".join(filter(None, texts))
