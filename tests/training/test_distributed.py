"""Two processes of `torchrun` on one machine."""

import subprocess
import sys
from pathlib import Path

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
    assert "stopped in time after step 1" in done.stderr
    _, metadata = load_weights(tmp_path / "two" / "checkpoint.safetensors")
    assert metadata["progress"]["step"] == 1
