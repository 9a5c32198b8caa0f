"""A folder with a submission, and `kit.kaggle.submit` in a process of its own."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT
from kaggle_server import BASIC, KEY, KaggleServer

from kit.competition import LABELS

SLUG = "rsna-intracranial-hemorrhage-detection"

# Waits are noted instead of spent, so that a wait of minutes is tested in no time.
DRIVER = """
import json, sys
from pathlib import Path
from kit import KitError
from kit.kaggle import connection
from kit.kaggle.submit import reopen, submit
from kit.progress import show_messages
show_messages()
options = json.loads(sys.argv[1])
connection.TIMEOUT = tuple(options.pop("patience", (10, 60)))
connection._MOST_PAGES = options.pop("most_pages", 1000)
waits = []
if not options.pop("real_waits", False):
    options["sleep"] = waits.append
try:
    if options.pop("again", False):
        reopen(Path(options["csv"]), ledger=Path(options["ledger"]))
    entry = submit(**options)
except (KitError, OSError) as error:
    if options.get("message") == "uncaught":
        raise
    print(error, file=sys.stderr)
    entry = None
assert "kaggle" not in sys.modules or not options.get("dry_run"), "a dry run imported kaggle"
print("RESULT " + json.dumps({"entry": entry, "waits": waits}))
sys.exit(entry is None)
"""


@dataclass
class Outcome:
    """How one `submit` in a process of its own ended."""

    code: int
    entry: dict | None
    waits: list[float]
    stdout: str
    stderr: str

    @property
    def sentence(self) -> str:
        return self.stderr.strip().splitlines()[-1]


class Desk:
    """A folder with a submission in it, and `submit` in a process of its own."""

    def __init__(self, folder: Path, server: KaggleServer):
        self.folder, self.server = folder, server
        self.csv = folder / "run7" / "submission.csv"
        self.ledger = folder / "submissions" / "ledger.jsonl"
        self.home = folder / "home"
        self.home.mkdir()
        self.csv.parent.mkdir()
        write_submission(self.csv, 0.25)
        self.sample = folder / "sample.csv"
        write_submission(self.sample, 0.5)

    @property
    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.ledger.read_text().splitlines()]

    @property
    def token(self) -> str:
        return hashlib.sha256(self.csv.read_bytes()).hexdigest()[:12]

    def start(self, environment: dict | None = None, **options) -> subprocess.Popen:
        options = {
            "csv": str(self.csv),
            "message": "first try",
            "sample": str(self.sample),
            "timeout": 0.3,
            "ledger": str(self.ledger),
        } | options
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, json.dumps(options)],
            cwd=ROOT,
            env=self.server.environment(self.home, **(environment or {})),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def submit(self, environment: dict | None = None, **options) -> Outcome:
        return self.finish(self.start(environment, **options))

    def finish(self, process: subprocess.Popen) -> Outcome:
        stdout, stderr = process.communicate(timeout=60)
        said = stdout + stderr + (self.ledger.read_text() if self.ledger.exists() else "")
        for secret in (KEY, BASIC, "SIGNED"):
            assert secret not in said, "a credential was shown"
        result = [line for line in stdout.splitlines() if line.startswith("RESULT ")]
        found = json.loads(result[-1].removeprefix("RESULT ")) if result else {}
        return Outcome(process.returncode, found.get("entry"), found.get("waits"), stdout, stderr)


def write_submission(csv: Path, probability: float, images: int = 3) -> None:
    rows = [f"ID_{image:09x}_{label},{probability}" for image in range(images) for label in LABELS]
    csv.write_text("\n".join(["ID,Label", *rows]) + "\n")
