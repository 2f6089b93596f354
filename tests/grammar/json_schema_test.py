"""Grammars made of JSON schemas, against Debian's json-schema-test-suite and the jsonschema package."""

import calendar
import datetime
import ipaddress
import json
import os
import random
import re
import subprocess
from pathlib import Path

import jsonschema
import pydantic
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
    {"type": "string", "format": "uri"}, {"type": "string", "format": "duration"}, {"type": "string", "format": "date"},
    {"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083}, {"type": "string", "format": "uuid", "maxLength": 36},
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


def accepted(format, texts, **more):
    """Those of the texts that the grammar of a format takes."""
    written = [json.dumps(text, ensure_ascii=False) for text in texts]
    answer, = ask([{"schema": {"type": "string", "format": format, **more}, "texts": written}])
    return [text for text, accepts in zip(texts, answer["accepts"], strict=True) if accepts]


def is_valid(read, text):
    try:
        read(text)
        return True
    except ValueError:
        return False


@pytest.mark.parametrize("behind, format", [("", "date"), ("T23:59:59.5+01:00", "date-time")])
def test_dates_are_exact(behind, format):
    texts = [f"{year:04}-{month:02}-{day:02}{behind}" for year in (1900, 1999, 2000, 2001, 2024, 2100)
             for month in range(14) for day in range(33)]
    texts += [f"{year:04}-02-{day}{behind}" for year in range(1, 10000) for day in (28, 29)]
    assert sum(calendar.isleap(year) for year in range(1, 10000)) == 2424
    assert accepted(format, texts) == [text for text in texts if is_valid(datetime.date.fromisoformat, text[:10])]


def test_addresses_are_exact():
    chance = random.Random(5)
    texts = []
    for _ in range(4000):
        groups = [f"{chance.getrandbits(16) >> chance.randrange(17):{chance.choice(['x', 'X', '04x'])}}" for _ in range(8)]
        if chance.random() < 0.4:
            groups[6:] = [str(ipaddress.IPv4Address(chance.getrandbits(32)))]
        if chance.random() < 0.8:
            low, high = sorted((chance.randrange(9), chance.randrange(9)))
            text = ":".join(groups[:low]) + "::" + ":".join(groups[high:])
        else:
            text = ":".join(groups[chance.random() < 0.2:])
        if chance.random() < 0.3:
            at = chance.randrange(len(text))
            text = text[:at] + chance.choice(["", ":", ".", "f", "0", "9", "g"]) + text[at + chance.randrange(2):]
        texts.append(text)
    valid = [text for text in texts if is_valid(ipaddress.IPv6Address, text)]
    assert len(texts) / 4 < len(valid) < len(texts) * 9 / 10
    assert accepted("ipv6", texts) == valid
    texts = [".".join(str(chance.randrange(int(1.05 * 10 ** chance.randrange(1, 4)))) for _ in range(chance.choice([4, 4, 4, 3, 5])))
             for _ in range(1000)] + ["1.2.3.04", "0.0.0.0", "255.255.255.255", "256.0.0.0", "1.2.3.4."]
    assert accepted("ipv4", texts) == [text for text in texts if is_valid(ipaddress.IPv4Address, text)]


# From the RFCs that define them, and what else is written every day.
RIGHT = {
    "time": ["08:30:06Z", "23:59:60Z", "15:59:60-08:00", "23:20:50.52Z", "12:00:27.87+00:20", "00:00:00.123456789-00:00"],
    "date-time": ["1985-04-12T23:20:50.52Z", "1996-12-19T16:39:57-08:00", "1990-12-31T23:59:60Z", "1990-12-31T15:59:60-08:00",
                  "1937-01-01T12:00:27.87+00:20", "2024-01-31T00:00:00Z", "0000-02-29T00:00:00.000000001Z"],
    "duration": ["P1Y2M3DT4H5M6S", "P4DT12H30M5S", "P4Y", "P1M", "PT1M", "PT36H", "P1DT12H", "P2W", "PT0S", "P0D", "P1Y2M", "PT90M",
                 "P1M2D", "PT1H2M", "PT3600S", "P1Y3D", "PT1H30S", "PT0.25S"],
    "email": ["a@b", "john.q.public@example.com", "Joe.Bloggs+tag@Mail.Example.COM", "o'neil@example.org", "x_y-z@xn--bcher-kva.ch",
              "!#$%&'*+-/=?^_`{|}~@example.museum", "jsmith@[192.168.2.1]", "user@[IPv6:2001:db8::1]", '"joe bloggs"@example.com',
              '"a\\"b"@example.com', "a" * 64 + "@" + ".".join(["b" * 63] * 2 + ["c" * 61])],
    "hostname": ["localhost", "WWW.Example.COM", "1host", "a--b.c", "xn--4gbwdl.xn--wgbh1c", "a" * 63 + ".example", "10.in-addr.arpa",
                 ".".join("b" * 63 for _ in range(3)) + "." + "c" * 61, ".".join("0123456789abcdef" * 2) + ".ip6.arpa"],
    "ipv6": ["::", "::1", "2001:DB8:0:0:8:800:200C:417A", "FF01::101", "0:0:0:0:0:0:13.1.68.3", "::FFFF:129.144.52.38", "1:2:3:4:5:6:7::"],
    "uri": ["ftp://ftp.is.co.za/rfc/rfc1808.txt", "http://www.ietf.org/rfc/rfc2396.txt", "ldap://[2001:db8::7]/c=GB?objectClass?one",
            "mailto:John.Doe@example.com", "news:comp.infosystems.www.servers.unix", "tel:+1-816-555-1212", "telnet://192.0.2.16:80/",
            "urn:oasis:names:specification:docbook:dtd:xml:4.1.2", "foo://example.com:8042/over/there?name=ferret#nose",
            "https://user:pass@Example.COM:65535/a%20b/(c)/@d;e=1,2+3?q=a/b?&r%5B%5D=x", "file:///etc/hosts",
            "https://de.wikipedia.org/wiki/K%C3%B6ln#Geschichte", "http://a:b@[::ffff:1.2.3.4]:8080", "postgresql+asyncpg://u@h/db",
            "http://-.~_!$&'()*+,;=:%40:80%2f::::::@example.com", "data:,x", "about:", "https://example.com/" + "a" * 1890],
    "uuid": ["f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6", "00000000-0000-0000-0000-000000000000"]}
WRONG = {
    "time": ["24:00:00Z", "00:60:00Z", "00:00:61Z", "12:00:00", "12:00:00.Z", "01:02:03+24:00", "01:02:03+00:60", "8:30:06Z"],
    "date-time": ["2024-01-31", "2024-01-31 00:00:00Z", "2024-04-31T00:00:00Z", "2023-02-29T00:00:00Z", "2024-01-31T00:00:00"],
    "duration": ["P", "PT", "P1", "P1YT", "PT1D", "P2D1Y", "P1D2H", "P2S", "P1Y2W", "4D", "-P1D", "PT.5S", "PT1.5H"],
    "email": ["2962", "@example.com", "joe@", "joe bloggs@example.com", ".a@example.com", "a.@example.com", "a@b, c@d", "a@-b",
              "a@b_c", "Joe <a@b>"],
    "hostname": ["", ".", ".example", "example.", "-host", "host-", "host_name", "a b", "h\u00f6st"],
    "uri": ["abc", "//foo.bar/x", "/abc", "http:// shouldfail.com", "1http://x", "ht_tp://x", "https://[@example.org/", "http:/[::1]",
            "http://x/a|b", "http://x/<a>", 'http://x/"', "http://x/\\", "http://x/\u00f6", "http://x](http://x)"],
    "uuid": ["f81d4fae7dec11d0a76500a0c91e6bf6", "f81d4fae-7dec-11d0-a765-00a0c91e6bfg"]}


@pytest.mark.parametrize("format", RIGHT)
def test_no_right_value_of_a_format_is_left_out(format):
    assert accepted(format, RIGHT[format]) == RIGHT[format]
    assert accepted(format, WRONG.get(format, [])) == []


@pytest.mark.skipif(not DRAFTS, reason="json-schema-test-suite is not installed")
@pytest.mark.parametrize("format", ["date", "ipv4", *RIGHT])
def test_formats_of_the_suite(format):
    """What it calls valid is taken, small letters and very many digits in times aside; the exact formats take nothing else."""
    path = SUITE / DRAFTS[-1] / "optional" / "format" / f"{format}.json"
    if not path.exists():
        pytest.skip("the suite does not have it")
    tests = [test for group in json.loads(path.read_text()) for test in group["tests"] if isinstance(test["data"], str)]
    taken = accepted(format, [test["data"] for test in tests])
    for test in tests:
        if test["valid"] and not (format in ("time", "date-time", "duration") and re.search("[tz]|[0-9]{10}", test["data"])):
            assert test["data"] in taken, test
        if not test["valid"] and format in ("date", "ipv4", "ipv6", "uuid"):
            assert test["data"] not in taken, test


def test_what_pydantic_writes_is_taken():
    chance = random.Random(6)
    for kind, format, values in [
            (datetime.timedelta, "duration", [datetime.timedelta(microseconds=int(10 ** chance.uniform(0, 17))) for _ in range(500)]
             + [datetime.timedelta(hours=1, seconds=30), datetime.timedelta(days=400, seconds=1)]),
            (datetime.datetime, "date-time", [datetime.datetime.fromtimestamp(chance.uniform(0, 1e10), datetime.timezone(
                datetime.timedelta(minutes=15 * chance.randrange(-48, 57)))) for _ in range(500)])]:
        adapter = pydantic.TypeAdapter(kind)
        assert adapter.json_schema()["format"] == format
        texts = [json.loads(adapter.dump_json(value)) for value in values]
        assert accepted(format, texts) == texts


def test_a_length_holds_beside_a_format():
    """It asserts something, which a format need not: the format goes where it does not see to the length by itself."""
    assert accepted("email", ["a@bc.de", "a@bc.example.org", "none"], maxLength=10) == ["a@bc.de", "none"]
    assert accepted("email", ["a@bc.de", "none"], minLength=1, maxLength=254) == ["a@bc.de"]
    assert accepted("date", ["2024-01-31", "soon"], minLength=10, maxLength=10) == ["2024-01-31"]
    assert accepted("date", ["2024-01-31", "2024-01"], maxLength=9) == ["2024-01"]
    assert accepted("uri", ["https://example.com", "none"], minLength=1, maxLength=2083) == ["https://example.com"]
    answer, = ask([{"schema": {"format": "date", "minLength": 20, "maxLength": 10}}])
    assert "'maxLength'" in answer["refused"]
