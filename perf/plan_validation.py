#!/usr/bin/env python3
"""What `shoal plan --cluster auto` predicts of this machine, beside what `shoal bench` measures on it:

    perf/plan_validation.py [--ranks 1,2,3,4] [--precisions bf16,Q4_K_M] [--concurrency 1,4,16] [--raw FOLDER] > t.md
    perf/plan_validation.py --from FOLDER > table.md      # the predictions anew, from figures measured before

The model is one of R1's shape with 1.6 billion random parameters. For each number of ranks and precision the machine is
measured by `plan --cluster auto`, then the model by `bench`; one set of constants (SpeedConstants of planner/speed.h)
serves all rows. The machine is measured before each row and after it, and the geometric mean of both taken, because what
else it does changes from minute to minute. Random routers pick experts evenly, which `--loads` tells the planner. Needs
8 GB of memory and a machine that does nothing else."""

import argparse
import itertools
import json
import os
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARY = Path(os.environ.get("SHOAL_BUILD", ROOT / "build")) / "shoal"
PROMPT, OUTPUT = 128, 32
TRIES, SAME = 2, 0.25
CONFIG = dict(
    model_type="deepseek_v3", hidden_size=2048, num_hidden_layers=8, first_k_dense_replace=1, intermediate_size=6144,
    moe_intermediate_size=512, n_routed_experts=64, n_shared_experts=1, num_experts_per_tok=8, n_group=8, topk_group=4,
    num_attention_heads=16, num_key_value_heads=16, q_lora_rank=768, kv_lora_rank=512, qk_nope_head_dim=128,
    qk_rope_head_dim=64, v_head_dim=128, vocab_size=32768, max_position_embeddings=4096, rms_norm_eps=1e-6, rope_theta=10000,
    norm_topk_prob=True, scoring_func="sigmoid", topk_method="noaux_tc", routed_scaling_factor=2.5, moe_layer_freq=1,
    num_nextn_predict_layers=0, tie_word_embeddings=False, torch_dtype="bfloat16", attention_bias=False, eos_token_id=1)


def run(command):
    environment = dict(os.environ)
    if os.geteuid() == 0:  # mpirun asks those twice whether they mean it
        environment |= dict(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return json.loads(done.stdout)


def launcher(ranks):
    """One rank alone has all cores; more share them, however many there are."""
    return [BINARY] if ranks == 1 else ["mpirun", "--oversubscribe", "-n", ranks, BINARY]


def mean(one, other):
    """Of two clusters, number by number."""
    if isinstance(one, dict):
        return {key: mean(value, other[key]) if key in other else value for key, value in one.items()}
    if isinstance(one, list):
        return [mean(a, b) for a, b in zip(one, other)]
    return (one * other) ** 0.5 if isinstance(one, float) and one > 0 and other > 0 else one


def bandwidth(cluster):
    return cluster["groups"][0]["device"]["memory_bandwidth_gb_s"]


def machine(model, ranks, precision):
    return run([*launcher(ranks), "plan", "--model", model, "--precision", precision, "--cluster", "auto", "--pin", "--context",
                256, "--json"])["cluster"]


def measure(model, ranks, precision, sequences, repeat, before):
    """The machine, the model, and the machine again. Where the two differ by much, the machine changed meanwhile (a hypervisor
    moves virtual cores), and it is done anew."""
    before = before or machine(model, ranks, precision)
    for _ in range(TRIES):
        bench = run([*launcher(ranks), "bench", "--model", model, "--weights", "random", "--precision", precision, "--compute",
                     "bf16", "--pin", "--concurrency", sequences, "--prompt-tokens", PROMPT, "--output-tokens", OUTPUT,
                     "--repeat", rounds(sequences, repeat), "--max-model-len", 512, "--quiet", "--json"])
        earlier, before = before, machine(model, ranks, precision)
        if abs(bandwidth(earlier) / bandwidth(before) - 1) < SAME:
            break
    return dict(ranks=ranks, precision=precision, machine=[earlier, before], result=bench["results"][0])


def rounds(sequences, repeat):
    """Short rounds are repeated oftener, to see as much of what else the machine does."""
    return repeat * max(1, 8 // sequences)


def predict(folder, model, measured, *options):
    cluster, loads = Path(folder, "cluster.json"), Path(folder, "loads.json")
    cluster.write_text(json.dumps(mean(*measured["machine"])))
    experts, layers = CONFIG["n_routed_experts"], CONFIG["num_hidden_layers"] - CONFIG["first_k_dense_replace"]
    loads.write_text(json.dumps([[1] * experts] * layers))
    return run([BINARY, "plan", "--model", model, "--precision", measured["precision"], "--cluster", cluster, "--loads", loads,
                "--context", PROMPT + OUTPUT // 2, "--json", *options])


def row(folder, model, measured):
    """A step is the plan's; reading the prompts is what `--simulate` says of so many requests at once, until the last of them
    has its first token."""
    result = measured["result"]
    concurrency = result["concurrency"]
    step = predict(folder, model, measured, "--concurrency", concurrency)["prediction"]["tpot_ms"]
    trace = Path(folder, "trace.json")
    trace.write_text(json.dumps([[0, PROMPT, OUTPUT]] * concurrency))
    last = predict(folder, model, measured, "--simulate", "--trace", trace)["ttft_ms"]["p99"]
    prompts, what = PROMPT * concurrency / last * 1e3, result["prefill_tokens_per_s"]
    return [step / result["tpot_ms"], prompts / what], (
        f"| {measured['ranks']} | {measured['precision']} | {concurrency} | {step:.1f} | {result['tpot_ms']:.1f} | "
        f"{step / result['tpot_ms']:.2f} | {prompts:.0f} | {what:.0f} | {prompts / what:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("ranks", "1,2,3,4"), ("precisions", "bf16,Q4_K_M"), ("concurrency", "1,4,16")):
        parser.add_argument("--" + name, default=default)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--raw", type=Path, help="keep what was measured in this folder")
    parser.add_argument("--from", type=Path, dest="known", help="measure nothing, take it from this folder")
    options = parser.parse_args()
    print("| ranks | precision | sequences | step ms, predicted | measured | ratio "
          "| prompts tokens/s, predicted | measured | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "config.json")
        model.write_text(json.dumps(CONFIG))
        for ranks, precision in itertools.product(map(int, options.ranks.split(",")), options.precisions.split(",")):
            before = None
            for sequences in map(int, options.concurrency.split(",")):
                name = f"{precision}-{ranks}-{sequences}.json"
                if options.known:
                    measured = json.loads((options.known / name).read_text())
                else:
                    measured = measure(model, ranks, precision, sequences, options.repeat, before)
                    before = measured["machine"][1]
                if options.raw:
                    options.raw.mkdir(parents=True, exist_ok=True)
                    (options.raw / name).write_text(json.dumps(measured, indent=1))
                two, text = row(folder, model, measured)
                ratios += two
                print(text, flush=True)
    within = sum(0.8 <= r <= 1.2 for r in ratios)
    print(f"\n{within} of {len(ratios)} predictions within 20 %; the furthest are {min(ratios):.2f} and {max(ratios):.2f} of what "
          f"was measured. {len(os.sched_getaffinity(0))} cores.")


if __name__ == "__main__":
    main()
