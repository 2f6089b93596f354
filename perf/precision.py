#!/usr/bin/env python3
"""What a precision costs: the demo model in each, measured against itself in BF16.

    python perf/precision.py --folder WORK              # quality of each; goes on where it was interrupted
    python perf/precision.py --folder WORK --speed      # speed of each, in turns, on a machine with nothing else to do
    python perf/precision.py --folder WORK --table --plot perf/precision.svg

--table prints Markdown: bytes, bits a weight, accuracy by task, perplexity, KL divergence of its predictions from the BF16
model's, speed where it was measured. Texts are problems of launch/demo/problems.py: of held-out ones the chains of thought
and answers are scored, and once more with the questions, in which the model cannot know what comes next; others give the
importance of weights. Needs a build, and the Python of tests/requirements.txt.
"""

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "launch" / "demo"))
import problems  # noqa: E402

MODEL = ROOT / "launch" / "demo-model"
SHOAL = Path(os.environ.get("SHOAL_BUILD", ROOT / "build")) / "shoal"
# Name, arguments of `shoal quantize` (none: the model as it is), whether weights are weighed by importance.
FORMS = [("BF16", None, False), ("FP8", ["--type", "FP8"], False), ("INT8", ["--type", "INT8"], False),
         ("INT4", ["--type", "INT4"], True)]
