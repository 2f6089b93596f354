"""What nvcc made of the GPU's kernels: registers, shared memory and the instructions that matter, without a GPU.

    python tests/cuda/resources_test.py --write     writes the table anew (look at the difference before committing it)
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("SHOAL_BUILD", ROOT / "build"))
LIBRARY = BUILD / "libshoal_cuda.a"
TABLE = ROOT / "kernels" / "cuda" / "resources.tsv"
COLUMNS = ("architecture", "kernel", "registers", "shared_bytes")


def cuobjdump(*arguments):
    """Its output for the library; with what PyPI's packages brought (nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm)."""
    folders = [str(f) for p in sys.path for f in Path(p).glob("nvidia/*/bin")]
    path = os.pathsep.join([*folders, os.environ["PATH"]])
    tool = shutil.which("cuobjdump", path=path)
    assert tool, "cuobjdump is missing; tests/venv installs it"
    result = subprocess.run([tool, *arguments, LIBRARY], capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert "fatal" not in result.stdout + result.stderr, result.stdout + result.stderr
    return result.stdout


def demangled(names):
    return subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout.split("\n")


def short(name):
    """shoal::cuda::(anonymous namespace)::linear_kernel<(shoal::cuda::WeightForm)1, 4>(...) -> linear_kernel<1, 4>"""
    name = re.sub(r"shoal::cuda::|\(anonymous namespace\)::|^void ", "", name)
    name = re.sub(r"\((WeightForm|Wire|int|bool|shoal::Scales|shoal::Coding)\)", "", name)
    return name[: name.index("(")] if "(" in name else name


def usage():
    """{(architecture, kernel): {REG, STACK, SHARED, LOCAL}} of every kernel in the build."""
    found, architecture, function = {}, None, None
    for line in cuobjdump("--dump-resource-usage").splitlines():
        if match := re.match(r"\s*(?:arch = |code for )(\S+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            function = match[1]
        elif "REG:" in line and function:
            found[architecture, function] = {k: int(v) for k, v in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)}
    names = sorted({function for _, function in found})
    readable = dict(zip(names, map(short, demangled(names))))
    return {(architecture, readable[function]): numbers for (architecture, function), numbers in found.items()}


def table():
    rows = [line.split("\t") for line in TABLE.read_text().splitlines()[1:]]
    return {(architecture, kernel): (int(registers), int(shared)) for architecture, kernel, registers, shared in rows}


@pytest.fixture(scope="module")
def built():
    if not LIBRARY.exists() or "sm_" not in cuobjdump("--dump-resource-usage"):
        pytest.skip("this build has no GPU kernels")
    return usage()


def test_no_kernel_keeps_anything_in_local_memory(built):
    # What NCCL's headers build there for a network's card; kernels/cuda/network.cu.
    puts = ("put_slots_kernel", "put_answers_kernel", "put_blocks_kernel")
    bad = {
        key: numbers
        for key, numbers in built.items()
        if (numbers["STACK"] or numbers["LOCAL"]) and not key[1].startswith(puts)
    }
    assert not bad


def test_no_kernel_takes_more_than_the_table_says(built):
    committed = table()
    missing = sorted(built.keys() - committed.keys())
    assert not missing, "not in kernels/cuda/resources.tsv; write it anew (see this file)"
    grown = [
        f"{architecture} {kernel}: {numbers['REG']} registers, {numbers['SHARED']} B shared; was {committed[architecture, kernel]}"
        for (architecture, kernel), numbers in built.items()
        if numbers["REG"] > committed[architecture, kernel][0] or numbers["SHARED"] > committed[architecture, kernel][1]
    ]
    assert not grown


# What must be in a kernel's machine code, by the start of its name: at least so many of each instruction, or (negative) at
# most. HMMA, IMMA: BF16, bytes on tensor cores; LDSM: ldmatrix; QGMMA, HGMMA: FP8, BF16 of a warp group; UBLKCP: bulk copies; LDGSTS: cp.async. One wgmma that waits
# for the one before it would add WARPGROUP instructions.
INSTRUCTIONS = {
    "attention_mma_kernel": {"HMMA": 16, "LDSM": 8, "LDGSTS": 2},
    "mla_expand_kernel": {"HMMA": 64, "LDSM": 24, "LDGSTS": 1},
    "mla_prompt_kernel": {"HGMMA": 20, "UBLKCP": 2, "WARPGROUP": -8},
    "linear_mma_kernel": {"HMMA": 8, "LDGSTS": 4},
    "linear_f8_kernel": {"QGMMA": 4, "UBLKCP": 3, "WARPGROUP": -6},
    "mla_wgmma_kernel": {"HGMMA": 40, "LDGSTS": 4, "WARPGROUP": -8},
    "linear_packed_kernel": {"IDP": 8},
    "linear_packed_mma_kernel": {"IMMA": 1, "LDGSTS": 3},
    "linear_int4_mma_kernel": {"HMMA": 4, "LDGSTS": 9},
}


@pytest.fixture(scope="module")
def instructions(built):
    """{(architecture, kernel): [instruction, ...]} of every kernel in the build."""
    found, architecture, function = {}, None, None
    for line in cuobjdump("-sass").splitlines():
        if match := re.match(r"\s*(?:arch = |code for )(\S+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            function = match[1]
            found[architecture, function] = []
        elif match := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", line):
            found[architecture, function].append(match[1])
    names = sorted({function for _, function in found})
    readable = dict(zip(names, map(short, demangled(names))))
    return {(architecture, readable[function]): those for (architecture, function), those in found.items()}


def test_tensor_cores_and_copy_engines_are_used(instructions):
    if not any(kernel.startswith("linear") for _, kernel in instructions):
        pytest.skip("no products in this build")
    wrong, seen = [], set()
    for (architecture, kernel), found in instructions.items():
        for start, wanted in INSTRUCTIONS.items():
            if not kernel.startswith(start):
                continue
            seen.add(start)
            for instruction, n in wanted.items():
                have = found.count(instruction)
                if have > -n if n < 0 else have < n:
                    wrong.append(f"{architecture} {kernel}: {have} {instruction}, wanted {n}")
    assert not wrong
    assert seen == INSTRUCTIONS.keys()


def test_kernels_wait_for_those_before_them(instructions):
    """ACQBULK (griddepcontrol.wait) before anything in device memory is read or written, but for weights."""
    weights_first = ("linear_f8_kernel", "linear_packed_mma_kernel", "linear_int4_mma_kernel")
    memory = {"LDG", "STG", "LDGSTS", "ATOMG", "RED", "REDG", "LD", "ST", "UBLKCP"}
    wrong = []
    for (architecture, kernel), found in instructions.items():
        if int(re.sub(r"\D", "", architecture)) < 90:  # the instruction came with Hopper
            continue
        touched = min((found.index(i) for i in memory if i in found), default=len(found))
        if "ACQBULK" not in found or (found.index("ACQBULK") > touched and not kernel.startswith(weights_first)):
            wrong.append(f"{architecture} {kernel}")
    assert not wrong


def test_the_table_has_nothing_that_is_gone(built):
    architectures = {architecture for architecture, _ in built}
    gone = sorted(key for key in table().keys() - built.keys() if key[0] in architectures)
    assert not gone


if __name__ == "__main__":
    assert sys.argv[1:] == ["--write"], __doc__
    rows = [(a, kernel, n["REG"], n["SHARED"]) for (a, kernel), n in sorted(usage().items())]
    TABLE.write_text("\n".join("\t".join(map(str, row)) for row in [COLUMNS, *rows]) + "\n")
    print(f"{TABLE}: {len(rows)} rows")
