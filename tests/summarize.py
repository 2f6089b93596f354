#!/usr/bin/env python3
"""Prints what was skipped and why, what failed, and last "N passed, N failed, N skipped".

Reads the JUnit files of one run in a folder: ctest.xml of ctest, and one <name>.xml for every pytest file that ctest
started, whose cases are counted instead of the file.  Exit status 1 when a test failed or none ran.
"""

import re
import sys
import xml.etree.ElementTree as xml
from pathlib import Path


def reason(text):
    """The line in a test's output that says why it was skipped."""
    after_gtest = re.search(r": Skipped\n+(.+)", text)
    stated = re.search(r"^skipped:? *(.+)", text, re.MULTILINE | re.IGNORECASE)
    return (after_gtest or stated)[1].strip() if after_gtest or stated else "no reason given"


def ctest_cases(path):
    """(name, outcome, why) of ctest's own list."""
    for case in xml.parse(path).iter("testcase"):
        text = case.findtext("system-out") or ""
        if case.get("status") == "run":
            yield case.get("name"), "passed", ""
        elif case.find("skipped") is not None or "SKIP" in (case.get("status") or "").upper():
            yield case.get("name"), "skipped", reason(text)
        else:
            yield case.get("name"), "failed", ""


def pytest_cases(path):
    for case in xml.parse(path).iter("testcase"):
        name = f"{path.stem}: {case.get('name')}"
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            yield name, "failed", ""
        elif skipped is not None:
            yield name, "skipped", skipped.get("message", "")
        else:
            yield name, "passed", ""


def main(folder):
    cases = []
    for name, outcome, why in ctest_cases(folder / "ctest.xml"):
        inner = folder / f"{name}.xml"
        inside = list(pytest_cases(inner)) if inner.exists() else []
        # A file that failed without a failing case (it crashed, or ran out of time) still counts as failed.
        if inside and (outcome != "failed" or any(case[1] == "failed" for case in inside)):
            cases += inside
        else:
            cases.append((name, outcome, why))
    for outcome in ("skipped", "failed"):
        found = [(name, why) for name, kind, why in cases if kind == outcome]
        if found:
            print(f"\n{outcome}:")
            for name, why in found:
                print(f"  {name}" + (f": {why}" if why else ""))
    count = {kind: sum(case[1] == kind for case in cases) for kind in ("passed", "failed", "skipped")}
    print(f"\n{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    return 1 if count["failed"] or not count["passed"] else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
