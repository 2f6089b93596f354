#!/usr/bin/env python3
"""How fast one GPU does a rank's share of R1 under expert parallelism, and what that makes of the whole:

  perf/gpu/rank_share.py [--ep 8 16 32] [--users 32 128] [--context 1024] [--device cuda] [--json FILE]

Full-size layers with random weights, with as many routed experts as one of --ep ranks has, each of which gets as many tokens
as it would from all ranks (top_k of them for every token here: 256 / EP experts, so --ep is 32 at most). The first dense and
one or more MoE layers are measured by `shoal bench`, the others reckoned to take as long as the last ones. An exchange is
modelled, not measured: rows to and answers from the ranks that a token's experts are on, over --link GB/s of which 80 % are
reached, and --latency us each way. Printed are tokens/s of a GPU without it, with it after the other, and with both at once.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LINK_SHARE = 0.8  # of a link's rate that an exchange reaches; planner/speed.h


def share_of(card, ranks):
    """The model that a rank computes: its experts, without groups, which would leave most of them out."""
    experts, top_k = card["n_routed_experts"] // ranks, card["num_experts_per_tok"]
    if experts < top_k:
        sys.exit(f"--ep {ranks}: {experts} experts on a rank are fewer than the {top_k} of a token; at most "
                 f"{card['n_routed_experts'] // top_k} can be measured")
    return {**card, "n_routed_experts": experts, "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0}


def ranks_of_token(card, ranks):
    """Other ranks that a token goes to on average, with groups of experts that lie side by side, drawn at random."""
    draw, n, tries = random.Random(1), card["n_routed_experts"], 4000
    groups, of_group, kept = card.get("n_group") or 1, n // (card.get("n_group") or 1), card.get("topk_group") or 1
    seen = 0
    for _ in range(tries):
        open_to = [e for g in draw.sample(range(groups), kept) for e in range(g * of_group, (g + 1) * of_group)]
        seen += len({e * ranks // n for e in draw.sample(open_to, card["num_experts_per_tok"])})
    return seen / tries * (ranks - 1) / ranks


def bench(arguments, folder, layers):
    """{users: us of a decoding step}."""
    command = [arguments.build / "shoal", "bench", "--weights", "random", "--model", folder, "--layers", str(layers),
               "--precision", arguments.precision, "--device", arguments.device, "--compute", arguments.compute,
               "--prompt-tokens", str(arguments.context), "--output-tokens", str(arguments.steps), "--json",
               "--max-num-seqs", str(max(arguments.users)), "--concurrency", *map(str, arguments.users)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"shoal bench with {layers} layers ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    report = json.loads(done.stdout)
    return report["device"], {r["concurrency"]: 1e3 * r["tpot_ms"] for r in report["results"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ep", type=int, nargs="+", default=[8, 16, 32], help="ranks that share the experts")
    parser.add_argument("--users", type=int, nargs="+", default=[32, 128], help="on each rank")
    parser.add_argument("--context", type=int, default=1024, help="tokens that each has before it is answered")
    parser.add_argument("--steps", type=int, default=32, help="tokens of each answer")
    parser.add_argument("--moe-layers", type=int, nargs=2, default=[1, 4], help="fewest and most that are measured")
    parser.add_argument("--model", default="deepseek-r1", help="a card of planner/cards/models")
    parser.add_argument("--precision", default="fp8")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compute", default="fp8")
    parser.add_argument("--link", type=float, help="GB/s of a GPU to others (default: 450 to 8 ranks, else 50)")
    parser.add_argument("--latency", type=float, help="us of an exchange, one way (default: 8 to 8 ranks, else 20)")
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    card = json.loads((ROOT / "planner/cards/models" / f"{arguments.model}.json").read_text())
    dense, hidden = card["first_k_dense_replace"], card["hidden_size"]
    moe = card["num_hidden_layers"] - dense
    there, back = (hidden * 132 // 128, hidden * 2) if arguments.compute == "fp8" else (hidden * 2, hidden * 2)
    few, many = arguments.moe_layers
    rows = []
    print(f"{'EP':>4} {'users':>6} {'layer us':>9} {'step ms':>8} {'exchange us':>12} {'tok/s alone':>12} {'in turn':>9} "
          f"{'at once':>9}")
    for ranks in arguments.ep:
        link = 1e3 * (arguments.link or (450 if ranks <= 8 else 50)) * LINK_SHARE  # bytes a us
        latency = arguments.latency or (8 if ranks <= 8 else 20)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(share_of(card, ranks)))
            device, short = bench(arguments, folder, dense + few)
            device, long = bench(arguments, folder, dense + many)
        others = ranks_of_token(card, ranks)
        for users in arguments.users:
            layer = (long[users] - short[users]) / (many - few)
            step = long[users] + (moe - many) * layer
            exchange = 2 * latency + users * others * (there + back) / link
            alone, in_turn = step, step + moe * exchange
            at_once = max(step, step - moe * layer + moe * max(layer, exchange))
            rows.append({"ep": ranks, "users": users, "layer_us": layer, "step_us": step, "exchange_us": exchange,
                         "tokens_per_s": {k: 1e6 * users / t for k, t in
                                          (("alone", alone), ("in_turn", in_turn), ("at_once", at_once))}})
            speed = rows[-1]["tokens_per_s"]
            print(f"{ranks:>4} {users:>6} {layer:>9.0f} {1e-3 * step:>8.2f} {exchange:>12.0f} {speed['alone']:>12.0f} "
                  f"{speed['in_turn']:>9.0f} {speed['at_once']:>9.0f}", flush=True)
    print(f"\n{device}; {arguments.model} in {arguments.precision}, {arguments.context} tokens of context; "
          f"{moe} MoE layers, {few} and {many} measured")
    if arguments.json:
        arguments.json.write_text(json.dumps({"device": device, "model": arguments.model, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