FORMS += [(t, ["--type", t], True) for t in
          ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K", "Q2_K", "IQ3_XXS", "IQ2_S", "IQ2_XXS", "IQ1_S")]
# Mixes of 2.51 bits a weight and as large as uniform types. Below 1.85 bits the demo model does not go: its names,
# vocabulary and routers are not small beside its weights.
FORMS += [("mix 2.51 bit", ["--size", "2.51bpw"], True)]
FORMS += [(f"mix as {t}", ["--size", t], True) for t in ("Q4_K_M", "Q3_K", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XXS", "IQ1_S")]


def texts(seed, held_out, count, questions=False):
    """Problems as JSON lines, of which `shoal eval` scores the chain of thought and the answer, or the question too."""
    lines = []
    for p in itertools.islice(problems.stream(seed, held_out), count):
        question, answer = f"<｜User｜>{p.prompt}<｜Assistant｜><think>\n", f"{p.response}<｜end▁of▁sentence｜>"
        lines.append({"text": question + answer} if questions else {"prompt": question, "text": answer})
    return "".join(json.dumps(line) + "\n" for line in lines)


def shoal(*arguments):
    done = subprocess.run([SHOAL, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def bytes_of(path):
    return sum(f.stat().st_size for f in path.glob("*.safetensors")) if path.is_dir() else path.stat().st_size


def parameters():
    """Of the model, and with its MTP layer, which GGUF files leave out."""
    counts = shoal("inspect", MODEL, "--json")["parameters"]
    return counts["total"], sum(counts["by_part"].values())


def path_of(folder, name, arguments):
    if not arguments:
        return MODEL
    is_folder = arguments[1] in ("FP8", "INT8", "INT4")
    return folder / (name.replace(" ", "-") + ("" if is_folder else ".gguf"))


def quality(folder, name, arguments, weighed, options):
    path = path_of(folder, name, arguments)
    if arguments:
        if name.startswith("mix as "):
            arguments = ["--size", f"{bytes_of(folder / (arguments[1] + '.gguf'))}B"]
        extra = ["--importance", folder / "importance.gguf"] if weighed else []
        shoal("quantize", MODEL, path, *arguments, *extra, "--quiet", "--json")
    report = shoal("eval", "--model", path, "--reference", folder / "reference", "--puzzles", MODEL / "puzzles.jsonl",
                   "--max-puzzles", options.puzzles, "--quiet", "--json")
    whole = shoal("eval", "--model", path, "--reference", folder / "reference-whole", "--quiet", "--json")
    size = bytes_of(path)
    return {"bytes": size, "bits": 8 * size / parameters()[path.is_dir()], **report, "whole": whole["divergence"]}


def speed(path, folder):
    """Tokens scored a second (prefill), and generated a second by 20 answers at a time."""
    report = shoal("eval", "--model", path, "--text", folder / "speed.jsonl", "--puzzles", MODEL / "puzzles.jsonl",
                   "--max-puzzles", 4, "--quiet", "--json")
    return report["perplexity"]["tokens_per_s"], report["accuracy"]["answer_tokens_per_s"]


def table(rows):
    tasks = list(next(iter(rows.values()))["accuracy"]["tasks"])
    timed = all("speed" in r for r in rows.values())
    head = ["", "MB", "bits a weight", *tasks, "perplexity", "KL", "KL 99 %", "KL max", "same top token", "KL with questions"]
    head += ["prefill tokens/s", "decode tokens/s"] if timed else []
    lines = [head, ["---"] * len(head)]
    for name, r in rows.items():
        d = r["divergence"]
        line = [name, f"{r['bytes'] / 1e6:.2f}", f"{r['bits']:.2f}",
                *(f"{100 * t['right'] / t['asked']:.0f} %" for t in r["accuracy"]["tasks"].values()),
                f"{d['perplexity']:.4f}", f"{d['kl_mean']:.1e}", f"{d['kl_99']:.1e}", f"{d['kl_max']:.2g}",
                f"{100 * d['top1_agreement']:.2f} %", f"{r['whole']['kl_mean']:.4f}"]
        lines.append(line + ([f"{value:.0f}" for value in r["speed"]] if timed else []))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot(rows, path):
    """KL divergence over bits a weight: uniform types and mixes."""
    points = [(r["bits"], r["whole"]["kl_mean"], name) for name, r in rows.items() if name != "BF16"]
    width, height, left, bottom = 760, 420, 70, 50
    low, high = -3, 1  # powers of ten
    right = max(p[0] for p in points) + 0.5

    def at(bits, kl):
        x = left + (bits - 1) / (right - 1) * (width - left - 20)
        share = (math.log10(max(kl, 10**low)) - low) / (high - low)
        return x, height - bottom - share * (height - bottom - 20)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
           f'font-size="12"><rect width="{width}" height="{height}" fill="white"/>']
    for power in range(low, high + 1):
        y = at(1, 10**power)[1]
        out.append(f'<line x1="{left}" y1="{y:.1f}" x2="{width - 20}" y2="{y:.1f}" stroke="#ddd"/>'
                   f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>')
    for bits in range(1, int(right) + 1):
        x = at(bits, 1)[0]
        out.append(f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{bits}</text>')
    out.append(f'<text x="{(left + width) / 2}" y="{height - 10}" text-anchor="middle">bits a weight</text>'
               f'<text x="16" y="{height / 2}" text-anchor="middle" transform="rotate(-90 16 {height / 2})">'
               'mean KL divergence from BF16, questions too (nats)</text>')
    for group, color in ((False, "#2563eb"), (True, "#dc2626")):
        of_group = sorted(p for p in points if p[2].startswith("mix") == group)
        for bits, kl, name in of_group:
            x, y = at(bits, kl)
            side, anchor = (-7, "end") if group else (7, "start")
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>'
                       f'<text x="{x + side:.1f}" y="{y + (14 if group else -4):.1f}" text-anchor="{anchor}" '
                       f'fill="{color}">{name}</text>')
    path.write_text("\n".join(out) + "\n</svg>\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where files and results are kept")
    parser.add_argument("--puzzles", type=int, default=40, help="of each task")
    parser.add_argument("--problems", type=int, default=100, help="whose text is scored")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--rounds", type=int, default=2, help="of --speed; the fastest counts")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    folder, results = options.folder, options.folder / "results.json"
    folder.mkdir(parents=True, exist_ok=True)
    rows = json.loads(results.read_text()) if results.exists() else {}
    if options.speed:
        best = {}
        for _ in range(options.rounds):
            for name, arguments, _ in FORMS:
                if name not in rows:
                    continue
                now = speed(path_of(folder, name, arguments), folder)
                best[name] = [max(pair) for pair in zip(now, best.get(name, now))]
        for name, pair in best.items():
            rows[name]["speed"] = pair
        results.write_text(json.dumps(rows, indent=1) + "\n")
    elif not options.table and not options.plot:
        if not rows:
            (folder / "scored.jsonl").write_text(texts(11, True, options.problems))
            (folder / "whole.jsonl").write_text(texts(11, True, options.problems, questions=True))
            (folder / "weighed.jsonl").write_text(texts(5, False, 400))
            (folder / "speed.jsonl").write_text(texts(11, True, 100))
            for name, file in (("scored", "reference"), ("whole", "reference-whole")):
                shoal("eval", "--model", MODEL, "--text", folder / f"{name}.jsonl", "--save", folder / file, "--quiet",
                      "--json")
            shoal("eval", "--model", MODEL, "--text", folder / "weighed.jsonl", "--importance",
                  folder / "importance.gguf", "--quiet", "--json")
        for form in FORMS:
            if form[0] in rows:
                continue
            rows[form[0]] = quality(folder, *form, options)
            results.write_text(json.dumps(rows, indent=1) + "\n")
            print(f"{form[0]}: KL {rows[form[0]]['divergence']['kl_mean']:.6f}", file=sys.stderr, flush=True)
    rows = {form[0]: rows[form[0]] for form in FORMS if form[0] in rows}
    if options.table:
        print(table(rows))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
