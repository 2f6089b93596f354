"""Accuracy of the demo model: greedy answers to held-out problems, task by task."""

import argparse
import json
import pathlib

import torch
from tokenizers import Tokenizer

import problems
import tokenizer as tokens
from model import DeepSeek, generate

LIMIT = 128


def answer_of(text: str) -> str:
    """What follows the thought."""
    return text.split(tokens.END_THINK)[-1].strip()


def run(model: DeepSeek, tokenizer: Tokenizer, chosen: list[problems.Problem], batch: int = 128):
    """Yields each problem with the model's full greedy response."""
    model.eval()
    encoded = [tokenizer.encode(tokens.render(p.prompt)).ids for p in chosen]
    stop = tokenizer.token_to_id(tokens.EOS)
    order = sorted(range(len(chosen)), key=lambda i: (chosen[i].task, len(encoded[i])))
    for start in range(0, len(order), batch):
        part = order[start:start + batch]
        for i, out in zip(part, generate(model, [encoded[i] for i in part], stop, LIMIT)):
            yield chosen[i], tokenizer.decode(out, skip_special_tokens=False)
    model.train()


def right_answers(model: DeepSeek, tokenizer: Tokenizer, chosen: list[problems.Problem]):
    """The problems whose final answer is exactly right."""
    return [p for p, text in run(model, tokenizer, chosen) if answer_of(text) == p.answer]


def expert_load(model: DeepSeek, tokenizer: Tokenizer, responses: list) -> dict:
    """Tokens routed to each expert, per layer, over prompts and responses; overall and by task."""
    def empty():
        return {"tokens": 0, "layers": {str(i): [0] * len(gate.load) for i, gate in model.gates.items()}}

    total, tasks = empty(), {task: empty() for task in problems.TASKS}
    for problem, text in responses:
        ids = torch.tensor([tokenizer.encode(tokens.render(problem.prompt) + text).ids])
        for gate in model.gates.values():
            gate.load.zero_()
        hidden = model(ids)
        model.forward_mtp(hidden[:, :-1], ids[:, 1:])
        for counts in (total, tasks[problem.task]):
            counts["tokens"] += ids.numel()
            for i, gate in model.gates.items():
                counts["layers"][str(i)] = [a + int(b) for a, b in zip(counts["layers"][str(i)], gate.load)]
    return {"top_k": model.config.num_experts_per_tok, **total, "tasks": tasks}


if __name__ == "__main__":
    from export import load

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path, help="an exported model, BF16 or FP8")
    parser.add_argument("--per-task", type=int, default=100)
    parser.add_argument("--failures", type=int, default=0, help="wrong responses to print per task")
    parser.add_argument("--write", action="store_true", help="write accuracy.json and expert_load.json")
    args = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = Tokenizer.from_file(str(args.folder / "tokenizer.json"))
    model = load(args.folder)
    with torch.inference_mode():
        responses = list(run(model, tokenizer, problems.distinct_held_out(args.per_task)))
        shares = {task: sum(p.task == task and answer_of(text) == p.answer for p, text in responses)
                  / args.per_task for task in problems.TASKS}
        loads = expert_load(model, tokenizer, responses)
    for task in problems.TASKS:
        wrong = [(p, t) for p, t in responses if p.task == task and answer_of(t) != p.answer]
        for problem, text in wrong[:args.failures]:
            print(f"--- {task}: {problem.prompt}\n{text}\n[expected {problem.answer}]")
    report = {"problems_per_task": args.per_task, "decoding": "greedy", "accuracy": shares,
              "average": round(sum(shares.values()) / len(shares), 4)}
    print(json.dumps(report, indent=2))
    for layer, counts in loads["layers"].items():
        print(f"layer {layer}: busiest expert at {max(counts) * len(counts) / sum(counts):.2f} of the mean load")
    if args.write:
        (args.folder / "accuracy.json").write_text(json.dumps(report, indent=2) + "\n")
        (args.folder / "expert_load.json").write_text(json.dumps(loads) + "\n")
