"""What the small templates that are compared with Jinja2 are given."""

VARIABLES = {
    "n": 5, "z": 0, "neg": -3, "f": 2.5, "big": 1e20, "small": 1e-7, "t": True, "no": None,
    "s": "Hello, World", "u": "Straße İstanbul ΣΑΣ ǆ ﬁ 日本語 😀", "e": "", "ws": " \t padded\n ", "html": "<a href='x'>&\"</a>",
    "digits": "0042", "lines": "one\ntwo\r\n\nthree\u2028four\x0bfive", "csv": "a,b,,c", "words": "  the quick  brown fox ",
    "l": [3, 1, 2], "ls": ["b", "A", "c", "a"], "mixed": [1, "a", None, 2.5, True, [1], {"k": 1}], "el": [],
    "nested": [[1, 2], [3, [4, 5]], []], "d": {"a": 1, "b": {"c": [1, 2]}, "items": "shadow", "x y": 2, "1": "one"},
    "ed": {}, "people": [{"name": "Bo", "age": 30, "tags": ["x"]}, {"name": "al", "age": 25}, {"name": "Cy", "age": 30, "boss": {"name": "Bo"}}],
    "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}],
    "tree": [{"v": 1, "c": [{"v": 2, "c": []}, {"v": 3, "c": [{"v": 4, "c": []}]}]}],
}
