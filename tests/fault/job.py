"""A job under mpirun whose ranks can be killed."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from serving import BINARY, MPI_ENVIRONMENT

SOON = 30  # seconds; a frozen rank counts as dead after 15 s of silence


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
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                environment = (folder / "environ").read_bytes().split(b"\0")
                rank = [v for v in environment if v.startswith(b"OMPI_COMM_WORLD_RANK=")]
                if parent == self.process.pid and rank:
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
