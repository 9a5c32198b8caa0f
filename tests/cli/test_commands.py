import json
import subprocess
import sys

import pytest
from command_line import check_told_at_once, kit
from conftest import ROOT

from kit import InputError, __version__
from kit.cli.commands import COMMANDS, main, make_parser
from kit.training.loop import OutOfTime


def test_help_teaches_and_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n    {name}" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "Not a medical device" in text


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: kit " + command in text
    assert max(map(len, text.splitlines())) <= 80
    assert "(default: None)" not in text
    assert "(default: False)" not in text


def test_help_imports_nothing_heavy():
    code = "import sys; from kit.cli.commands import main\n"
    code += "try: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'pandas', 'timm', 'kaggle', 'numpy'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_a_plain_error_is_one_sentence_and_exit_1(tmp_path):
    command = ["run", tmp_path / "nowhere", "--recipe", "demo", "--run", tmp_path / "run"]
    run = kit(*command, "--quiet")
    assert run.returncode == 1
    assert run.stderr.strip() == f"kit: {tmp_path}/nowhere: there is no such folder or zip archive"
    assert "Traceback" not in run.stderr


def test_a_wrong_call_is_exit_2(tmp_path):
    assert kit("run", tmp_path, "--recipe", "magic", "--run", tmp_path).returncode == 2
    assert kit().returncode == 2


def test_json_is_one_document_whatever_is_said_on_the_way(small_data, small_run, tmp_path):
    sample = ["--sample", small_data / "stage_2_sample_submission.csv"]
    dry = kit("submit", small_run.submission, "--message", "try", *sample, "--dry-run", "--json")
    assert json.loads(dry.stdout)["status"] == "DRY RUN"
    assert dry.stderr.startswith("Dry run: ")
    blend = kit("ensemble", small_run, small_run, "--out", tmp_path / "blend.csv", "--json")
    said, metrics = json.loads(blend.stdout), json.loads(small_run.metrics.read_text())
    assert said["runs"][str(small_run)] == metrics
    # A run averaged with itself is itself.
    found, expected = said["blend"]["scores"]["bag"]["all"], metrics["scores"]["bag"]["all"]
    assert found == pytest.approx(expected, abs=1e-9)
    assert (tmp_path / "blend.csv").exists()


# What each command with `--out` is called with, beside that.
WRITERS = {
    "fetch": "ianpan",
    "import-model": "DATA",
    "ensemble": "RUN RUN",
    "predict": "DATA --run RUN",
    "predict-test": "DATA --run RUN",
    "explain": "SERIES --scans DATA --run RUN",
    "evaluate": "RUN/oof.parquet RUN/oof.parquet",
}


def test_the_writers_are_all_commands_that_have_an_out():
    with_out = {name for name in COMMANDS if "--out " in format_help(name)}
    # That of train-joint is a run, which a second call continues and another's recipe cannot.
    assert with_out == {*WRITERS, "train-joint"}


def format_help(name):
    commands = make_parser([name])._subparsers._group_actions[0].choices
    return commands[name].format_help()


@pytest.mark.parametrize("name", WRITERS)
def test_an_out_that_is_there_stays_without_overwrite(name, small_run, small_data, tmp_path):
    out = tmp_path / "mine.csv"
    out.write_text("mine")
    words = WRITERS[name].replace("DATA", str(small_data)).replace("RUN", str(small_run))
    may = "" if name in ("fetch", "import-model") else ", or replace it by --overwrite"
    check_told_at_once(
        [name, *words.split(), "--out", str(out)], 1, f"{out} exists: name another{may}"
    )
    assert out.read_text() == "mine"
    assert ("--overwrite" in format_help(name)) == bool(may)


def test_overwrite_replaces(small_run, tmp_path):
    out = tmp_path / "blend.csv"
    out.write_text("mine")
    done = kit("ensemble", small_run, small_run, "--out", out, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert out.read_text().startswith("ID,Label")


@pytest.fixture
def failing(monkeypatch):
    """A function that makes `kit status` raise the error that it is given."""

    def fail_with(error: BaseException) -> None:
        def execute(options):
            raise error

        monkeypatch.setitem(COMMANDS, "status", COMMANDS["status"]._replace(execute=execute))

    return fail_with


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (InputError("the threshold 3 is not a probability"), 1, "the threshold 3 is not a prob"),
        (OutOfTime("stopped in time after step 1"), 3, "stopped in time after step 1"),
        (OSError(28, "No space left on device", "run/x"), 1, "run/x: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted; the same command continues from what is saved"),
    ],
)
def test_each_kind_of_error_has_its_sentence_and_exit_code(error, code, sentence, failing, capsys):
    failing(error)
    assert main(["status", "run"]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(f"kit: {sentence}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_bug_keeps_its_traceback_and_says_how_to_report_it():
    code = "from kit.cli import commands\n"
    code += "def fail(options): raise KeyError('fold')\n"
    code += "commands.COMMANDS['status'] = commands.COMMANDS['status']._replace(execute=fail)\n"
    code += "raise SystemExit(commands.main(['status', 'run']))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    lines = run.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2] == "KeyError: 'fold'"
    assert lines[-1].startswith(f"This is a bug in kit {__version__}. Please report it with this ")


def test_traceback_shows_that_of_an_expected_error_too(failing, capsys):
    failing(InputError("no"))
    assert main(["status", "run", "--traceback"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "kit: no"


STREAMS = {
    "stdout is full": (">/dev/full", 1, "kit: standard output: No space left on device; the work"),
    "stdout is a reader that left": ("| true", 1, "kit: standard output: Broken pipe; the work"),
    "stderr is full": ("2>/dev/full", 0, ""),
    "stderr is closed": ("2>&-", 0, ""),
    "all are closed": ("<&- >&- 2>&-", 0, ""),
}


@pytest.mark.parametrize("how", STREAMS)
def test_streams_that_are_closed_or_full_lose_no_work(how, tmp_path):
    redirection, code, said = STREAMS[how]
    data = tmp_path / "data"
    command = f"{sys.executable} -m kit phantom {data} --patients 3 --size 32 {redirection}"
    shell = ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"]
    run = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    assert said in run.stderr
    # No file was opened in the place of a stream, which others write to.
    header = (data / "stage_2_train.csv").read_text().splitlines()[0]
    assert header == "ID,Label"


def test_what_is_said_of_an_error_is_not_needed_for_its_exit_code(tmp_path):
    command = f"{sys.executable} -m kit status {tmp_path} 2>/dev/full"
    run = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "")


def test_a_word_too_many_is_told_by_the_commands_own_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["predict", "scans", "more", "--run", "run", "--out", "p.csv"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: kit predict ")
    assert said.endswith("kit predict: error: unrecognized arguments: more\n")


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_takes_the_flags_that_all_have(command):
    (own,) = (
        action for action in make_parser([command])._actions if hasattr(action, "choices")
        and action.choices
    )  # fmt: skip
    flags = own.choices[command]._option_string_actions
    assert {"--quiet", "--json", "--traceback"} <= set(flags)
