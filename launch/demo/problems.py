"""Problems the demo model is trained on, each with the chain of thought that solves it.

Five tasks: number sequences, ordering puzzles, arithmetic, small SQL queries and answers from a
passage.  Every line of a chain of thought is a copy or a small local computation.  A problem's key
(its content without the phrasing) is hashed to decide whether it is held out, so no held-out
problem is ever trained on, under any phrasing.
"""

import hashlib
import random
from dataclasses import dataclass

NAMES = ["Anna", "Ben", "Carl", "Dora", "Emma", "Fred", "Greta", "Hans", "Ivan", "Jack", "Kate",
         "Lena", "Max", "Nina", "Otto", "Paul", "Rosa", "Sam", "Tom", "Vera"]
CITIES = ["Paris", "London", "Berlin", "Rome", "Madrid", "Oslo", "Tokyo", "Boston"]
COLORS = ["red", "blue", "green", "black", "white", "yellow"]


@dataclass
class Problem:
    task: str
    prompt: str
    thought: str
    answer: str
    key: str

    @property
    def held_out(self) -> bool:
        """One problem in sixteen is never trained on."""
        return hashlib.sha256(f"{self.task}:{self.key}".encode()).digest()[0] < 16

    @property
    def response(self) -> str:
        """What follows the `<think>\\n` that ends the rendered prompt."""
        return f"{self.thought}\n</think>\n\n{self.answer}"


def sequence(rng: random.Random) -> Problem:
    """Continue a number sequence by looking at the differences."""
    kind = rng.choice(["constant", "double", "more", "sum"])
    count = rng.randint(5, 6)
    if kind == "constant":
        first, step = rng.randint(1, 80), rng.randint(2, 9)
        terms = [first + i * step for i in range(count)]
        rule = "The difference is always the same."
    elif kind == "double":
        count = rng.randint(5, 7)
        first, step = rng.randint(1, 30), 1 if count == 7 else rng.randint(1, 2)
        terms = [first + step * (2**i - 1) for i in range(count)]
        rule = "Each difference is twice the last."
    elif kind == "more":
        first, step, grow = rng.randint(1, 60), rng.randint(1, 4), rng.randint(1, 2)
        terms = [first]
        for i in range(count - 1):
            terms.append(terms[-1] + step + i * grow)
        if all(terms[i + 2] == terms[i + 1] + terms[i] for i in range(count - 2)):
            return sequence(rng)
        rule = f"Each difference is {grow} more than the last."
    else:
        terms = [rng.randint(1, 4), rng.randint(2, 7)]
        while len(terms) < count:
            terms.append(terms[-1] + terms[-2])
        if terms[1] <= terms[0]:
            return sequence(rng)
        rule = "Each number is the sum of the two before."
    steps = [f"{b}-{a}={b - a}" for a, b in zip(terms, terms[1:])]
    last = terms[-1] - terms[-2]
    if kind == "constant":
        difference = last
    elif kind == "double":
        difference = 2 * last
        steps_rule = f"{last}+{last}={difference}"
    elif kind == "more":
        difference = last + grow
        steps_rule = f"{last}+{grow}={difference}"
    else:
        difference = terms[-2]
    answer = terms[-1] + difference
    lines = ["Look at the differences.", *steps, rule]
    if kind in ("double", "more"):
        lines.append(steps_rule)
    lines.append(f"{terms[-1]}+{difference}={answer}")
    listed = ", ".join(map(str, terms))
    prompt = rng.choice([
        "What number comes next? {}",
        "What is the next number: {}?",
        "Continue the sequence {}",
        "Which number comes next in the sequence {}?",
        "Find the next number of the sequence {}",
    ]).format(listed)
    return Problem("sequence", prompt, "\n".join(lines), str(answer), listed)


COMPARISONS = [("taller", "shorter", "tallest", "shortest"), ("older", "younger", "oldest", "youngest"),
               ("faster", "slower", "fastest", "slowest"), ("richer", "poorer", "richest", "poorest")]


