"""Grammars made of JSON schemas, against Debian's json-schema-test-suite and the jsonschema package."""

import json
import os
import subprocess
from pathlib import Path

import jsonschema
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TOOL = Path(os.environ.get("SHOAL_BUILD", ROOT / "build")) / "grammar_tool"
SUITE = Path("/usr/share/json-schema-test-suite/tests")
DRAFTS = [draft for draft in ("draft7", "draft2019-09", "draft2020-12") if (SUITE / draft).exists()]

pytestmark = pytest.mark.skipif(not TOOL.exists(), reason=f"{TOOL} is not built")


def ask(questions):
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    run = subprocess.run([TOOL], input=lines, capture_output=True, text=True, timeout=300, check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


def in_order_of(schema, value):
    """The value with its properties in the schema's order, which is the only one that the grammar takes."""
    if isinstance(value, list):
        items = schema.get("items") if isinstance(schema, dict) else None
        return [in_order_of(items, item) for item in value]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties", {}) if isinstance(schema, dict) else {}
    names = [name for name in properties if name in value] + [name for name in value if name not in properties]
    return {name: in_order_of(properties.get(name), value[name]) for name in names}


@pytest.mark.skipif(not DRAFTS, reason="json-schema-test-suite is not installed")
@pytest.mark.parametrize("draft", DRAFTS)
def test_suite(draft):
    """What the suite calls invalid is never taken. What it calls valid is taken where the grammar promises it: that is
    counted, and there must be much of it."""
    groups = [(path.stem, group) for path in sorted((SUITE / draft).glob("*.json")) for group in json.loads(path.read_text())]
    answers = ask([{"schema": group["schema"],
                    "texts": [json.dumps(in_order_of(group["schema"], test["data"]), ensure_ascii=False) for test in group["tests"]]}
                   for _, group in groups])
    refused = taken = valid = 0
    wrong = []
    for (keyword, group), answer in zip(groups, answers, strict=True):
        if "refused" in answer:
            refused += 1
            continue
        for test, accepted in zip(group["tests"], answer["accepts"], strict=True):
            valid += test["valid"]
            taken += test["valid"] and accepted
            if accepted and not test["valid"] and keyword != "oneOf":  # taken as anyOf, as it says
                wrong.append((keyword, group["description"], test["description"], test["data"]))
    print(f"{draft}: {len(groups)} schemas, {refused} refused, of {valid} valid texts {taken} taken")
    assert not wrong, wrong
    assert taken > valid / 3 and refused < len(groups) * 2 / 3


SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": "null"}}},
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": "boolean"}},
     "required": ["b"], "additionalProperties": {"type": "number"}},
    {"type": "object", "properties": {"ab": {"const": 1}, "ac": {"const": 2}, "é\"": {}}, "additionalProperties": {"const": 3}},
    {"type": "array", "items": {"enum": [1, "two", None, [3], {"four": 5.5}]}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "string"}], "items": {"type": "integer"}, "minItems": 3},
    {"type": "string", "minLength": 2, "maxLength": 5}, {"type": "string", "pattern": "^a.[\"\\\\\\n]b*$"},
    {"type": "string", "pattern": "x"}, {"type": "string", "format": "date-time"}, {"type": "string", "format": "ipv4"},
    {"type": "string", "format": "uuid"}, {"type": ["string", "null", "integer"], "maxLength": 3},
    {"type": "integer", "minimum": -105, "maximum": 2040}, {"type": "integer", "exclusiveMinimum": 99},
    {"type": "integer", "maximum": -7}, {"type": "number", "minimum": 0.5, "exclusiveMaximum": 12},
    {"anyOf": [{"type": "integer", "minimum": 5, "maximum": 6}, {"type": "array", "items": {"type": "null"}}]},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
               {"properties": {"b": {"type": "boolean"}}, "required": ["b"]}]},
    {"$ref": "#/$defs/tree", "$defs": {"tree": {
        "type": "object", "properties": {"value": {"type": "integer"}, "children": {
            "type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/tree"}}}, "required": ["value"],
        "additionalProperties": False}}},
    {"type": "object", "required": ["x", "y"]}, {}, True,
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_whatever_matches_is_valid(schema):
    answer, = ask([{"schema": schema, "samples": 300, "seed": 7}])
    assert len(answer["samples"]) > 30, answer
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    for text in answer["samples"]:
        errors = list(validator.iter_errors(json.loads(text)))
        assert not errors, (text, errors)


@pytest.mark.parametrize("low, high", [(0, 9), (-3, 3), (17, 1234), (-1050, -99), (0, 10**12), (999, 1001), (-100, 0)])
def test_integer_ranges_are_exact(low, high):
    numbers = sorted({number + step for number in (low, high, 0, *(10**n for n in range(13)), *(-10**n for n in range(5)))
                      for step in range(-12, 13)})
    answer, = ask([{"schema": {"type": "integer", "minimum": low, "maximum": high}, "texts": list(map(str, numbers))}])
    assert answer["accepts"] == [low <= number <= high for number in numbers]


def test_refusals_name_the_place():
    answer, = ask([{"schema": {"properties": {"a": {"items": {"multipleOf": 3}}}}}])
    assert "#/properties/a/items" in answer["refused"] and "multipleOf" in answer["refused"]
