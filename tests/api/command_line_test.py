"""`shoal run` on the demo model."""

import json
import subprocess

import pytest
from conftest import DEMO_MODEL, needs_demo_model
from serving import BINARY


def answer(model, *options):
    needs_demo_model()
    command = [BINARY, "run", "--model", model, "--prompt", "Say a word.", "--max-tokens", "24", "--quiet", "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=True)
    said = json.loads(done.stdout)
    return said["reasoning"], said["content"]


def recommending(folder, recommended):
    """The demo model with another generation_config.json, or without one."""
    for file in DEMO_MODEL.iterdir():
        if file.name != "generation_config.json":
            (folder / file.name).symlink_to(file)
    if recommended:
        (folder / "generation_config.json").write_text(json.dumps(recommended))
    return folder


@pytest.mark.parametrize("recommended, alike, other", [
    ({"temperature": 2.0, "top_k": 3}, ["--temperature", "2", "--top-k", "3", "--top-p", "1"], ["--temperature", "0.6"]),
    ({}, ["--temperature", "0.6", "--top-p", "0.95"], ["--temperature", "2"])])
def test_an_answer_is_sampled_as_the_model_recommends(tmp_path, recommended, alike, other):
    model, differ = recommending(tmp_path, recommended), 0
    for seed in ("1", "2", "3"):
        said = answer(model, "--seed", seed)
        assert said == answer(model, "--seed", seed, *alike)
        differ += said != answer(model, "--seed", seed, *other)
    assert differ > 0
