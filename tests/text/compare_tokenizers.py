"""Compares tokenize_tool with the `tokenizers` package on random texts, for every family and for given tokenizer.json
files, and measures both on the same text.

    python tests/text/compare_tokenizers.py build/tokenize_tool [--texts 2000] [--seed 1] [--time] [tokenizer.json ...]
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from tokenizers import Tokenizer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "golden"))
import tokenizer_families as families  # noqa: E402


def run_tool(tool, path, records):
    data = b"".join(f"{flags} {len(text)}\n".encode() + text for flags, text in records)
    done = subprocess.run([tool, path], input=data, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode().split("\n")[:-1]


def expected(tokenizer, flags, data):
    text = data.decode("utf-8", "replace")
    tokenizer.encode_special_tokens = "t" in flags
    ids = tokenizer.encode(text, add_special_tokens="s" in flags).ids
    if "d" in flags or "k" in flags:
        return tokenizer.decode(ids, skip_special_tokens="k" in flags)
    return ids


def compare(tool, name, path, texts, seed):
    tokenizer = Tokenizer.from_file(str(path))
    rng = random.Random(f"{name} {seed}")
    added = families.added_texts(tokenizer)
    records = [(rng.choice(["-", "s", "t", "d", "k"]), families.random_text(rng, added)) for _ in range(texts)]
    records += [(flags, s.encode()) for s in families.SAMPLES for flags in ("s", "d")]
    wrong = 0
    for (flags, data), line in zip(records, run_tool(tool, path, records), strict=True):
        got = json.loads(line) if flags in "dk" else [int(i) for i in line.split()]
        want = expected(tokenizer, flags, data)
        if got != want:
            wrong += 1
            if wrong <= 3:
                print(f"  {name} {flags} {data!r} {data.decode('utf-8', 'replace')!r}\n    got  {got}\n    want {want}")
                if flags not in "dk":
                    print("    got ", [tokenizer.id_to_token(i) for i in got])
                    print("    want", [tokenizer.id_to_token(i) for i in want])
    print(f"{name}: {len(records)} texts, {wrong} differ")
    return wrong


def measure(tool, path, name):
    rng = random.Random(0)
    text = "".join(rng.choice(families.SAMPLES) + rng.choice("\n \t") for _ in range(60000))
    size = len(text.encode())
    tokenizer = Tokenizer.from_file(str(path))
    with tempfile.NamedTemporaryFile() as file:
        file.write(text.encode())
        file.flush()
        seconds, ids = subprocess.run([tool, path, "time", file.name], stdout=subprocess.PIPE, check=True,
                                      text=True).stdout.split()
    start = time.perf_counter()
    reference = tokenizer.encode(text, add_special_tokens=False).ids
    theirs = time.perf_counter() - start
    assert int(ids) == len(reference)
    print(f"{name}: {size / 1e6:.1f} MB, ours {size / 1e6 / float(seconds):.1f} MB/s, "
          f"tokenizers {size / 1e6 / theirs:.1f} MB/s")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tool")
    parser.add_argument("files", nargs="*")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--only")
    parser.add_argument("--time", action="store_true")
    options = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        paths = {pathlib.Path(f).parent.name + "/" + pathlib.Path(f).name: f for f in options.files}
        for name, build in families.FAMILIES.items():
            if options.only and name not in options.only.split(","):
                continue
            paths[name] = f"{folder}/{name}.json"
            build().save(paths[name])
        for name, path in paths.items():
            wrong += compare(options.tool, name, path, options.texts, options.seed)
            if options.time:
                measure(options.tool, path, name)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
