"""`shoal quantize` where an earlier run was killed, or failed: it goes on with what that one wrote if it was of the same
conversion, and with nothing else, though sizes and headers be the same."""

import json
import os
import shutil
import subprocess
import time

import gguf
import numpy as np
import pytest
from serving import BINARY, ROOT

DEMO = ROOT / "launch" / "demo-model"
LAST = "model.layers.3.mlp.shared_experts.down_proj.weight"  # of its tensors, in the order of conversion
pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built")


def command(source, out, kind, importance=None):
    weighed = ["--importance", importance] if importance else []
    return [BINARY, "quantize", source, out, "--type", kind, "--threads", "1", "--quiet", "--json", *weighed]


def quantize(*arguments, code=0):
    done = subprocess.run(command(*arguments), capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stderr


def start_and_kill(*arguments, out):
    """Ends a run without a word as soon as it has begun to write."""
    journal = out.with_name(out.name + ".journal")
    with subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (journal.exists() and journal.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert process.poll() is None, "it was done before it could be killed"
        process.kill()
    assert journal.exists()


@pytest.fixture(scope="module")
def importances(tmp_path_factory):
    """Two files, of which one has the other's numbers in the reverse order."""
    folder = tmp_path_factory.mktemp("importances")
    (folder / "text").write_text("What number comes next? 52, 55, 60, 67, 76, 87\n" * 12)
    subprocess.run([BINARY, "eval", "--model", DEMO, "--text", folder / "text", "--importance", folder / "one", "--quiet",
                    "--threads", "1"], check=True, stdout=subprocess.DEVNULL)
    shutil.copy(folder / "one", folder / "two")
    reader = gguf.GGUFReader(folder / "two", "r+")
    for tensor in reader.tensors:
        if tensor.name.endswith(".in_sum2"):
            tensor.data[...] = np.flip(tensor.data, -1).copy()
    reader.data.flush()
    return folder / "one", folder / "two"


@pytest.mark.parametrize("kind,file", [("Q2_K", "out"), ("INT4", "out/model.safetensors")])
def test_what_was_whole_before_is_not_the_outcome(kind, file, importances, tmp_path):
    one, two = importances
    out = tmp_path / file
    quantize(DEMO, tmp_path / "out", kind, one)
    old = out.read_bytes()
    start_and_kill(DEMO, tmp_path / "out", kind, two, out=out)
    assert out.read_bytes() == old
    quantize(DEMO, tmp_path / "out", kind, two)
    fresh = tmp_path / file.replace("out", "fresh")
    quantize(DEMO, tmp_path / "fresh", kind, two)
    assert out.read_bytes() == fresh.read_bytes() != old
    assert not list(out.parent.glob("*.partial")) and not list(out.parent.glob("*.journal"))


def change(model, tensor, content):
    """Puts other bytes at the beginning of a tensor, and the time back. Returns those that were there."""
    path = model / "model.safetensors"
    time_before = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[tensor]
        assert entry["dtype"] == "BF16"
        file.seek(8 + length + entry["data_offsets"][0])
        before = file.read(len(content))
        file.seek(-len(content), os.SEEK_CUR)
        file.write(content)
    os.utime(path, ns=(time_before, time_before))
    return before


@pytest.mark.parametrize("other", ["nothing", "importance", "no importance", "folder", "time"])
def test_only_the_same_conversion_goes_on(other, importances, tmp_path):
    one, two = importances
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(DEMO, source)
    before = change(source, LAST, b"\xc0\x7f")  # a NaN, where the first run ends
    assert "not finite" in quantize(source, out, "Q2_K", one, code=1)
    change(source, LAST, before)
    journal, partial = tmp_path / "out.journal", tmp_path / "out.partial"
    assert journal.read_text().count("squared_error") > 100

    importance = {"importance": two, "no importance": None}.get(other, one)
    if other == "folder":
        source = shutil.copytree(source, tmp_path / "elsewhere" / "source")  # with its times
    if other in ("folder", "time"):
        change(source, "model.embed_tokens.weight", bytes(100_000))
    if other == "time":
        os.utime(source / "model.safetensors")
    quantize(source, tmp_path / "fresh", "Q2_K", importance)
    fresh = bytearray((tmp_path / "fresh").read_bytes())
    if other == "nothing":  # anything, to see that what the journal names is left as it is
        done = next(t for t in gguf.GGUFReader(partial).tensors if t.name == "token_embd.weight")
        mark = bytes([7]) * done.n_bytes
        with partial.open("r+b") as file:
            file.seek(done.data_offset)
            file.write(mark)
        fresh[done.data_offset:done.data_offset + done.n_bytes] = mark
        with journal.open("a") as file:
            file.write('{"tens')  # cut off
    quantize(source, out, "Q2_K", importance)
    assert out.read_bytes() == fresh
    assert not partial.exists() and not journal.exists()
