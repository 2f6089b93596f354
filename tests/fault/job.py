"""A job under mpirun whose ranks can be killed, and answers under way meanwhile."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from serving import BINARY, MPI_ENVIRONMENT

SOON = 30  # seconds; a frozen rank counts as dead after 15 s of silence


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


class Job:
    """A job under mpirun and what it printed."""

    def __init__(self, *words, ranks=3, launcher=("mpirun",), between=(str(BINARY),)):
        self.ranks = ranks
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([*launcher, "-n", str(ranks), *between, *map(str, words)], stdout=self.log,
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
                parent = parent_of(folder.name)
                environment = (folder / "environ").read_bytes().split(b"\0")
                rank = [v for v in environment if v.startswith(b"OMPI_COMM_WORLD_RANK=")]
                if self.process.pid in (parent, parent_of(parent)) and rank:  # mpirun's, or its script's
                    self.pids[int(rank[0].split(b"=")[1])] = int(folder.name)
        assert sorted(self.pids) == list(range(self.ranks)), self.pids
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
def job(*words, **how):
    running = Job(*words, **how)
    try:
        yield running
    finally:
        running.kill()


class Stream(threading.Thread):
    """A streamed answer; `some` is set when its first tokens are here."""

    def __init__(self, server, prompt, tokens=200, **more):
        super().__init__(daemon=True)
        self.body = {"model": server.model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True,
                     "temperature": 0, "return_token_ids": True, **more}
        self.url, self.some = server.url, threading.Event()
        self.tokens, self.finish, self.error = [], None, None
        self.start()

    def run(self):
        request = urllib.request.Request(self.url + "/v1/completions", json.dumps(self.body).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=90) as response:
                for line in response:
                    if not line.startswith(b"data: {"):
                        continue
                    choice, = json.loads(line[6:])["choices"]
                    self.tokens += choice["token_ids"] or []
                    self.finish = choice["finish_reason"] or self.finish
                    if len(self.tokens) > 5:
                        self.some.set()
        except (OSError, KeyError, ValueError) as error:
            self.error = error
        self.some.set()

    def answer(self):
        self.join(90)
        assert not self.is_alive() and self.error is None, self.error
        assert len(self.tokens) == self.body["max_tokens"], len(self.tokens)
        return self.tokens, self.finish
