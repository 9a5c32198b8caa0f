"""The commands that talk to Kaggle: what they hand to `kit.kaggle`, without a connection."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from kit.cli.commands import main

SLUG = "rsna-intracranial-hemorrhage-detection"


@pytest.mark.parametrize(
    ("words", "target", "expected"),
    [
        (["download", "data"], "download.download_competition", [Path("data"), SLUG, []]),
        (
            ["download", "data", "--file", "a", "--file", "b", "--competition", "other"],
            "download.download_competition",
            [Path("data"), "other", ["a", "b"]],
        ),
        (["kernels"], "build.build_kernels", ["reader", None, 0, None, "tonight", False]),
        (
            ["kernels", "--user", "me", "--run", "a", "b", "--fold", "2", "--backbone", "w"],
            "build.build_kernels",
            ["me", [Path("a"), Path("b")], 2, Path("w"), "tonight", False],
        ),
        (
            ["kernels", "--recipe", "single", "--synthetic"],
            "build.build_kernels",
            ["reader", None, 0, None, "single", True],
        ),
        (["push-kernels", "predict", "--hours", "2"], "push.push", [["predict"], 2.0, False]),
        (["push-kernels", "--random-weights"], "push.push", [[], 13, True]),
        (["submissions"], "ledger.list_submissions", [SLUG]),
    ],
)
def test_flags_arrive_where_they_are_used(words, target, expected, monkeypatch):
    calls = []

    def record(*arguments, **options):
        calls.append([*arguments, *options.values()])
        return {}

    monkeypatch.setenv("KAGGLE_USER", "reader")
    monkeypatch.setattr(f"kit.kaggle.{target}", record)
    assert main([*words, "--quiet"]) == 0
    assert calls == [expected]


def test_a_submission_is_described_by_its_message_and_timed(monkeypatch, capsys):
    calls = []

    def record(csv, message, **options):
        calls.append((csv, message, options))
        return {"status": "COMPLETE"}

    monkeypatch.setattr("kit.kaggle.submit.submit", record)
    assert main(["submit", "s.csv", "--message", "try", "--timeout", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"status": "COMPLETE"}
    options = {"sample": None, "competition": SLUG, "timeout": 5.0, "dry_run": False}
    assert calls == [(Path("s.csv"), "try", options)]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("submit FILE=a.csv MESSAGE=m DRY=1", "submit a.csv --message m --dry-run"),
        (
            "submit FILE=a.csv MESSAGE=m SAMPLE=s.csv AGAIN=1",
            "submit a.csv --message m --sample s.csv --again",
        ),
        ("kernels RECIPE=single BACKBONE=w", "kernels --recipe single --backbone w"),
        ("kernels RUN=r SYNTHETIC=1", "kernels --run r --synthetic"),
        ("push-kernels", "push-kernels"),
        ("push-kernels RANDOM_WEIGHTS=1", "push-kernels --random-weights"),
    ],
)
def test_make_passes_its_variables_on(target, words):
    command = [
        "make",
        "-n",
        "--no-print-directory",
        "VENV=v",
        "-o",
        "v/.kit-installed",
        *target.split(),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    called = done.stdout.replace("\\\n", " ").splitlines()[-1]
    assert shlex.split(called) == ["v/bin/kit", *words.split()]


@pytest.mark.parametrize("flags", [[], ["--backbone", "w"], ["--run", "r"]])
def test_a_build_says_what_it_made_how_large_and_what_comes_next(flags, monkeypatch, capsys):
    built = {"build/kaggle/datasets/wheels": 2_345_678, "build/kaggle/kernels/tonight": 4_000}
    monkeypatch.setattr("kit.kaggle.build.build_kernels", lambda *_: built)
    assert main(["kernels", "--user", "me", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "      2.3 MB  build/kaggle/datasets/wheels",
        "      4.0 kB  build/kaggle/kernels/tonight",
    ]
    assert lines[-1] == "Next: make push-kernels KAGGLE_USER=me"
    assert ("No initial weights: kit fetch" in lines[2]) == (not flags)
