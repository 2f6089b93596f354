"""Compares small templates, listed and random, with Jinja2 as transformers sets it up. The random ones are the same at
every run, SHOAL_JINJA_SEEDS (2) times 500 of each kind: many more are for changes of the engine."""

import os
import random

import jinja_random
import jinja_reference
import pytest
from jinja_expressions import EXPRESSIONS
from jinja_statements import STATEMENTS
from jinja_variables import VARIABLES

if not jinja_reference.TOOL.exists():
    pytest.skip(f"{jinja_reference.TOOL} is not built", allow_module_level=True)


# Jinja2 compiles to Python, which warns of templates that make no sense.
pytestmark = pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")


def job(template):
    return {"template": template, "variables": VARIABLES}


def test_expressions():
    wrong = jinja_reference.compare([job("{{ " + text + " }}") for text in EXPRESSIONS])
    assert not wrong, jinja_reference.explain(wrong, 20)


def test_statements():
    wrong = jinja_reference.compare([job(text) for text in STATEMENTS])
    assert not wrong, jinja_reference.explain(wrong, 20)


@pytest.mark.parametrize("seed", range(int(os.environ.get("SHOAL_JINJA_SEEDS", 2))))
@pytest.mark.parametrize("kind", ["expression", "statement"])
def test_random(kind, seed):
    writer = jinja_random.Writer(random.Random(f"{kind} {seed}"))
    write = writer.expression_template if kind == "expression" else writer.statement_template
    wrong = [found for found in jinja_reference.compare([job(write()) for _ in range(500)])
             if jinja_random.comparable(*found[1:])]
    assert not wrong, jinja_reference.explain(wrong)
