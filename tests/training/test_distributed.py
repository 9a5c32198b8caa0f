"""Two processes of `torchrun` on one machine."""

import subprocess
import sys

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


def test_two_processes_train_to_the_weights_of_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    one = [sys.executable, str(script), str(tmp_path / "one")]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    two = [sys.executable, *launcher, str(script), str(tmp_path / "two")]
    environment = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",  # gloo, also on a machine with GPUs
        "PATH": "/usr/bin:/bin",
    }
    for command in (one, two):
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
    alone, _ = load_weights(tmp_path / "one" / "epoch3.safetensors")
    together, _ = load_weights(tmp_path / "two" / "epoch3.safetensors")
    for name, value in alone.items():
        assert torch.allclose(value, together[name], atol=1e-5)
