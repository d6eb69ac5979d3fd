"""Answers to JSON schemas, each checked by the package jsonschema.

Every keyword of JSON Schema that llguidance enforces, as the official
JSON-Schema-Test-Suite groups them, by schemas that a short answer can follow.
Arguments: the server's address. Prints a line a schema, and "all is well".
"""

import json

import jsonschema
from schemas_ask import ask

S = {"type": "string", "maxLength": 8}
I = {"type": "integer", "minimum": 0, "maximum": 99}


def obj(properties, **more):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False, **more}


SCHEMAS = [
    # type
    {"type": "null"},
    {"type": "boolean"},
    I,
    S,
    {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
    # enum, const
    {"enum": ["a", 1, None, True, [1, "x"], {"k": 2}]},
    {"const": "fixed \"text\" \u00e9\n"},
    {"const": {"a": [1, 2]}},
    obj({"kind": {"const": "x"}, "n": {"enum": [1, 2, 3]}}),
    # strings
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"},
    {"type": "string", "pattern": "^(ab|cd)+e?$", "maxLength": 11},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "time"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "format": "email", "maxLength": 30},
    # numbers
    {"type": "integer", "minimum": -5, "maximum": 5},
    {"type": "integer", "exclusiveMinimum": 10, "exclusiveMaximum": 13},
    {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 100},
    {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 10},
    # arrays
    {"type": "array", "items": I, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [S, I, {"type": "boolean"}], "items": False, "minItems": 3},
    {"type": "array", "prefixItems": [I], "items": S, "minItems": 2, "maxItems": 3},
    {"type": "array", "items": {"type": "array", "items": I, "minItems": 1, "maxItems": 2}, "minItems": 1, "maxItems": 2},
    {"type": "array", "maxItems": 0},
    # objects
    obj({}),
    obj({"a": S}),
    obj({"b": I, "a": S, "c": {"type": "boolean"}}),
    {"type": "object", "properties": {"a": I, "b": I}, "required": ["b"], "additionalProperties": False},
    {"type": "object", "additionalProperties": I, "minProperties": 1, "maxProperties": 2},
    {"type": "object", "patternProperties": {"^x[0-9]$": I}, "additionalProperties": False, "maxProperties": 2},
    {"type": "object", "properties": {"a": I}, "required": ["a"], "additionalProperties": False, "maxProperties": 1},
    obj({"deep": obj({"deeper": obj({"deepest": I})})}),
    obj({"": I, "a b": I, "\u00fc\"\\": I}),
    # in place of others
    {"anyOf": [I, {"type": "null"}]},
    {"anyOf": [obj({"a": I}), obj({"b": S})]},
    {"oneOf": [obj({"kind": {"const": "x"}, "v": I}), obj({"kind": {"const": "y"}, "v": S})]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 8}]},
    {"allOf": [obj({"a": I}), {"type": "object"}]},
    # references
    {"$defs": {"n": I}, "type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1, "maxItems": 2},
    {"definitions": {"p": obj({"x": I})}, **obj({"from": {"$ref": "#/definitions/p"}, "to": {"$ref": "#/definitions/p"}})},
    {"$defs": {"t": {"anyOf": [I, {"type": "array", "items": {"$ref": "#/$defs/t"}, "maxItems": 1}]}}, "$ref": "#/$defs/t"},
    # words that say nothing
    {"title": "T", "description": "D", "default": 3, "examples": [1], "$comment": "c", **I},
    {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://example.org/x", **obj({"a": I})},
    {"type": "integer", "minimum": 1, "maximum": 3, "x-unknown": True},
]
# Valid answers may be of any length, and those of a small model are.
ENDLESS = [
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
    {"$defs": {"t": obj({"v": I, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/t"}]}})}, "$ref": "#/$defs/t"},
    obj({"text": {"type": "string"}}),
    {"type": "array", "items": I},
    {"type": "object"},
    {},
]
# What cannot be enforced, and the word that its refusal has.
REFUSED = [
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"not": {"type": "string"}}, "not"),
    ({"type": "array", "contains": I}, "contains"),
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames"),
    ({"if": {"type": "string"}, "then": S}, "if"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    ({"$ref": "https://example.org/other.json"}, "other.json"),
    ({"type": "string", "format": "no-such-format"}, "no-such-format"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
    ({"type": "wrong"}, "wrong"),
    (False, "nsatisfiable"),
]


wrong = []
for schema in SCHEMAS + ENDLESS:
    for temperature in (0, 1):
        status, got = ask(schema, temperature)
        text = got["message"]["content"] if status == 200 else got
        try:
            assert status == 200, got
            if schema in ENDLESS and got["finish_reason"] == "length":
                continue
            assert got["finish_reason"] == "stop", got
            checker = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
            checker(schema, format_checker=checker.FORMAT_CHECKER).validate(json.loads(text))
        except Exception as e:  # all of them are told
            wrong.append((schema, text, str(e).splitlines()[0]))
        print(temperature, json.dumps(schema)[:80], "->", text[:80].replace("\n", " "))
for schema, word in REFUSED:
    status, got = ask(schema, 0)
    if status != 400 or word not in str(got):
        wrong.append((schema, status, got))
assert not wrong, "\n".join(map(str, wrong))
print(len(SCHEMAS) + len(ENDLESS), "schemas,", len(REFUSED), "refused")
print("all is well")
