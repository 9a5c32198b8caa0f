"""Two processes of `torchrun` on one machine."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from kit.training.checkpoints import load_weights

TWO_PROCESSES = """
import sys, torch
from pathlib import Path
sys.path.insert(0, "tests")
from small_training import Net, make_data, config
from kit.training.distributed import join_processes
from kit.training.loop import Task, fit, weighted_loss
torch.manual_seed(0)
inputs, labels = map(torch.from_numpy, make_data())
def make_batches(epoch, batches):
    for batch in batches:
        yield {"values": inputs[batch], "labels": labels[batch]}
chosen = config(opt_level="O0", batch_size=10)
net = Net(chosen)
net.layers[1].p = 0.0
task = Task(50, make_batches, lambda m, b: weighted_loss(m(b["values"]), b["labels"]))
with join_processes():
    fit(net, chosen, task, Path(sys.argv[1]))
threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
assert not {name for name in threads if "gloo" in name}, threads
"""


def run_two(script: Path, *arguments) -> subprocess.CompletedProcess:
    """Run a script in two processes, on the CPU also on a machine with GPUs."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    return run_script(*launcher, script, *arguments)


def run_script(*arguments) -> subprocess.CompletedProcess:
    environment = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",  # gloo, also on a machine with GPUs
        "PATH": "/usr/bin:/bin",
    }
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_two_processes_train_to_the_weights_of_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    for done in (run_script(script, tmp_path / "one"), run_two(script, tmp_path / "two")):
        assert done.returncode == 0, done.stderr
    alone, _ = load_weights(tmp_path / "one" / "epoch3.safetensors")
    together, _ = load_weights(tmp_path / "two" / "epoch3.safetensors")
    for name, value in alone.items():
        assert torch.allclose(value, together[name], atol=1e-5)


def test_at_the_deadline_all_processes_wait_for_the_checkpoint(tmp_path):
    """Else the first that ends has torchrun kill the one that still writes."""
    script = tmp_path / "train.py"
    slow = """
import time
from kit.training import checkpoints
save = checkpoints.save_checkpoint
checkpoints.save_checkpoint = lambda *arguments: (time.sleep(12), save(*arguments))
"""
    budget = "fit(net, chosen, task, Path(sys.argv[1]), deadline=0.0)"
    body = TWO_PROCESSES.replace("fit(net, chosen, task, Path(sys.argv[1]))", budget)
    script.write_text(slow + body)
    done = run_two(script, tmp_path / "two")
    assert "stopped in time after step 2" in done.stderr  # one step after both knew of it
    _, metadata = load_weights(tmp_path / "two" / "checkpoint.safetensors")
    assert metadata["progress"]["step"] == 2


IN_PARTS = """
import sys, torch
from pathlib import Path
import numpy as np
sys.path.insert(0, "tests")
from training.test_step import make_series
from kit.classifier import train_classifier
from kit.lstm import LSTMConfig, train_lstm
from kit.runs.directory import Run
from kit.runs.tables import read_slices
from kit.training import loop
from kit.training.checkpoints import load_weights
from kit.training.config import ClassifierConfig
from kit.training.distributed import join_processes, rank, work_alone
from kit.training.step import Stepper
run, out, cpu = Run(Path(sys.argv[1])), Path(sys.argv[2]), torch.device("cpu")
table = read_slices(run)
table = table[table["split"] == "train"].iloc[:23].copy()  # batches of 10, 10 and 3
broken = Path(sys.argv[2]) / "broken.dcm"
broken.touch()
table.loc[table.index[5], "path"] = str(broken)
# Without batch normalization, which sees the images of a part alone.
classifier = ClassifierConfig(
    architecture="convnext_atto", architecture_options={"depths": [1] * 4, "dims": [8, 8, 16, 16]},
    image_size=64, batch_size=10, epochs=2, learning_rate=1e-3, opt_level="O0", crop=False)
series = make_series([1, 30, 2, 7, 60, 1, 3, 20, 5, 9, 40, 1, 2])  # batches of 10 and 3
lstm = LSTMConfig(embedding_size=6, hidden_size=6, learning_rate=1e-2, epochs=3, batch_size=10,
                  opt_level="O0")
stages = {"classifier": lambda path: train_classifier(table, classifier, path, cpu, 0),
          "lstm": lambda path: train_lstm(series, lstm, path, cpu)}
with join_processes():
    me = rank()
    for name, train in stages.items():
        loop.Stepper = Stepper
        with work_alone():
            expected = train(out / f"{name} alone {me}")
        epoch = f"epoch{len(expected)}.safetensors"
        alone, _ = load_weights(out / f"{name} alone {me}" / epoch)
        first, _ = load_weights(out / f"{name} alone {me}" / "epoch1.safetensors")
        assert min((alone[key] - first[key]).abs().max() for key in alone) > 1e-4
        for at_once in (10, 3, 1):  # the share of a process, five examples, in 1, 2 and 5 parts
            loop.Stepper = lambda *given: Stepper(*given[:3], at_once)
            found = train(out / f"{name} {at_once}")
            torch.distributed.barrier()
            together, _ = load_weights(out / f"{name} {at_once}" / epoch)
            for key, value in alone.items():
                torch.testing.assert_close(together[key], value, atol=1e-5, rtol=0)
            for one, other in zip(found, expected):
                assert abs(one["loss"] - other["loss"]) < 1e-6, (name, at_once, one, other)
            print(f"process {me}: {name} {at_once} is equal", flush=True)
"""


