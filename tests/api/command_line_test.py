"""`shoal run` on the demo model."""

import json
import subprocess

import pytest
from conftest import DEMO_MODEL, needs_demo_model
from serving import BINARY, serve

PROMPT = "Say a word."


def answer(model, *options):
    needs_demo_model()
    command = [BINARY, "run", "--model", model, "--prompt", PROMPT, "--max-tokens", "24", "--quiet", "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=True)
    said = json.loads(done.stdout)
    return said["reasoning"], said["content"]


def demo_model_that_recommends(folder, recommended):
    """Of another generation_config.json; None: of none."""
    for file in DEMO_MODEL.iterdir():
        if file.name != "generation_config.json":
            (folder / file.name).symlink_to(file)
    if recommended is not None:
        (folder / "generation_config.json").write_text(json.dumps(recommended))
    return folder


@pytest.mark.parametrize("recommended, alike, other", [
    ({"temperature": 2.0, "top_k": 3}, ["--temperature", "2", "--top-k", "3", "--top-p", "1"], ["--temperature", "0.6"]),
    ({"temperature": 1.0}, ["--temperature", "1", "--top-p", "1"], ["--temperature", "0.1"]),
    (None, ["--temperature", "0.6", "--top-p", "0.95"], ["--temperature", "2"])])
def test_an_answer_is_sampled_as_the_model_recommends_or_as_r1s_authors(tmp_path, recommended, alike, other):
    model, differ = demo_model_that_recommends(tmp_path, recommended), 0
    for seed in ("1", "2", "3"):
        said = answer(model, "--seed", seed)
        assert said == answer(model, "--seed", seed, *alike)
        differ += said != answer(model, "--seed", seed, *other)
    assert differ > 0


def test_the_same_model_says_the_same_when_it_is_served(tmp_path):
    """A repetition penalty counts the prompt's tokens too."""
    model = demo_model_that_recommends(tmp_path, {"temperature": 0.0, "repetition_penalty": 1.6})
    said = answer(model)
    assert said != answer(model, "--repetition-penalty", "1")
    with serve(model, 1) as server:
        request = {"model": server.model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 24}
        message = server.post("/v1/chat/completions", request)["choices"][0]["message"]
    assert said == (message.get("reasoning_content") or "", message["content"] or "")
