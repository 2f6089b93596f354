"""A job that cannot go on ends on every rank, soon, with a message that says why: killed and frozen ranks, broken files."""

import contextlib
import json
import os
import re
import shutil
import signal
import threading
import time
import urllib.request

import pytest
from job import SOON, job
from serving import BINARY, ROOT, wait_for_address

MODEL = ROOT / "tests" / "fixtures" / "models" / "deepseek-v3"

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built")


@contextlib.contextmanager
def serving(answering):
    """A server; while the block runs it works on a long answer, or is idle."""
    with job("serve", "--model", MODEL, "--host", "127.0.0.1", "--port", "0") as running:
        url = wait_for_address(running.process, running.log, time.monotonic() + 60)
        running.find_ranks()
        if answering:
            started = threading.Event()

            def ask():
                body = {"model": MODEL.name, "prompt": [5, 6, 7], "max_tokens": 200, "ignore_eos": True, "stream": True}
                request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(),
                                                 {"Content-Type": "application/json"})
                with contextlib.suppress(OSError):
                    while True:
                        with urllib.request.urlopen(request, timeout=60) as response:
                            for _ in response:
                                started.set()

            threading.Thread(target=ask, daemon=True).start()
            assert started.wait(30), running.text()
        yield running


@pytest.mark.parametrize("answering", [True, False], ids=["answering", "idle"])
@pytest.mark.parametrize("rank", [1, 2])
def test_killed_rank_is_named(rank, answering):
    with serving(answering) as running:
        begin = time.monotonic()
        os.kill(running.pids[rank], signal.SIGKILL)
        assert running.wait() != 0
        assert re.search(rf"shoal: rank {rank} .*ending the job", running.text()), running.text()
        assert time.monotonic() - begin < SOON


@pytest.mark.parametrize("answering", [True, False], ids=["answering", "idle"])
def test_killed_leader_ends_the_others(answering):
    with serving(answering) as running:
        os.kill(running.pids[0], signal.SIGKILL)
        assert running.wait() != 0


def test_frozen_rank_is_named():
    with serving(answering=True) as running:
        os.kill(running.pids[1], signal.SIGSTOP)
        assert running.wait(60) != 0
        assert re.search(r"shoal: rank 1 .*ending the job", running.text()), running.text()


@pytest.fixture
def copied_model(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    return folder


def errors_of(text):
    return [line for line in text.splitlines() if line.startswith("shoal: ")]


def test_truncated_file(copied_model):
    weights = copied_model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    with job("run", "--model", copied_model, "--prompt", "x") as running:
        assert running.wait() == 1
        error, = errors_of(running.text())
        assert "model.safetensors" in error


def test_missing_tensor(copied_model):
    """A name that only one rank needs: all ranks end, and the message comes once."""
    weights = copied_model / "model.safetensors"
    name = b"model.layers.1.mlp.experts.0.up_proj.weight"
    data = weights.read_bytes()
    assert name in data
    weights.write_bytes(data.replace(name, name.replace(b"up_proj", b"oh_proj")))
    with job("run", "--model", copied_model, "--prompt", "x") as running:
        assert running.wait() == 1
        error, = errors_of(running.text())
        assert name.decode() in error


def test_missing_shard(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(MODEL.with_name("deepseek-v3-sharded"), folder)
    (folder / "model-00003-of-00004.safetensors").unlink()
    with job("run", "--model", folder, "--prompt", "x") as running:
        assert running.wait() == 1
        error, = errors_of(running.text())
        assert "model-00003-of-00004.safetensors" in error


def test_wrong_usage_and_what_does_not_fit_have_codes_of_their_own():
    for words, code in ((("run", "--model", MODEL, "--isa", "mmx", "--prompt", "x"), 2),
                        (("run", "--model", MODEL, "--no-such-option"), 2),
                        (("run", "--model", MODEL, "--prompt", "x", "--kv-cache-gb", "0.000001"), 3)):
        with job(*words) as running:
            assert running.wait() == code, (words, running.text())
