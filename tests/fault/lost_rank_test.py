"""A job that cannot go on ends on every rank, soon, with a message that says why: killed and frozen ranks, broken files."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from serving import BINARY, MPI_ENVIRONMENT, ROOT, wait_for_address

MODEL = ROOT / "tests" / "fixtures" / "models" / "deepseek-v3"
RANKS = 3
SOON = 30  # seconds; a frozen rank counts as dead after 15 s of silence

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built")


class Job:
    """A job under mpirun and what it printed."""

    def __init__(self, *words):
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(["mpirun", "-n", str(RANKS), str(BINARY), *map(str, words)], stdout=self.log,
                                        stderr=subprocess.STDOUT, env={**os.environ, **MPI_ENVIRONMENT})
        self.pids = {}

    def text(self):
        self.log.seek(0)
        return self.log.read()

    def find_ranks(self):
        """Fills `pids` by rank, out of the environment that mpirun gave each."""
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                if (folder / "exe").resolve() != BINARY.resolve():
                    continue
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                environment = (folder / "environ").read_bytes().split(b"\0")
                rank = [v for v in environment if v.startswith(b"OMPI_COMM_WORLD_RANK=")]
                if parent == self.process.pid and rank:
                    self.pids[int(rank[0].split(b"=")[1])] = int(folder.name)
        assert sorted(self.pids) == list(range(RANKS)), self.pids
        return self.pids

    def wait(self, seconds=SOON):
        """The exit status; fails where the job goes on, or leaves a rank behind."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the job still runs after {seconds} s:\n{self.text()}")
        deadline = time.monotonic() + 5
        while any(Path(f"/proc/{pid}").exists() for pid in self.pids.values()):
            assert time.monotonic() < deadline, f"a rank outlives its job:\n{self.text()}"
            time.sleep(0.05)
        return status

    def kill(self):
        for pid in self.pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self.log.close()


@contextlib.contextmanager
def job(*words):
    running = Job(*words)
    try:
        yield running
    finally:
        running.kill()


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