def ordering(rng: random.Random) -> Problem:
    """Order three or four people from pairwise comparisons."""
    more, less, most, least = rng.choice(COMPARISONS)
    people = rng.sample(NAMES, rng.randint(3, 4))
    pairs = list(zip(people, people[1:]))
    rng.shuffle(pairs)
    facts = [f"{a} is {more} than {b}." if rng.random() < 0.5 else f"{b} is {less} than {a}."
             for a, b in pairs]
    ask_most = rng.random() < 0.5
    asked, answer = (most, people[0]) if ask_most else (least, people[-1])
    thought = "\n".join([
        f"Write each pair with the {more} first.",
        *(f"{a} > {b}" for a, b in pairs),
        f"Nobody is above {people[0]}.",
        " > ".join(people),
        f"The {asked} is {answer}.",
    ])
    story = " ".join(facts)
    prompt = rng.choice(["{0} Who is the {1}?", "{0} Who is {1}?", "{0} Which of them is the {1}?",
                         "Who is the {1}? {0}"]).format(story, asked)
    return Problem("ordering", prompt, thought, answer, story + asked)


def arithmetic(rng: random.Random) -> Problem:
    """Add or subtract digit by digit, from the right."""
    operator = rng.choice("+-")
    digits = rng.choice([2, 3])
    a = rng.randint(10 ** (digits - 1), 10**digits - 1)
    b = rng.randint(10, a if operator == "-" else 10**digits - 1)
    answer = a + b if operator == "+" else a - b
    steps, carry = [], 0
    for place in range(digits):
        x, y = a // 10**place % 10, b // 10**place % 10
        if operator == "+":
            total = x + y + carry
            step = f"{x}+{y}={x + y}+{carry}={total} write {total % 10} carry"
            carry = total // 10
        else:
            total = x - y - carry
            step = f"{x}-{y}={x - y}-{carry}={total} write {total % 10} borrow"
            carry = int(total < 0)
        steps.append(f"{step} {carry}")
    expression = f"{a}{operator}{b}"
    thought = "\n".join(["Work from the right.", *steps, f"{expression}={answer}"])
    word = {"+": "plus", "-": "minus"}[operator]
    prompt = rng.choice([
        f"What is {a} {operator} {b}?", f"What is {expression}?", f"Compute {a} {operator} {b}.",
        f"What is {a} {word} {b}?", f"Calculate {expression}", f"{a} {operator} {b} = ?",
    ])
    return Problem("arithmetic", prompt, thought, str(answer), expression)


TABLES = ["users", "orders", "books", "cars", "players", "students", "products", "movies"]
NUMBER_COLUMNS = ["age", "price", "year", "score", "salary", "weight"]
TEXT_COLUMNS = ["name", "city", "color", "title", "country", "team"]


def sql(rng: random.Random) -> Problem:
    """Translate a question about one table into a query."""
    table = rng.choice(TABLES)
    numbers, texts = rng.sample(NUMBER_COLUMNS, 2), rng.sample(TEXT_COLUMNS, 2)
    columns = numbers + texts
    rng.shuffle(columns)
    schema = f"Table {table}(id, {', '.join(columns)})."
    number = rng.choice(numbers)
    filters = []
    value = rng.randint(2, 99)
    filters.append((f"with {number} above {value}", f"{number} > {value}"))
    filters.append((f"with {number} below {value}", f"{number} < {value}"))
    text = rng.choice(texts)
    word = rng.choice(CITIES if text in ("city", "country") else
                      COLORS if text in ("color", "team") else NAMES)
    filters.append((f"with {text} {word}", f"{text} = '{word}'"))
    phrase, condition = rng.choice(filters)
    kind = rng.choice(["filter", "filter", "count", "aggregate", "sort"])
    order = "none"
    if kind == "filter":
        chosen = rng.sample(columns, rng.randint(1, 2))
        selected = ", ".join(chosen)
        question = f"{rng.choice(['Show', 'List', 'Find'])} the {' and '.join(chosen)} of all {table} {phrase}."
    elif kind == "count":
        selected = "COUNT(*)"
        question = rng.choice([f"How many {table} are there {phrase}?", f"Count the {table} {phrase}."])
    elif kind == "aggregate":
        adjective, function = rng.choice([("average", "AVG"), ("highest", "MAX"), ("lowest", "MIN")])
        selected = f"{function}({number})"
        if rng.random() < 0.5:
            phrase, condition = "", "none"
        question = f"What is the {adjective} {number} of all {table} {phrase}".strip() + "?"
    else:
        column, order = rng.choice(columns), rng.choice(columns)
        selected, condition = column, "none"
        question = f"{rng.choice(['Show', 'List', 'Find'])} the {column} of all {table} sorted by {order}."
    thought = f"Select: {selected}\nTable: {table}\nCondition: {condition}\nOrder: {order}"
    answer = f"SELECT {selected} FROM {table}"
    if condition != "none":
        answer += f" WHERE {condition}"
    if order != "none":
        answer += f" ORDER BY {order}"
    answer += ";"
    prompt = f"{schema} {question}" if rng.random() < 0.7 else f"{schema} Write a query: {question}"
    return Problem("sql", prompt, thought, answer, schema + question)


