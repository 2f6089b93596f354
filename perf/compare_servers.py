#!/usr/bin/env python3
"""Shoal's server beside llama-cpp-python's, on the same GGUF file, row by row in turn, as `shoal bench --url` sees them:

    perf/compare_servers.py MODEL.gguf OUT [--users 1,2,4] [--prompt-tokens 64] [--output-tokens 64] [--requests-per-user 3]

Needs llama-cpp-python with its server (pip install 'llama-cpp-python[server]') in the Python that runs this. Both have
all cores and no other limit than that llama-cpp-python's server works on one request after the other. Writes OUT/shoal.json,
OUT/llama-cpp-python.json and OUT/servers.svg, and prints a table.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "perf"))
from plot_bench import draw  # noqa: E402

SHOAL = ROOT / "build" / "shoal"

# On cores with AMX llama.cpp puts weights where it cannot multiply them as MLA's attention needs (GGML_ASSERT
# cur_backend_id != -1, 0.3.36), unless extra buffer types are off, for which its server has no option.
LLAMA_SERVER = """
import runpy, llama_cpp, llama_cpp.llama_cpp as c
defaults = c.llama_model_default_params
def without_extra_buffers():
    params = defaults()
    params.use_extra_bufts = False
    return params
c.llama_model_default_params = llama_cpp.llama_model_default_params = without_extra_buffers
runpy.run_module("llama_cpp.server", run_name="__main__")
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(name, command, port, log):
    process = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2)
            return process
        except OSError:
            time.sleep(0.2)
    sys.exit(f"{name} did not start; see its log")


def measure(port, users, asked):
    done = subprocess.run([SHOAL, "bench", "--url", f"http://127.0.0.1:{port}", "--concurrency", str(users), "--json",
                           "--prompt-tokens", str(asked.prompt_tokens), "--output-tokens", str(asked.output_tokens),
                           "--requests-per-user", str(asked.requests_per_user)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr or done.stdout)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--users", default="1,2,4,8,16,32,64")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--requests-per-user", type=int, default=3)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    ports = {"shoal": free_port(), "llama-cpp-python": free_port()}
    cores = str(os.cpu_count())
    commands = {"shoal": [SHOAL, "serve", "--model", asked.model, "--port", str(ports["shoal"]), "--no-access-log"],
                "llama-cpp-python": [sys.executable, "-c", LLAMA_SERVER, "--model", asked.model, "--n_ctx", "4096",
                                     "--port", str(ports["llama-cpp-python"]), "--n_threads", cores,
                                     "--n_threads_batch", cores, "--interrupt_requests", "false"]}
    reports, running = {}, []
    print(f"{'users':>5} {'server':>18} {'tokens/s':>9} {'each':>9} {'TTFT p50':>9} {'p99 ms':>9} {'TPOT p50':>9} {'p99 ms':>8}")
    try:
        for name, command in commands.items():
            running.append(start(name, command, ports[name], open(asked.out / f"{name}.log", "w")))
        for users in map(int, asked.users.split(",")):
            for name, port in ports.items():
                report = measure(port, users, asked)
                row, = report["results"]
                reports.setdefault(name, {**report, "results": []})["results"].append(row)
                print(f"{users:>5} {name:>18} {row['tokens_per_s']:>9.1f} {row['tokens_per_s_per_user']:>9.1f} "
                      f"{row['ttft_p50_ms']:>9.1f} {row['ttft_p99_ms']:>9.1f} {row['tpot_p50_ms']:>9.2f} "
                      f"{row['tpot_p99_ms']:>8.2f}", flush=True)
    finally:
        for process in running:
            process.terminate()
    for name, report in reports.items():
        (asked.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (asked.out / "servers.svg").write_text(draw(reports))


if __name__ == "__main__":
    main()
