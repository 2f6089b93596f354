"""The demo model solves its held-out puzzles through the chat API, with the same words on 1, 2 and 4 ranks."""

import concurrent.futures
import json
import math
import os

import pytest
from serving import BINARY, ROOT, serve

MODEL = ROOT / "launch" / "demo-model"
PER_TASK = int(os.environ.get("SHOAL_DEMO_PUZZLES", "20"))  # of each task; there are 100

pytestmark = [
    pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built"),
    pytest.mark.skipif(not (MODEL / "model.safetensors").exists(), reason="the demo model's weights are not here"),
]


def puzzles():
    """The first PER_TASK of every task."""
    chosen = {}
    for line in (MODEL / "puzzles.jsonl").read_text().splitlines():
        puzzle = json.loads(line)
        if len(chosen.setdefault(puzzle["task"], [])) < PER_TASK:
            chosen[puzzle["task"]].append(puzzle)
    return [puzzle for task in chosen.values() for puzzle in task]


def responses(server, prompts):
    """(thought, answer) of each, many at a time."""

    def ask(prompt):
        body = {"model": server.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0,
                "max_tokens": 256}
        message = server.post("/v1/chat/completions", body)["choices"][0]["message"]
        return message.get("reasoning_content"), message["content"].split("</think>")[-1].strip()

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return list(pool.map(ask, prompts))


@pytest.fixture(scope="module")
def by_ranks():
    found = {}
    for ranks in (1, 2, 4):
        with serve(MODEL, ranks) as server:
            found[ranks] = responses(server, [puzzle["prompt"] for puzzle in puzzles()])
    return found


def test_same_words_on_any_number_of_ranks(by_ranks):
    for ranks, found in by_ranks.items():
        for one, many, puzzle in zip(by_ranks[1], found, puzzles(), strict=True):
            assert one == many, f"{ranks} ranks answer differently: {puzzle['prompt']}"


def test_accuracy(by_ranks):
    """As high as accuracy.json says of all puzzles, less three standard deviations of a draw of this many."""
    stated = json.loads((MODEL / "accuracy.json").read_text())["accuracy"]
    right = {task: 0 for task in stated}
    for puzzle, (_, answer) in zip(puzzles(), by_ranks[1], strict=True):
        right[puzzle["task"]] += answer == puzzle["answer"]
    for task, count in right.items():
        expected = stated[task]
        print(f"{task}: {count} of {PER_TASK}, stated {expected:.0%}")
        slack = 3 * math.sqrt(max(expected * (1 - expected), 0.02) / PER_TASK)
        assert count / PER_TASK >= expected - slack, task
