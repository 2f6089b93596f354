"""Renders templates with Jinja2 as transformers sets it up, and with chat_template_tool, to compare them."""

import copy
import functools
import json
import os
import pathlib
import subprocess
import time

import jinja2
from transformers.utils import chat_template_utils

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOL = pathlib.Path(os.environ.get("SHOAL_BUILD", ROOT / "build")) / "chat_template_tool"

# transformers' own environment, filters and functions included.
ENVIRONMENT = chat_template_utils._compile_jinja_template("").environment


@functools.lru_cache(maxsize=None)
def compiled(template):
    return ENVIRONMENT.from_string(template)


def reference(job):
    """What Jinja2 gives for a job of chat_template_tool: {"text": ...} or {"error": ..., "raised": bool}."""
    try:
        if "variables" in job:
            # Of its own: Jinja2's indent changes a list that it is given, before it fails.
            text = compiled(job["template"]).render(**copy.deepcopy(job["variables"]))
        else:
            variables = {**job.get("special_tokens", {}), **(job.get("extra") or {})}
            text = chat_template_utils.render_jinja_template(
                [job["messages"]], tools=job.get("tools"), chat_template=job["template"],
                add_generation_prompt=job.get("add_generation_prompt", False), **variables)[0][0]
        text.encode()  # lone surrogates cannot be sent anywhere
        return {"text": text}
    except Exception as e:  # noqa: BLE001: whatever a template does wrong
        # raise_exception raises the base class itself.
        return {"error": f"{type(e).__name__}: {e}", "raised": str(e) if type(e) is jinja2.TemplateError else None}


def run_tool(jobs):
    data = "".join(json.dumps(job) + "\n" for job in jobs)
    done = subprocess.run([TOOL], input=data.encode(), stdout=subprocess.PIPE, check=True, timeout=600)
    return [json.loads(line) for line in done.stdout.decode().split("\n")[:-1]]


def differs(want, got):
    if "text" in want or "text" in got:
        return want.get("text") != got.get("text")
    return want["raised"] is not None and want["raised"] != got["error"]


def compare(jobs):
    """The jobs whose outcomes differ, each with both outcomes."""
    wrong = []
    for job, got in zip(jobs, run_tool(jobs), strict=True):
        want = reference(job)
        if differs(want, got) and "strftime_now" in job["template"]:
            time.sleep(0.1)  # the clock may have gone on between the two
            want, got = reference(job), run_tool([job])[0]
        if differs(want, got):
            wrong.append((job, want, got))
    return wrong


def explain(wrong, limit=3):
    """The first of what compare found, for people."""
    out = [f"{len(wrong)} differ"]
    for job, want, got in wrong[:limit]:
        shown = {key: value for key, value in job.items() if key != "template" or "variables" in job}
        out.append(f"{json.dumps(shown, ensure_ascii=False)[:1500]}\n  want {want}\n  got  {got}")
        if "text" in want and "text" in got:
            at = len(os.path.commonprefix([want["text"], got["text"]]))
            out.append(f"  first at {at}: want {want['text'][at:at + 80]!r}\n  got {got['text'][at:at + 80]!r}")
    return "\n".join(out)
