"""lm-evaluation-harness against the server: log-likelihoods of a local multiple-choice file in MMLU's form, and a chat
task. What it measures is compared with log-probabilities asked for token by token, not with what it says itself."""

import json
import os
import subprocess
import sys

import pytest
from conftest import DEMO_MODEL
from tokenizers import Tokenizer

pytest.importorskip("lm_eval", reason="lm-eval is not installed: tests/venv --all")

def sums():
    """Questions of the kind that the demo model was trained for, with the right answer as B."""
    puzzles = map(json.loads, (DEMO_MODEL / "puzzles.jsonl").read_text().splitlines())
    chosen = [puzzle for puzzle in puzzles if puzzle["task"] == "arithmetic"][:8]
    return [{"question": puzzle["prompt"], "choices": [str(int(puzzle["answer"]) + d) for d in (-1, 0, 1, 2)], "answer": 1}
            for puzzle in chosen]


QUESTIONS = sums()

MULTIPLE_CHOICE = """
task: local_mmlu
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question.strip()}}}}\\nA. {{{{choices[0]}}}}\\nB. {{{{choices[1]}}}}\\nC. {{{{choices[2]}}}}\\nD. {{{{choices[3]}}}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
GENERATE = """
task: local_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["</s>"], max_gen_toks: 300, do_sample: false}}
filter_list: [{{name: number, filter: [{{function: regex, regex_pattern: "(-?[0-9]+)"}}, {{function: take_first}}]}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    for name, text in (("choice", MULTIPLE_CHOICE), ("generate", GENERATE)):
        (folder / f"{name}.yaml").write_text(text.format(file=file))
    return folder


def evaluate(tasks, task, model, arguments, *options):
    """(results, samples) of a run of the harness as people start it."""
    out = tasks / f"out-{task}"
    command = [sys.executable, "-m", "lm_eval", "--model", model, "--model_args", ",".join(arguments), "--tasks", task,
               "--include_path", str(tasks), "--output_path", str(out), "--log_samples", *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tasks / "cache"),
                   "OPENAI_API_KEY": "any"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(next(out.glob("**/results_*.json")).read_text())["results"][task]
    lines = next(out.glob("**/samples_*.jsonl")).read_text().splitlines()
    return results, [json.loads(line) for line in lines]


def test_local_completions_scores_multiple_choice(server, tasks):
    results, samples = evaluate(tasks, "local_mmlu", "local-completions", [
        f"model={server.model}", f"base_url={server.url}/v1/completions", "num_concurrent=4", "tokenized_requests=True",
        "tokenizer_backend=huggingface", f"tokenizer={DEMO_MODEL}"], "--batch_size", "4")
    assert 0 <= results["acc,none"] <= 1 and len(samples) == len(QUESTIONS)
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    for sample in samples:
        likelihoods = [float(response[0][0]) for response in sample["resps"]]
        for choice, (context, answer) in zip(likelihoods, ((argument["arg_0"], argument["arg_1"])
                                                           for argument in sample["arguments"].values())):
            ids = tokenizer.encode(context + answer, add_special_tokens=False).ids
            behind = len(ids) - len(tokenizer.encode(context, add_special_tokens=False).ids)
            assert choice == pytest.approx(sum(server.score(ids)[-behind:]), abs=2e-3)
        best = max(range(4), key=likelihoods.__getitem__)
        assert sample["acc"] == (best == sample["doc"]["answer"])


def test_local_chat_completions_generates(server, tasks):
    results, samples = evaluate(tasks, "local_generate", "local-chat-completions", [
        f"model={server.model}", f"base_url={server.url}/v1/chat/completions", "num_concurrent=4"], "--apply_chat_template")
    assert len(samples) == len(QUESTIONS)
    # The demo model gets all of a hundred such puzzles right, thinking first; the harness sees the answer without the thinking.
    assert results["exact_match,number"] >= 0.8, [sample["resps"] + sample["filtered_resps"] for sample in samples]
