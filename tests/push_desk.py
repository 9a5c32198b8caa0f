"""A build folder with small datasets, and `kit.kaggle.push` in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT
from kaggle_kernels_server import KernelsServer
from kaggle_server import KEY

from kit.kaggle.build import NOTEBOOKS, build_kernel

# Waits are noted instead of spent.
DRIVER = """
import json, os, sys, time
from pathlib import Path
from kit.kaggle import push
from kit.kaggle.connection import KaggleError
from kit.progress import show_messages
show_messages()
options = json.loads(sys.argv[1])
waits = []
sleep = waits.append if "REAL_WAITS" not in os.environ else time.sleep
try:
    push.push(**options | {"folder": Path(options["folder"])}, sleep=sleep)
    code = 0
except KaggleError as error:
    print(error, file=sys.stderr)
    code = 1
print("WAITS " + json.dumps(waits))
sys.exit(code)
"""


LEFT = {"left": "predictions", "reason": ""}


@dataclass
class Outcome:
    """How one `push` in a process of its own ended."""

    code: int
    stdout: str
    stderr: str
    waits: list[float]

    @property
    def sentence(self) -> str:
        return self.stderr.strip().splitlines()[-1]


class Desk:
    """A build folder with small datasets, and `push` in a process of its own."""

    def __init__(self, folder: Path, server: KernelsServer):
        self.folder, self.server = folder, server
        self.home = folder / "home"
        self.home.mkdir()
        self.write("wheels", {"kit-requirements.txt": b"kit==0.1.0\n"})
        self.write("weights", {"kit-run.json": b"{}", "fold0/lstm/epoch1/a.safetensors": b"w" * 99})
        for name in NOTEBOOKS:
            build_kernel(ROOT / "kernels" / name, folder / "kernels" / name, "reader")
        server.output = {
            "outcome.json": json.dumps(LEFT).encode(),
            "submission.csv": b"ID,Label\n",
            "run/fold0/checkpoint.safetensors": b"large",
        }

    def write(self, name: str, files: dict[str, bytes]) -> None:
        directory = self.folder / "datasets" / name
        for path, content in files.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(content)
        slug = f"hemorrhage-{name}"
        metadata = {"id": f"reader/{slug}", "title": slug, "licenses": [{"name": "other"}]}
        (directory / "dataset-metadata.json").write_text(json.dumps(metadata))

    def start(self, *names: str, hours: float = 13, random_weights: bool = True, **environment):
        options = {"names": list(names), "folder": str(self.folder), "hours": hours}
        options["random_weights"] = random_weights
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, json.dumps(options)],
            cwd=ROOT,
            env=self.server.environment(self.home, **environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def push(self, *names: str, **options) -> Outcome:
        return self.finish(self.start(*names, **options))

    def finish(self, process: subprocess.Popen) -> Outcome:
        stdout, stderr = process.communicate(timeout=60)
        assert "Traceback" not in stderr, stderr
        for stream in (stdout, stderr):
            assert KEY not in stream
            assert "SIGNED" not in stream
        said, _, waits = stdout.rpartition("WAITS ")
        return Outcome(process.returncode, said or stdout, stderr, json.loads(waits or "[]"))
