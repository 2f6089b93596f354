#!/usr/bin/env python3
"""What the coordinator and HTTP can carry: tokens/s and requests/s of a model that costs next to nothing (one layer of
width 32), as `shoal bench --url` on the same machine sees them, and where the server's processor time goes.

    perf/server_overhead.py [--users 64] [--perf]        --perf: with `perf record`, the hottest functions
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "perf"))
from compare_servers import SHOAL, free_port, start  # noqa: E402

LOADS = [("answers of 200 tokens", 8, 200, 20), ("answers of 1 token", 8, 1, 60), ("prompts of 500 tokens, answers of 1", 500, 1, 10)]


def threads_s(pid):
    """Processor seconds of each thread so far."""
    tick = os.sysconf("SC_CLK_TCK")
    seconds = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name, fields = (task / "comm").read_text().strip(), (task / "stat").read_text().rsplit(")", 1)[1].split()
        seconds[f"{name}/{task.name}"] = (int(fields[11]) + int(fields[12])) / tick
    return seconds


def measure(port, users, prompt, output, each):
    done = subprocess.run([SHOAL, "bench", "--url", f"http://127.0.0.1:{port}", "--concurrency", str(users), "--json",
                           "--prompt-tokens", str(prompt), "--output-tokens", str(output), "--requests-per-user", str(each)],
                          capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return json.loads(done.stdout)["results"][0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--perf", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, ROOT / "perf" / "one_layer_model.py", folder + "/model"], check=True)
        port = free_port()
        with open(folder + "/log", "w") as log:
            server = start("shoal", [SHOAL, "serve", "--model", folder + "/model", "--port", str(port), "--threads", "1",
                                     "--no-access-log", "--kv-cache-gb", "0.2"], port, log)
        try:
            for name, prompt, output, each in LOADS:
                before, begin = threads_s(server.pid), time.monotonic()
                recorder = subprocess.Popen(["perf", "record", "-q", "-g", "-F", "499", "-p", str(server.pid), "-o",
                                             folder + "/perf.data"]) if asked.perf else None
                row = measure(port, asked.users, prompt, output, each)
                seconds = time.monotonic() - begin
                busy = sorted(((value - before.get(thread, 0), thread) for thread, value in threads_s(server.pid).items()),
                              reverse=True)
                print(f"{name}: {row['tokens_per_s']:.0f} tokens/s, {row['requests_per_s']:.0f} requests/s, TPOT p50 "
                      f"{row['tpot_p50_ms']:.2f} ms, TTFT p50 {row['ttft_p50_ms']:.1f} ms; processor time by thread: " +
                      ", ".join(f"{100 * used / seconds:.0f} %" for used, _ in busy if used > 0.05 * seconds), flush=True)
                if recorder:
                    recorder.send_signal(signal.SIGINT)
                    recorder.wait()
                    subprocess.run(["perf", "report", "-i", folder + "/perf.data", "--no-children", "--stdio", "-g", "none",
                                    "--percent-limit", "1.5", "-s", "symbol", "-w", "140"], stderr=subprocess.DEVNULL)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
