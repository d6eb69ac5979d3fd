"""Schemas drawn at random over the keywords of JSON Schema, each answer checked by
the package jsonschema.

The keywords are those that the official JSON-Schema-Test-Suite has a file for. A
keyword gets as many schemas as any other, each with it somewhere in a schema that
a short answer can follow; the rest of the schema is drawn as well. An answer that
`max_tokens` cut off is neither valid nor wrong, and is counted apart. A keyword
that cannot be enforced must be refused by its name.
Arguments: the server's address, how many schemas, a seed. Prints a table and "all
is well".
"""

import concurrent.futures
import json
import random
import sys
import urllib.request

import jsonschema
from schemas_ask import ask

R = random.Random(int(sys.argv[3]))
TYPES = ["null", "boolean", "integer", "number", "string", "array", "object"]
WORDS = ["red", "a b", "\u00fc\"\\", "x1", "", "\U0001f980", "K\u00f6ln", "0"]
# Those that jsonschema can check without more packages.
FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "ipv6", "email"]
PATTERNS = [
    "^[a-f]{2,4}$", "^(ab|cd)+$", "^[A-Z][a-z]{1,6}$", "^\\d{3}-\\d{4}$", "^x(y|z)?x$", "^[^a-z]{3}$",
    "^#[0-9a-f]{6}$", "^(yes|no|maybe)$", "^\\w{1,5}\\.txt$",
]


def key():
    return R.choice(["name", "size", "at", "the key", "\u00e9t\u00e9", "n", "kind"])


def bounds(low=-50, high=500):
    a, b = sorted(R.sample(range(low, high), 2))
    return a, b


def short():
    """A value that a short answer can be."""
    return R.choice([
        lambda: {"type": "null"},
        lambda: {"type": "boolean"},
        lambda: {"type": "integer", "minimum": 0, "maximum": R.randint(1, 999)},
        lambda: {"type": "string", "maxLength": R.randint(1, 12)},
        lambda: {"enum": R.sample(WORDS, 3)},
        lambda: {"const": R.choice(WORDS)},
    ])()


def obj(properties, **more):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False, **more}


def members(low=1, high=3):
    return {f"{key()}{i}": short() for i in range(R.randint(low, high))}


def of_type():
    kind = R.choice(TYPES)
    more = {
        "integer": {"minimum": 0, "maximum": 99}, "number": {"multipleOf": 0.5, "minimum": 0, "maximum": 9},
        "string": {"maxLength": 9}, "array": {"items": short(), "maxItems": 2},
        "object": {"properties": members(), "additionalProperties": False},
    }
    return {"type": kind, **more.get(kind, {})}


def string(**more):
    return {"type": "string", **more}


def integer(**more):
    return {"type": "integer", **more}


def array(**more):
    return {"type": "array", **more}


def between(low, high):
    a, b = bounds()
    return integer(**{low: a - 2, high: b + 2})


def multiple():
    n = R.choice([2, 3, 7, 10, 25])
    return integer(multipleOf=n, minimum=R.randint(-20, 0), maximum=n * R.randint(2, 30))


def tuples(last):
    first = [short() for _ in range(R.randint(1, 3))]
    return array(prefixItems=first, items=last, minItems=len(first), maxItems=len(first) + (0 if last is False else 1))


def old_tuples():
    first = [short() for _ in range(R.randint(1, 3))]
    return {"$schema": "https://json-schema.org/draft/2019-09/schema", **array(items=first, additionalItems=False, minItems=len(first))}


def pattern_properties():
    return {
        "type": "object", "patternProperties": {R.choice(["^x[0-9]$", "^[a-c]{2}$", "^k_"]): {"type": "boolean"}},
        "additionalProperties": False, "minProperties": 1, "maxProperties": 2,
    }


def reference(where, at):
    name = R.choice(["part", "p q", "\u00fc"])
    target = obj(members(1, 2))
    return {where: {name: target}, **obj({"first": {"$ref": f"#/{where}/{at(name)}"}, "other": {"$ref": f"#/{where}/{at(name)}"}})}


def pointer(name):
    return urllib.request.quote(name)


def cases(word):
    a, b = R.sample(["x", "y", "z"], 2)
    return {word: [obj({"kind": {"const": a}, "v": short()}), obj({"kind": {"const": b}, "w": short()})]}


def all_of():
    a, b = bounds(0, 400)
    return {"allOf": [{"type": "integer", "minimum": a}, {"maximum": b}, {}]}


