"""`shoal eval` against the same figures computed here from the log-probabilities that the API gives."""

import json
import math
import os
import subprocess

import numpy as np
import pytest
from serving import BINARY, MPI_ENVIRONMENT, ROOT, serve


FIXTURES = ROOT / "tests" / "fixtures"
pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built")


def evaluate(*arguments, ranks=0):
    launcher = ["mpirun", "-n", str(ranks)] if ranks else []
    done = subprocess.run([*launcher, BINARY, "eval", "--quiet", "--json", *map(str, arguments)], capture_output=True,
                          text=True, env={**os.environ, **MPI_ENVIRONMENT})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_perplexity_and_divergence(tmp_path):
    """A random model and its 2-bit form; token i of their vocabulary is byte i, and byte 0 to 255 are all there is."""
    text = bytes(np.random.default_rng(0).integers(0x21, 0x7F, 90).tolist())
    (tmp_path / "text").write_bytes(text)
    exact, coarse = FIXTURES / "gguf" / "dense-Q6_K.gguf", FIXTURES / "gguf" / "dense-Q2_K.gguf"
    windows = [list(text[i:i + 40]) for i in (0, 40, 80)]
    losses = []
    with serve(exact, 1) as server:
        for window in windows:
            losses += [-v for v in server.score(window)]
    report = evaluate("--model", exact, "--text", tmp_path / "text", "--window", 40, "--save", tmp_path / "run")
    assert report["perplexity"]["tokens"] == len(losses) == 87
    assert report["perplexity"]["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)

    # Texts of JSON lines are scored each for itself.
    texts = [bytes(window).decode() for window in windows]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    apart = evaluate("--model", exact, "--text", tmp_path / "text.jsonl", "--window", 64)["perplexity"]
    assert apart["tokens"] == 87 and apart["perplexity"] == pytest.approx(report["perplexity"]["perplexity"], rel=1e-6)

    # After a prompt, the text alone counts.
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": text[:15].decode(), "text": text[15:40].decode()}))
    after = evaluate("--model", exact, "--text", tmp_path / "prompts.jsonl", "--save", tmp_path / "after")["perplexity"]
    assert after["tokens"] == 25 and after["perplexity"] == pytest.approx(math.exp(sum(losses[14:39]) / 25), rel=1e-4)
    again = evaluate("--model", exact, "--reference", tmp_path / "after")["divergence"]
    assert again["tokens"] == 25 and again["kl_max"] < 1e-5
    assert again["perplexity"] == pytest.approx(after["perplexity"], rel=1e-5)

    same = evaluate("--model", exact, "--reference", tmp_path / "run")["divergence"]
    assert same["kl_max"] < 1e-5 and same["top1_agreement"] == 1 and same["tokens"] == 87
    other = evaluate("--model", coarse, "--reference", tmp_path / "run", ranks=2)["divergence"]
    assert 0.01 < other["kl_mean"] < other["kl_99"] <= other["kl_max"]
    assert other["top1_agreement"] < 1
    assert other["reference_perplexity"] == pytest.approx(report["perplexity"]["perplexity"], rel=1e-5)
    with serve(coarse, 1) as server:
        coarse_losses = [-v for window in windows for v in server.score(window)]
    # Two ranks add contributions in another order than one, and activations next to a rounding border then fall on its
    # other side.
    assert other["perplexity"] == pytest.approx(math.exp(sum(coarse_losses) / 87), rel=5e-3)


def test_mistakes_are_told(tmp_path):
    def failure(*arguments):
        done = subprocess.run([BINARY, "eval", "--model", FIXTURES / "gguf" / "dense-Q2_K.gguf", "--quiet", *arguments],
                              capture_output=True, text=True)
        return done.returncode, done.stderr
    assert failure()[0] == 2
    code, message = failure("--text", tmp_path / "none")
    assert code == 1 and "none: cannot be read" in message
    code, message = failure("--text", tmp_path)
    assert code == 1 and "cannot be read" in message
    (tmp_path / "text").write_text("a text")
    code, message = failure("--text", tmp_path / "text", "--save", tmp_path / "no" / "folder")
    assert code == 1 and "folder: cannot be written" in message
    (tmp_path / "texts.jsonl").write_text('{"text": "abc"}\n{"txt": "abc"}\n')
    code, message = failure("--text", tmp_path / "texts.jsonl")
    assert code == 1 and "texts.jsonl:2" in message and "text" in message
    (tmp_path / "puzzles.jsonl").write_text("\n\n")
    code, message = failure("--puzzles", tmp_path / "puzzles.jsonl")
    assert code == 1 and "puzzles.jsonl: there is no puzzle in it" in message
    (tmp_path / "run").write_text("something else\n")
    code, message = failure("--reference", tmp_path / "run")
    assert code == 1 and "run: is no file that `shoal eval --save` wrote" in message
