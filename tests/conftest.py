"""Where test inputs lie: golden values in the repository, real DICOM beside it, a phantom made."""

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

import failure_tries
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


def pytest_configure():
    """One thread, as `make test` has it: with more, sums differ in their last bits.

    Ctrl-C works in what the tests start, too: a shell in the background has it ignored.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item):
    """Skip tests marked `gpu` on a machine without one."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no GPU is available")


# Of `tiny`: how it is trained, and what indexing notes of it.
TINY_FLAGS = ["--recipe", "demo", "--folds", "2", "--train-folds", "0", "--workers", "1", "--quiet"]
TINY_FLAGS += ["--classifier-epochs", "1", "--classifier-image-size", "32", "--lstm-epochs", "2"]
TINY_FLAGS += ["--bag-lstm-epochs", "2", "--lstm-hidden-size", "16"]
TINY_NOTE = r"\A46 slices: another slice of its series is at the same place\n"


@pytest.fixture(autouse=True)
def loud(monkeypatch):
    """Show bars and messages, whatever `--quiet` an earlier test gave in this process."""
    if "kit.progress" in sys.modules:
        monkeypatch.setattr(sys.modules["kit.progress"], "quiet", False)


def pytest_terminal_summary(terminalreporter):
    for line in failure_tries.format_table():
        terminalreporter.write_line(line)


def golden(name: str):
    """Golden values: what the published code computes."""
    return np.load(ROOT / "tests" / "golden" / f"{name}.npz")


def shared(path: str) -> Path:
    """A file of the test data beside the checkout; skips where it is absent."""
    found = ROOT.parent / "shared" / path
    if not found.exists():
        pytest.skip(f"the test data {path} is not beside this checkout")
    return found


# Fields of the demo recipe that make a complete run in seconds.
SMALL = {
    "folds": 2,
    "train_folds": (0, 1),
    "bag_lstm_epochs": 2,
    "classifier.epochs": 1,
    "lstm.epochs": 2,
    "lstm.hidden_size": 16,
}


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> Path:
    """A synthetic competition of 24 patients at 64 pixels; not to be written to."""
    from kit.phantom.write import write_phantom

    directory = tmp_path_factory.mktemp("phantom") / "data"
    write_phantom(directory, patients=24, size=64, seed=1)
    return directory


@pytest.fixture(scope="session")
def small_run(small_data, tmp_path_factory):
    """A finished run of the shortened demo recipe on `small_data`; not to be written to."""
    from kit.pipeline import run_recipe
    from kit.recipes import find_recipe
    from kit.runs.directory import Run

    run = Run(tmp_path_factory.mktemp("run") / "run")
    run_recipe(small_data, find_recipe("demo", SMALL), run, workers=1)
    return run


@pytest.fixture(scope="session")
def weights(small_run, tmp_path_factory) -> Path:
    """The exported weights of `small_run`; not to be written to."""
    from kit.runs.export import export_runs

    folder = tmp_path_factory.mktemp("weights") / "weights"
    export_runs([small_run], folder)
    return folder


@pytest.fixture(scope="session")
def predicted(small_data, weights, tmp_path_factory):
    """What the exported weights predict, by one process of the test's own."""
    from kit.competition import read_submission
    from kit.runs.competition import predict_competition
    from kit.runs.directory import Run

    out = tmp_path_factory.mktemp("predicted") / "submission.csv"
    predict_competition(small_data, Run(weights), out, np.full(6, 0.1), workers=1)
    return read_submission(out)


@pytest.fixture
def copied_run(small_run, tmp_path):
    """The small run's tables in a directory of their own."""
    from kit.runs.directory import Run

    for name in ("config", "timings", "slices", "oof", "test", "metrics", "skipped"):
        source = getattr(small_run, name)
        shutil.copy(source, tmp_path / source.name)
    return Run(tmp_path)


def copy_run(run, directory):
    """The run in a directory of its own, which may be written to."""
    from kit.runs.directory import Run

    shutil.copytree(run.path, directory)
    return Run(directory)


def predict_folder(folder, run, out, **options):
    """Predict and write as `kit predict` does; the table and the skipped files."""
    from kit.runs.gathering import gather_files
    from kit.runs.prediction import load_model, predict_gathered, write_predictions

    gathering = {name: options.pop(name) for name in ("pseudonymize",) if name in options}
    gathered = gather_files(folder, out, **gathering, workers=options.get("workers"))
    with predict_gathered(gathered, load_model(run.path), out, **options) as found:
        write_predictions(found, out)
    return found.table, found.skipped


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A synthetic competition of 12 patients at 32 pixels, and a run of one fold on it."""
    from kit.cli.commands import main

    home = tmp_path_factory.mktemp("tiny")
    assert main(["phantom", str(home / "data"), "--patients", "12", "--size", "32", "--quiet"]) == 0
    assert main(["run", str(home / "data"), "--run", str(home / "run"), *TINY_FLAGS]) == 0
    return home


@contextlib.contextmanager
def limit_files(size: int):
    """No file may grow beyond `size` bytes, as under a quota."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium; skips, saying so, where it or selenium is missing."""
    from browser_pages import FLAGS

    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.chrome.service.Service(driver)
    with webdriver.Chrome(options=options, service=service) as opened:
        yield opened