def test_two_processes_in_parts_train_to_the_weights_of_one(small_run, tmp_path):
    """Unequal series, a file that cannot be read, an odd last batch: the loss is that of all."""
    script = tmp_path / "train.py"
    script.write_text(IN_PARTS)
    done = run_two(script, small_run.path, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is equal") == 2 * 2 * 3


EMPTY_BATCHES = """
import sys, torch
sys.path.insert(0, "tests")
from small_training import Net, config, make_data
from kit.training import amp
from kit.training.distributed import join_processes, rank, work_alone
from kit.training.loop import weighted_loss
from kit.training.optimizer import make_optimizer
from kit.training.step import Stepper
inputs, labels = map(torch.from_numpy, make_data())
def compute_loss(model, batch):
    return weighted_loss(model(batch["values"]), batch["labels"])
def take_steps(opt_level, choose):
    torch.manual_seed(0)
    model = Net(config()).eval()  # without dropout
    optimizer = make_optimizer(model, config(learning_rate=1e-2))
    amp.initialize(model, optimizer, opt_level)
    stepper = Stepper(model, optimizer, compute_loss, 50)
    before = amp.list_masters(model, optimizer)["layers.0.weight"].clone()
    for step in range(4):
        batch = {"values": inputs[step::4], "labels": labels[step::4]} if choose(step) else None
        assert stepper.take(batch) is not None
    weights = amp.list_masters(model, optimizer)
    assert (weights["layers.0.weight"] - before).abs().max() > 1e-3
    return weights
with join_processes():
    for opt_level in ("O0", "O1", "O2"):
        with work_alone():
            expected = take_steps(opt_level, lambda step: True)
        found = take_steps(opt_level, lambda step: step % 2 == rank())
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)
        print(f"process {rank()}: {opt_level} is equal", flush=True)
"""


def test_a_process_whose_batch_is_empty_takes_the_step_of_the_other(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(EMPTY_BATCHES)
    done = run_two(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is equal") == 2 * 3


FAILING = """
import sys, time, torch
from kit.training import distributed
from kit.training.checkpoints import TrainingError
distributed._TAKE_DOWN_SECONDS = 5
stuck = sys.argv[1] == "stuck"
with distributed.join_processes():
    figures = torch.ones(3)
    distributed.add_figures(figures)
    if distributed.rank() == 1:
        if stuck:  # as NCCL may be where the others still wait
            torch.distributed.destroy_process_group = lambda: time.sleep(600)
        raise TrainingError("epoch 1, step 2: this process failed")
    if stuck:
        time.sleep(600)  # what no signal of gloo's reaches
    distributed.add_figures(figures)
"""


@pytest.mark.parametrize("kind", ["plain", "stuck"])
def test_an_error_of_one_process_ends_all_within_a_minute(kind, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(FAILING)
    begun = time.monotonic()
    done = run_two(script, kind)
    assert time.monotonic() - begun < 60
    assert done.returncode != 0
    assert "epoch 1, step 2: this process failed" in done.stderr


def test_processes_that_start_from_different_weights_are_refused(tmp_path):
    """As on two nodes that do not share the folder of the checkpoint."""
    script = tmp_path / "train.py"
    apart = 'torch.manual_seed(int(__import__("os").environ["RANK"]))'
    script.write_text(TWO_PROCESSES.replace("torch.manual_seed(0)", apart))
    done = run_two(script, tmp_path / "two")
    assert done.returncode != 0
    assert "the processes do not start from the same weights" in done.stderr