JOBS = ["doctor", "teacher", "baker", "pilot", "farmer", "nurse"]
FOODS = ["apples", "bread", "cheese", "rice", "soup", "fish"]
PLACES = ["library", "museum", "market", "school", "bank", "park"]
THINGS = ["house", "bike", "coat", "boat", "hat", "door"]


def passage(rng: random.Random) -> Problem:
    """Answer a question by quoting the sentence of the passage that holds the answer."""
    facts, seen = [], set()
    people = rng.sample(NAMES, 3)
    count = rng.randint(3, 5)
    while len(facts) < count:
        name, place = rng.choice(people), rng.choice(PLACES)
        hour, dollars, thing = rng.randint(6, 12), rng.randint(10, 99), rng.choice(THINGS)
        city, job, food, color = map(rng.choice, (CITIES, JOBS, FOODS, COLORS))
        subject, sentence, question, answer = rng.choice([
            (name + "live", f"{name} lives in {city}.",
             [f"Where does {name} live?", f"In which city does {name} live?"], city),
            (name + "job", f"{name} works as a {job}.",
             [f"What is the job of {name}?", f"What does {name} work as?"], job),
            (name + "food", f"{name} likes {food}.", [f"What does {name} like?"], food),
            (name + thing, f"The {thing} of {name} is {color}.",
             [f"What color is the {thing} of {name}?"], color),
            (place + "open", f"The {place} opens at {hour}.",
             [f"When does the {place} open?", f"At what time does the {place} open?"], str(hour)),
            (place + "ticket", f"The {place} is in {city}.",
             [f"Where is the {place}?", f"In which city is the {place}?"], city),
            (thing + "cost", f"The {thing} costs {dollars} dollars.",
             [f"How much does the {thing} cost?", f"What does the {thing} cost?"], f"{dollars} dollars"),
        ])
        if subject not in seen:
            seen.add(subject)
            facts.append((sentence, rng.choice(question), answer))
    sentence, question, answer = rng.choice(facts)
    text = " ".join(fact[0] for fact in facts)
    prompt = rng.choice(["Passage: {0}\nQuestion: {1}", "{0} {1}", "{0}\n{1}",
                         "Read the passage. {0} {1}"]).format(text, question)
    thought = f"The passage says: {sentence}"
    return Problem("passage", prompt, thought, answer, text + question)


TASKS = {"sequence": sequence, "ordering": ordering, "arithmetic": arithmetic, "sql": sql,
         "passage": passage}


def stream(seed: int, held_out: bool = False, mix: dict[str, float] | None = None):
    """Endless problems, of the training or of the held-out set, tasks drawn by `mix`."""
    rng = random.Random(seed)
    tasks = list(TASKS)
    weights = [(mix or {}).get(task, 1.0) for task in tasks]
    while True:
        problem = TASKS[rng.choices(tasks, weights)[0]](rng)
        if problem.held_out == held_out:
            yield problem


def distinct_held_out(per_task: int, seed: int = 7) -> list[Problem]:
    """The first distinct held-out problems of each task."""
    found = []
    for task in TASKS:
        seen = {}
        for problem in stream(seed, held_out=True, mix={t: t == task for t in TASKS}):
            seen.setdefault(problem.key, problem)
            if len(seen) == per_task:
                break
        found += seen.values()
    return found


if __name__ == "__main__":
    for task in TASKS:
        for problem, _ in zip(stream(1, mix={t: t == task for t in TASKS}), range(3)):
            print(f"--- {task}\n{problem.prompt}\n<think>\n{problem.response}")
