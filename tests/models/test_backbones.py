"""Initial weights by name, from a stand-in for Hugging Face on the loopback."""

import hashlib
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from hugging_face_server import serve_repository

from kit.models.backbones import BACKBONES, find_backbone
from kit.recipes import RECIPES

CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def release(tmp_path):
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(CONTENT)
    return folder


def fetch(address, out, name="resnext101", **environment):
    """Run `kit fetch NAME --out OUT` against a server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    cache = {"HF_HOME": str(out.parent / "cache"), "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-m", "kit", "fetch", name, "--out", str(out), "--quiet"]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**kept, **cache, "HF_ENDPOINT": address, **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.parametrize(
    ("name", "recipe"), [("resnext101", "tonight"), ("convnext_small", "modern")]
)
def test_initial_weights_are_fetched_and_checked_against_the_hubs_record(
    name, recipe, release, tmp_path
):
    out = tmp_path / "weights" / "backbone.safetensors"
    with serve_repository(release) as server:
        server.broken = "model.safetensors"
        done = fetch(server.address, out, name)
        assert done.returncode == 1
        assert "could not be downloaded" in done.stderr
        assert "Traceback" not in done.stderr
        assert not out.exists()
        part = tmp_path / "weights" / "backbone.safetensors.partial" / "model.safetensors"
        part.write_bytes(CONTENT[:1000])
        server.broken, server.asked = "", []
        done = fetch(server.address, out, name)
    assert server.asked == [("model.safetensors", "bytes=1000-")]
    assert not part.parent.exists()
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == CONTENT
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    said = f"{out}: {len(CONTENT):,} bytes, SHA-256 {sha256}, as the hub records it"
    assert said in done.stdout.splitlines()
    assert f"make kernels KAGGLE_USER=you RECIPE={recipe} BACKBONE={out}" in done.stdout
    assert fetch("http://127.0.0.1:9", out).stderr.startswith(f"kit: {out} exists")


@pytest.mark.parametrize(
    ("etag", "reason"),
    [
        ("ab" * 32, "What had arrived was removed: run the same command"),
        ("7", "records no size and SHA-256"),
    ],
)
def test_weights_that_cannot_be_checked_get_no_name(release, tmp_path, etag, reason):
    out = tmp_path / "backbone.safetensors"
    with serve_repository(release) as server:
        server.etag = etag
        done = fetch(server.address, out)
    assert done.returncode == 1
    assert reason in done.stderr
    assert not out.exists()


def test_without_a_network_the_sentence_says_what_to_save_where(tmp_path):
    out = tmp_path / "backbone.safetensors"
    done = fetch("http://127.0.0.1:9", out)
    assert done.returncode == 1
    assert done.stderr.startswith("kit: timm/resnext101_32x8d.fb_wsl_ig1b_ft_in1k could not be do")
    assert f"save its model.safetensors as {out}" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_pretrained_recipe_has_its_weights_by_name():
    found = {name: find_backbone(name) for name in RECIPES}
    published = dict.fromkeys(("tonight", "blog", "single", "published"), "resnext101")
    assert found == {"demo": None, "modern": "convnext_small", **published}
    for name, repository in BACKBONES.items():
        assert repository in {
            f"timm/{RECIPES[recipe].classifier.architecture}"
            for recipe in RECIPES
            if found[recipe] == name
        }