ENFORCED = {
    "type": of_type,
    "enum": lambda: {"enum": R.sample([*WORDS, 1, -2.5, None, True, [1, "x"], {"k": 2}], R.randint(1, 6))},
    "const": lambda: {"const": R.choice([*WORDS, 0, 1e10, None, [], {"a": {"b": []}}, [False, "\n"]])},
    "minLength": lambda: string(minLength=R.randint(1, 6), maxLength=R.randint(6, 12)),
    "maxLength": lambda: string(maxLength=R.randint(0, 8)),
    "pattern": lambda: string(pattern=R.choice(PATTERNS), maxLength=12),
    "format": lambda: string(format=R.choice(FORMATS)),
    "minimum": lambda: between("minimum", "maximum"),
    "maximum": lambda: between("exclusiveMinimum", "maximum"),
    "exclusiveMinimum": lambda: between("exclusiveMinimum", "exclusiveMaximum"),
    "exclusiveMaximum": lambda: between("minimum", "exclusiveMaximum"),
    "multipleOf": multiple,
    "items": lambda: array(items=short(), minItems=1, maxItems=3),
    "prefixItems": lambda: tuples(R.choice([False, short()])),
    "additionalItems": old_tuples,
    "minItems": lambda: array(items=short(), minItems=R.randint(1, 4), maxItems=5),
    "maxItems": lambda: array(items=short(), maxItems=R.randint(0, 3)),
    "properties": lambda: obj(members(1, 4)),
    "required": lambda: {**obj(properties := members(2, 4)), "required": R.sample(list(properties), 1)},
    "additionalProperties": lambda: {"type": "object", "properties": {}, "additionalProperties": short(), "minProperties": 1, "maxProperties": 2},
    "patternProperties": pattern_properties,
    "minProperties": lambda: {"type": "object", "additionalProperties": short(), "minProperties": R.randint(1, 2), "maxProperties": 3},
    "maxProperties": lambda: {"type": "object", "additionalProperties": short(), "maxProperties": R.randint(0, 2)},
    "anyOf": lambda: {"anyOf": [short(), obj(members(1, 2)), {"type": "null"}]},
    "oneOf": lambda: cases("oneOf"),
    "allOf": all_of,
    "$ref": lambda: reference("$defs", pointer),
    "$defs": lambda: reference("$defs", pointer),
    "definitions": lambda: reference("definitions", pointer),
    "infinite-loop-detection": lambda: {"$defs": {"t": {"anyOf": [{"type": "null"}, array(items={"$ref": "#/$defs/t"}, maxItems=1)]}}, "$ref": "#/$defs/t"},
    "boolean_schema": lambda: {"anyOf": [False, short()]},
    "default": lambda: {"default": 1, "title": "T", "description": "D", "examples": [2], "$comment": "c", **short()},
}
REFUSED = {
    "uniqueItems": lambda: array(items=short(), uniqueItems=True),
    "not": lambda: {"not": short()},
    "contains": lambda: array(contains=short()),
    "minContains": lambda: array(items=short(), minContains=2),
    "maxContains": lambda: array(items=short(), maxContains=2),
    "propertyNames": lambda: {"type": "object", "propertyNames": {"pattern": "^a"}},
    "if": lambda: {"if": {"type": "string"}, "then": short()},
    "dependentRequired": lambda: {"type": "object", "dependentRequired": {"a": ["b"]}},
    "dependentSchemas": lambda: {"type": "object", "dependentSchemas": {"a": short()}},
    "unevaluatedItems": lambda: array(unevaluatedItems=False),
    "unevaluatedProperties": lambda: {"type": "object", "unevaluatedProperties": False},
    "$dynamicRef": lambda: {"$dynamicRef": "#x"},
}


def nested(schema):
    """The same deeper in another one, if it can be: references are of the whole."""
    if any(k.startswith("$") or k == "definitions" for k in schema):
        return schema
    return R.choice([
        lambda: schema, lambda: schema,
        lambda: obj({key(): schema, "z": short()}),
        lambda: array(items=schema, minItems=1, maxItems=1),
        lambda: {"anyOf": [schema]},
    ])()


def verdict(job):
    number, word, schema = job
    status, got = ask(schema, number % 2, number, 400)
    if status == 400:
        return word, schema, "refused" if word in got else "wrong", got
    text = got["message"]["content"] if status == 200 else ""
    try:
        assert status == 200, got
        if got["finish_reason"] == "length":
            return word, schema, "cut", text
        assert got["finish_reason"] == "stop", got
        checker = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        checker.check_schema(schema)
        checker(schema, format_checker=checker.FORMAT_CHECKER).validate(json.loads(text))
        return word, schema, "valid", text
    except Exception as e:
        return word, schema, "wrong", f"{text!r}: {str(e).splitlines()[0]}"


def draw():
    count = int(sys.argv[2])
    words = [*ENFORCED, *REFUSED]
    for number in range(count):
        word = words[number % len(words)]
        schema = (ENFORCED.get(word) or REFUSED[word])()
        yield number, word, nested(schema)


table, wrong = {word: {"valid": 0, "cut": 0, "refused": 0, "wrong": 0} for word in [*ENFORCED, *REFUSED]}, []
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for word, schema, what, text in pool.map(verdict, list(draw())):
        table[word][what] += 1
        if what == "wrong" or (what == "refused") != (word in REFUSED):
            wrong.append(f"{word}: {json.dumps(schema)} -> {what}: {text}")
print("| keyword | schemas | valid | cut | refused |\n|---|--:|--:|--:|--:|")
for word, row in table.items():
    print(f"| `{word}` | {sum(row.values())} | {row['valid']} | {row['cut']} | {row['refused']} |")
total = {what: sum(row[what] for row in table.values()) for what in ("valid", "cut", "refused", "wrong")}
print(f"| all | {sum(total.values())} | {total['valid']} | {total['cut']} | {total['refused']} |")
assert not wrong, "\n".join(wrong)
# Small models write on where they may: few do where the answer is bounded.
assert total["cut"] * 20 <= total["valid"], total
print("all is well")
