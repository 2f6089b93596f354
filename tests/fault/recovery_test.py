"""`serve --recover`: ranks are killed while they answer, and no answer shows it."""

import contextlib
import json
import os
import re
import signal
import time
import urllib.request

import pytest
from job import SOON, Stream, job
from serving import BINARY, ROOT, Server, wait_for_address

DEMO = ROOT / "launch" / "demo-model"
FIXTURES = ROOT / "tests" / "fixtures" / "models"

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built")


@contextlib.contextmanager
def serving(model, ranks, *options, **how):
    how = how or {"launcher": ("mpirun", "--enable-recovery"), "between": (str(BINARY), "serve", "--recover")}
    with job("--model", model, "--host", "127.0.0.1", "--port", "0", *options, ranks=ranks, **how) as running:
        server = Server(wait_for_address(running.process, running.log, time.monotonic() + 60), running.process)
        running.find_ranks()
        yield running, server


def prompts(server, count):
    """Different lengths; two begin alike."""
    return [[5 + (i * i + 3 * j * (i > 20)) % 50 for i in range(10 + 17 * j)] for j in range(count)]


def wait_for(running, pattern, times=1):
    deadline = time.monotonic() + SOON
    while len(re.findall(pattern, running.text())) < times:
        assert running.process.poll() is None, running.text()
        assert time.monotonic() < deadline, running.text()
        time.sleep(0.05)


def ends_orderly(running):
    os.kill(running.pids[0], signal.SIGTERM)  # it ends the others
    running.wait()
    assert "ending drained=true" in running.text(), running.text()


# What is different: how weights lie, and what of the cache can stay. In 16 bits the sums of experts' outputs depend on
# who has which, and tokens with them, unless experts may move: then they are added one by one.
MODELS = {
    "experts": (DEMO, 4, ()),
    "bf16": (DEMO, 4, ("--compute", "bf16", "--kv-cache-dtype", "int8", "--rebalance-steps", "100000")),
    "moving experts": (DEMO, 4, ("--rebalance-steps", "8")),
    "guesses": (FIXTURES / "deepseek-v3-mtp", 3, ("--speculative", "mtp")),
    "dense": (FIXTURES / "qwen2", 3, ()),
}


@pytest.mark.parametrize("kind", MODELS)
def test_answers_go_on(kind):
    model, ranks, options = MODELS[kind]
    with serving(model, ranks, *options) as (running, server):
        asked = prompts(server, 6)
        undisturbed = [Stream(server, prompt) for prompt in asked]
        undisturbed = [stream.answer() for stream in undisturbed]
        order = [*range(ranks - 2, ranks), *range(ranks - 3, 0, -1)]  # to rank 0 alone
        for losses, rank in enumerate(order, 1):
            streams = [Stream(server, prompt) for prompt in asked]
            for stream in streams:
                stream.some.wait()
            os.kill(running.pids[rank], signal.SIGKILL)
            assert any(stream.is_alive() for stream in streams), "it was idle when the rank was lost"
            assert [stream.answer() for stream in streams] == undisturbed
            wait_for(running, "recovered", losses)
            assert re.search(rf"rank lost rank={rank} ", running.text()), running.text()
            metrics = server.metrics()
            assert metrics["ranks"] == ranks - losses and metrics["ranks_lost_total"] == losses
            assert metrics["num_requests_running"] == metrics["num_requests_waiting"] == 0
        with urllib.request.urlopen(server.url + "/status.json", timeout=20) as response:
            status = json.load(response)
        assert [rank["lost"] for rank in status["ranks"]] == [rank > 0 for rank in range(ranks)]
        ends_orderly(running)


def test_drawn_answers_and_scores_go_on():
    """The draw of a position depends on nothing that is lost; a grammar and log-probabilities go on as well."""
    with serving(DEMO, 3) as (running, server):
        some = [dict(temperature=1.5, seed=3), dict(temperature=1, top_p=0.9, seed=4, logprobs=2),
                dict(temperature=0.7, seed=5, presence_penalty=0.5)]
        prompt, = prompts(server, 1)
        undisturbed = [Stream(server, prompt, **more).answer() for more in some]
        streams = [Stream(server, prompt, **more) for more in some]
        for stream in streams:
            stream.some.wait()
        os.kill(running.pids[1], signal.SIGKILL)
        assert [stream.answer() for stream in streams] == undisturbed
        wait_for(running, "recovered")


def test_lost_while_idle_and_two_at_once():
    with serving(DEMO, 4) as (running, server):
        prompt, = prompts(server, 1)
        undisturbed = Stream(server, prompt).answer()
        for rank in (3, 1):
            os.kill(running.pids[rank], signal.SIGKILL)
        wait_for(running, "rank lost", 2)
        assert Stream(server, prompt).answer() == undisturbed
        assert server.metrics()["ranks"] == 2
        os.kill(running.pids[2], signal.SIGKILL)
        wait_for(running, "rank lost", 3)
        assert Stream(server, prompt).answer() == undisturbed  # rank 0 alone
        ends_orderly(running)


def test_frozen_rank_is_left_out():
    with serving(DEMO, 3) as (running, server):
        prompt, = prompts(server, 1)
        undisturbed = Stream(server, prompt).answer()
        stream = Stream(server, prompt, tokens=600)
        stream.some.wait()
        os.kill(running.pids[2], signal.SIGSTOP)
        tokens, finish = stream.answer()
        assert tokens[:len(undisturbed[0])] == undisturbed[0] and finish == "length"
        assert re.search("rank lost rank=2 .*no sign of life", running.text()), running.text()
        os.kill(running.pids[2], signal.SIGCONT)  # it has been left out, finds out and ends
        assert Stream(server, prompt).answer() == undisturbed


def test_lost_while_the_job_ends():
    """A step is under way that nobody will finish; the job ends all the same."""
    with serving(DEMO, 3, "--grace", "0.2") as (running, server):
        stream = Stream(server, prompts(server, 1)[0], tokens=3000)
        stream.some.wait()
        os.kill(running.pids[1], signal.SIGSTOP)
        os.kill(running.pids[0], signal.SIGTERM)
        wait_for(running, "cut off")
        os.kill(running.pids[1], signal.SIGKILL)
        running.wait()


def test_rank_0_is_not_outlived():
    with serving(DEMO, 3) as (running, server):
        os.kill(running.pids[0], signal.SIGKILL)
        running.wait()  # mpirun --enable-recovery ends with 0, whatever happened


def test_without_the_weights_the_job_ends(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for file in DEMO.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    with serving(model, 3) as (running, server):
        stream = Stream(server, prompts(server, 1)[0], tokens=3000)
        stream.some.wait()
        (model / "model.safetensors").unlink()
        os.kill(running.pids[1], signal.SIGKILL)
        running.wait()
        errors = [line for line in running.text().splitlines() if line.startswith("shoal: ") and "rank 0" not in line]
        assert len(errors) == 1, running.text()
        assert "cannot go on without" in errors[0] and "safetensors" in errors[0], running.text()


def test_needs_a_launcher_that_lets_the_others_live():
    with job("serve", "--recover", "--model", DEMO) as running:
        assert running.wait() == 2
        assert "mpirun --enable-recovery" in running.text()


@pytest.mark.skipif(BINARY != ROOT / "build" / "shoal", reason="launch/serve starts what is in build/")
def test_the_script_starts_it_so():
    with serving(DEMO, 2, launcher=(str(ROOT / "launch" / "serve"),), between=("--",)) as (running, server):
        os.kill(running.pids[1], signal.SIGKILL)
        wait_for(running, "recovered ranks=1")
        assert server.complete([5, 6, 7], max_tokens=4)
