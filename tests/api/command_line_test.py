"""The command line: `shoal run` on the demo model, the help of all commands, and what they refuse."""

import json
import re
import subprocess

import pytest
from conftest import DEMO_MODEL, needs_demo_model
from serving import BINARY, ROOT, serve

PROMPT = "Say a word."
COMMANDS = ["run", "serve", "eval", "bench", "plan", "quantize", "inspect"]
GGUF = ROOT / "tests" / "fixtures" / "gguf" / "dense-Q2_K.gguf"


def shoal(*arguments):
    if not BINARY.exists():
        pytest.skip(f"{BINARY} is not built")
    return subprocess.run([BINARY, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def answer(model, *options):
    needs_demo_model()
    command = [BINARY, "run", "--model", model, "--prompt", PROMPT, "--max-tokens", "24", "--quiet", "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=True)
    said = json.loads(done.stdout)
    return said["reasoning"], said["content"]


def demo_model_with(folder, name, text):
    """Of another file of this name; None: of none."""
    needs_demo_model()
    for file in DEMO_MODEL.iterdir():
        if file.name != name:
            (folder / file.name).symlink_to(file)
    if text is not None:
        (folder / name).write_text(text)
    return folder


def demo_model_that_recommends(folder, recommended):
    return demo_model_with(folder, "generation_config.json", recommended and json.dumps(recommended))


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


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_whole(command):
    done = shoal(command, "--help")
    assert done.returncode == 0 and all(c == "\n" or c.isprintable() for c in done.stdout)
    assert done.stdout.splitlines()[-1].startswith("A conversion" if command == "quantize" else "Exit codes")
    assert "->" not in done.stdout  # names of values are told, not what they stand for
    if command in ("run", "serve", "eval", "bench"):
        assert all(words in done.stdout for words in ("{f32,bf16,fp8}=f32", "{f32,bf16,fp8,int8}", "--quiet"))


@pytest.mark.parametrize("command", ["run", "serve", "eval", "bench", "plan"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_numbers_are_finite(command, value):
    options = re.findall(r"(?m)^  (--[a-z-]+) FLOAT", shoal(command, "--help").stdout)
    assert options
    for option in options:
        done = shoal(command, option, value)
        assert done.returncode == 2 and f"{option}: must be a finite number, not {value}" in done.stderr, done.stderr


@pytest.mark.parametrize("arguments", [
    ["run", "--max-tokens", "-1"], ["run", "--temperature", "2.1"], ["run", "--temperature", "warm"],
    ["run", "--kv-cache-gb", "1e30"], ["run", "--kv-cache-gb", "-1"], ["run", "--kv-cache-dtype", "foo"],
    ["run", "--compute", "1"], ["run", "--max-num-seqs", "0"], ["serve", "--threads", "100000"],
    ["eval", "--max-tokens", "0"], ["bench", "--concurrency", "1,0"], ["quantize", "--threads", "100000"]])
def test_wrong_values_are_refused_in_few_words(arguments):
    done = shoal(*arguments)
    assert done.returncode == 2 and arguments[1] in done.stderr and len(done.stderr) < 160, done.stderr


def test_a_cache_that_is_too_small_is_told_in_bytes():
    done = shoal("run", "--model", GGUF, "--prompt", "x", "--kv-cache-gb", "1e-9")
    assert done.returncode == 3 and "0 B are there" in done.stderr, done.stderr


def test_tokens_that_the_model_does_not_know_are_refused(tmp_path):
    tokenizer = json.loads((DEMO_MODEL / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 16000000, "content": "<far>"})
    done = shoal("run", "--model", demo_model_with(tmp_path, "tokenizer.json", json.dumps(tokenizer)), "--prompt", "<far>")
    assert done.returncode == 1
    assert 'tokenizer.json: token "<far>" has the id 16000000, and vocab_size of config.json is' in done.stderr


@pytest.mark.parametrize("end", [-1, 2**40])
def test_a_model_that_names_no_end_is_told_of(tmp_path, end):
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    model = demo_model_with(tmp_path, "config.json", json.dumps({**config, "eos_token_id": end}))
    (model / "generation_config.json").unlink(missing_ok=True)
    done = shoal("run", "--model", model, "--prompt", PROMPT, "--max-tokens", "1")
    assert done.returncode == 0 and "eos_token_id names no token" in done.stderr, done.stderr
    assert "tokens/s" not in done.stderr  # of a single token there is no speed
    assert "eos_token_id" not in shoal("run", "--model", DEMO_MODEL, "--prompt", PROMPT, "--max-tokens", "1").stderr


def test_a_chat_template_that_fails_is_named(tmp_path):
    model = demo_model_with(tmp_path, "chat_template.jinja", "{{ 1 / 0 }}")
    done = shoal("run", "--model", model, "--prompt", PROMPT)
    assert done.returncode == 1 and f"{model}: its chat template: line 1: division by zero" in done.stderr


def test_control_characters_of_files_do_not_reach_the_terminal(tmp_path):
    before, after = GGUF.read_bytes().split(b"general.architecture", 1)
    (tmp_path / "m.gguf").write_bytes(before + b"general.architecture" + after.replace(b"llama", b"\x1b[31m", 1))
    for arguments in (["inspect"], ["run", "--prompt", "x", "--model"]):
        done = shoal(*arguments, tmp_path / "m.gguf")
        assert done.returncode == 1 and r"\x1b[31m" in done.stderr and "\x1b" not in done.stderr, done.stderr
