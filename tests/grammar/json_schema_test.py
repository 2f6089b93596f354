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
    return [json.loads(line) for line in run.stdout.split("\n")[:-1]]


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
    # What pydantic writes for constrained types: floats, sets, dictionaries, patterns with a length.
    {"type": "number", "minimum": 0, "maximum": 1}, {"type": "number", "exclusiveMinimum": 0, "maximum": 0.25},
    {"type": "number", "minimum": -2.5, "exclusiveMaximum": -0.125}, {"type": "number", "exclusiveMinimum": 0},
    {"type": "number", "exclusiveMinimum": 9.5, "exclusiveMaximum": 10.5}, {"type": "number", "maximum": 1e-3},
    {"type": "integer", "multipleOf": 7}, {"type": "integer", "multipleOf": 15, "minimum": -40, "maximum": 100},
    {"type": "number", "multipleOf": 25}, {"type": "integer", "multipleOf": 100},
    {"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b", "c", 4]}},
    {"type": "array", "uniqueItems": True, "items": {"$ref": "#/$defs/color"}, "minItems": 2, "maxItems": 3,
     "$defs": {"color": {"enum": ["red", "green", "blue", "black"], "type": "string", "title": "Color"}}},
    {"type": "array", "uniqueItems": True, "items": {"type": "boolean"}},
    {"type": "object", "additionalProperties": {"type": "integer"}, "propertyNames": {"enum": ["x", "y"]}},
    {"type": "object", "additionalProperties": {"type": "integer"}, "propertyNames": {"$ref": "#/$defs/key"},
     "$defs": {"key": {"const": "k"}}},
    {"type": "object", "additionalProperties": {"type": "null"}, "propertyNames": {"pattern": "^[a-c]{2}$"}, "maxProperties": 3},
    {"type": "object", "propertyNames": {"minLength": 2, "maxLength": 3}, "additionalProperties": {"type": "boolean"}},
    {"type": "object", "patternProperties": {"^id_[0-9]{1,3}$": {"type": "integer"}}, "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 2},
    {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "required": ["a"], "minProperties": 1,
     "maxProperties": 2},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "null"}}}, {"properties": {"b": {"type": "boolean"}}}],
     "unevaluatedProperties": False},
    {"type": "string", "pattern": "^[A-Z_]+$", "maxLength": 4}, {"type": "string", "pattern": "^\\d*$", "minLength": 3},
    {"type": "string", "pattern": "^[a-z]{2,9}$", "minLength": 1, "maxLength": 3},
    {"type": "string", "format": "email"}, {"type": "string", "format": "hostname"}, {"type": "string", "format": "ipv6"},
    {"type": "string", "format": "uri"}, {"type": "string", "format": "duration"},
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


@pytest.mark.parametrize("low, high, more", [(0, 1, {}), (-0.75, 0.3, {}), (2.5, 2.75, {}), (-3, -1.5, {}), (0.001, 1000, {}),
                                             (0, 1, {"exclusiveMinimum": 0, "exclusiveMaximum": 1})])
def test_ranges_with_a_fraction_are_exact(low, high, more):
    """Every number of up to four places is taken if and only if it is within the bounds."""
    texts = sorted({f"{number / 10 ** places + 0:.{places}f}" for places in range(5) for bound in (low, high, 0)
                    for number in range(int(bound * 10 ** places) - 30, int(bound * 10 ** places) + 30)})
    texts = [text for text in texts if not (text.startswith("-") and float(text) == 0)]
    schema = {"type": "number", "minimum": low, "maximum": high, **more}
    validator = jsonschema.Draft202012Validator(schema)
    answer, = ask([{"schema": schema, "texts": texts}])
    assert answer["accepts"] == [validator.is_valid(float(text)) for text in texts]


@pytest.mark.parametrize("divisor", [2, 3, 7, 10, 64, 100])
def test_multiples_are_exact(divisor):
    numbers = [*range(-300, 2000), 9999990, 9999999, 123456]
    answer, = ask([{"schema": {"type": "integer", "multipleOf": divisor}, "texts": list(map(str, numbers))}])
    assert answer["accepts"] == [number % divisor == 0 for number in numbers]


def test_sets_come_in_the_order_of_their_list():
    schema = {"type": "array", "uniqueItems": True, "items": {"enum": [1, 2, 3]}, "minItems": 1}
    answer, = ask([{"schema": schema, "texts": ["[1]", "[1,2]", "[1, 3]", "[1,2,3]", "[]", "[1,1]", "[2,1]", "[1,2,3,3]"]}])
    assert answer["accepts"] == [True] * 4 + [False] * 4


def test_refusals_name_the_place():
    answer, = ask([{"schema": {"properties": {"a": {"items": {"not": {}}}}}}])
    assert "#/properties/a/items" in answer["refused"] and "'not'" in answer["refused"]
