"""Starts `shoal serve` on some ranks and asks it for completions, for the golden tests."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BINARY = Path(os.environ.get("SHOAL_BUILD", ROOT / "build")) / "shoal"

MPI_ENVIRONMENT = {  # as launch/setup.sh: root may start ranks, ranks may outnumber cores
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_MCA_hwloc_base_binding_policy": "none"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A running server: `url`, and requests to it."""

    def __init__(self, url, process=None):
        self.url, self.process = url, process
        with urllib.request.urlopen(url + "/v1/models", timeout=20) as response:
            card = json.load(response)["data"][0]
        self.model, self.limit = card["id"], card["max_model_len"]  # its name, its context in tokens

    def post(self, path, body, timeout=120):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error.code} {error.read().decode(errors='replace')}") from error

    def rank_pids(self):
        """Of the ranks that mpirun started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == BINARY.name]

    def metrics(self):
        """Counters and gauges by their names, without prefix; samples with several labels summed."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=20) as response:
            lines = response.read().decode().splitlines()
        values = {}
        for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#")):
            name = name.split("{")[0].removeprefix("shoal:")
            values[name] = values.get(name, 0) + float(value)
        return values

    def complete(self, prompt, **more):
        """The choices for one prompt, or a list of them, given as token ids; greedy unless asked otherwise."""
        body = {"model": self.model, "prompt": prompt, "temperature": 0, **more}
        return sorted(self.post("/v1/completions", body)["choices"], key=lambda choice: choice["index"])

    def score(self, prompt, top=0):
        """Log-probabilities of prompt[1:]. All other answers of the API start with a null for the first token."""
        choice, = self.complete(prompt, echo=True, logprobs=top, max_tokens=0)
        return prompt_logprobs(choice, prompt)

    def greedy(self, prompt, count):
        """(token ids, their log-probabilities) of a greedy continuation."""
        choice, = self.complete(prompt, max_tokens=count, logprobs=1, return_token_ids=True)
        return choice["token_ids"], choice["logprobs"]["token_logprobs"]


def prompt_logprobs(choice, prompt):
    values = choice["logprobs"]["token_logprobs"]
    assert len(values) >= len(prompt) and values[0] is None, values
    return values[1:len(prompt)]


@contextlib.contextmanager
def serve(model, ranks, *options, start_timeout=120):
    """Serves `model` on `ranks` ranks for the time of a with block, after which every rank must end well."""
    environment = {**os.environ, **MPI_ENVIRONMENT}
    command = ["mpirun", "-n", str(ranks), str(BINARY), "serve", "--model", str(model), "--host", "127.0.0.1",
               "--port", "0", *options]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            server = Server(wait_for_address(process, log, time.monotonic() + start_timeout), process)
            yield server
            # To the ranks and not to mpirun, which then takes two seconds and calls it a failure, whatever the ranks did.
            for pid in server.rank_pids():
                os.kill(pid, signal.SIGTERM)
            status = process.wait(30)
            log.seek(0)
            assert status == 0, f"the server ended with status {status}:\n{log.read()}"
        finally:
            process.terminate()  # what still runs after a failure
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


def wait_for_address(process, log, deadline):
    while True:
        log.seek(0)
        text = log.read()
        found = re.search(r"listening on (http://[^\s/]+)", text)
        if found:
            return found[1]
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}:\n{text}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start in time:\n{text}")
        time.sleep(0.05)


def largest_difference(got, want):
    assert len(got) == len(want), (len(got), len(want))
    return max((abs(a - b) for a, b in zip(got, want)), default=0.0)
