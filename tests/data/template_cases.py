"""Records what Jinja2 makes of small templates: tests/data/template_cases.json.

  python3 -m pip install jinja2
  python3 tests/data/template_cases.py > tests/data/template_cases.json

The environment is that of transformers' chat templates (chat_template_utils.py):
immutable and sandboxed, blocks trimmed, loop controls, and its own `tojson`. Of a
template that fails there `null` is recorded. DIFFERENT are the cases in which kvpsi
is known to write something else, with the reason; the test wants them to differ.
"""

import json
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox

GIVEN = {
    "n": 7, "m": -7, "z": 0, "big": 10**12, "x": 2.5, "y": -0.5, "tiny": 1e-7, "huge": 1e22, "yes": True, "no": False, "nil": None,
    "s": "Hello, World", "t": " two  words\t", "u": "Grüße, 日本", "empty": "", "lines": "a\nb\r\n\nc\n", "digits": "042",
    "list": [3, 1, 2], "words": ["b", "A", "c"], "mixed": [1, "a", None, True, 2.0], "nothing": [],
    "map": {"b": 1, "a": None, "C": [1, 2]}, "odd": {"it's": "a \"b\"", "k": "\\"},
    "users": [
        {"name": "Bo", "age": 30, "at": {"city": "Ulm"}, "on": True},
        {"name": "al", "age": 4, "at": {"city": "Bonn"}, "on": False},
        {"name": "Cy", "age": 30, "at": {}},
    ],
    "long": "The quick brown fox jumps over the lazy dog, again and again and again.",
}

# One line a case; what stands without braces is an expression.
PERCENT = r"""
'%s' % s
'%d items' % n
'%s' % nil ~ '%s' % yes ~ '%s' % x ~ '%s' % map
'%s and %s' % (n, s)
'%5d|%-5d|%05d|%+d|% d' % (n, n, n, n, n)
'%.2f %8.3f %-8.1f| %08.2f %.0f' % (x, x, x, y, x)
'%e %E %g %G %g %g' % (x, big, tiny, huge, big, x)
'%x %X %o %#x %#o' % (n, 255, 8, 255, 8)
'%c%c' % ('a', 98)
'%r %r' % (s, nil)
'100%% of %s' % n
'%(name)s is %(age)d' % users[0]
'%*d|%-*d|%.*f' % (5, n, 5, n, 1, x)
'%.3s|%10s|%-10s|' % (s, 'ab', 'ab')
'%d' % x
'%d' % yes
'%i' % m
'%s' % s % s
'%d' % s
'%s %s' % n
'%s' % (n, n)
'%' % n
'%y' % n
'no' % n
'no' % ()
'%s' % [1, 2]
s|format
'%s, %s!'|format('Hello', s)
'%(a)s'|format(a=1)
'%s|%s'|format(nil, yes)
'%.1f'|format(x)
"""

NUMBERS = r"""
'x'|int
'x'|int(5)
'x'|int(default=5)
'12'|int
'-12'|int
' 12 '|int
'12.7'|int
'0x1f'|int(base=16)
'0x1f'|int(0, 16)
'0b101'|int(0, 2)
'0o17'|int(0, 8)
'ff'|int(0, 16)
'1_000'|int
'1e3'|int
x|int
y|int
yes|int
nil|int
nil|int(3)
list|int
missing|int
''|int
'inf'|int
'x'|float
'x'|float(1.5)
'x'|float(default=2)
'2.50'|float
' 2 '|float
'1e3'|float
'inf'|float
'-nan'|float
'1_0.5'|float
n|float
yes|float
nil|float
list|float
2.5|round
3.5|round
-2.5|round
x|round
x|round(1)
2.675|round(2)
2.55|round(1, 'floor')
2.55|round(1, 'ceil')
2.5|round(method='ceil')
2.5|round(0, 'floor')|int
42.55|round(precision=1)
1234|round(-2)
n|round
n|round(2)
2.5|round(0, 'up')
m|abs
y|abs
'x'|abs
n / 2
n / z
1/0
1//0
1%0
x / z
x // z
x % z
n // z
n % z
n // 2
m // 2
n // m
m // -2
n % 4
m % 4
n % -4
m % -4
x // 0.4
x % 0.4
y % 2
y // 2
x % -2
2 ** 3
2 ** -1
n ** 2
x ** 2
z ** 0
2 ** 0.5
n * x
big * big
-n
-x
+n
yes + 1
yes * 3
s * 2
2 * s
s * z
s * -1
list * 2
[0] * n
1 + 2.0
0.1 + 0.2
1e16
1e15
123456789012345678
1.5e300 * 1e300
tiny
huge
1.0
100000000000000000000.0
n == 7.0
1 == yes
'1' == 1
n < x
s < 'z'
list < [4]
1 < 'a'
1 < 2 < 3
3 > 2 > 2
n is divisibleby 7
n is divisibleby(2)
n is odd
n is even
n is integer
x is integer
x is float
yes is integer
yes is number
yes is boolean
n is boolean
s is number
"""

TEXTS = r"""
x|string
1.0|string
nil|string
yes|string
list|string
map|string
tiny|string
huge|string
missing|string
n ~ x ~ nil ~ yes ~ list
odd
odd|string
mixed
u
[u]
['a\nb', 'tab\t', '\\', '\x00', '\x7f', 'é']
s|title
"it's o'clock, they're big-time (a) [b] {c} <d> x_y 3rd"|title
"it's o'clock-x_y 3rd"|title
s.title()
"it's o'clock-x_y 3rd".title()
u|title
s|capitalize
'ÄB'|capitalize
u|upper
'ß'|upper
u|lower
n|upper
yes|lower
nil|upper
s|wordcount
t|wordcount
"it's two-three_four"|wordcount
u|wordcount
long|wordwrap(20)
long|wordwrap(20, true, ' | ')
long|wordwrap(width=10, wrapstring='/')
'abcdefghijklmno pq'|wordwrap(5)
'abcdefghijklmno pq'|wordwrap(5, false)
'aa-bb-cc dd'|wordwrap(5)
'aa-bb-cc dd'|wordwrap(5, break_on_hyphens=false)
'a\n\nb c'|wordwrap(3)
long|truncate(20)
long|truncate(20, true)
long|truncate(20, true, '..')
long|truncate(20, false, '..', 0)
long|truncate(length=25, end='')
long|truncate(length=9, killwords=true, leeway=0)
s|truncate(9)
s|truncate(3)
s|truncate
nil|truncate(5)
'abc def'|truncate(2, leeway=0)
s|center(20)
s|center(20) ~ '|'
s|trim('Hd')
t|trim ~ '|'
n|trim
s|replace('l', 'L')
s|replace('l', 'L', 1)
s|replace('l', 'L', count=2)
n|replace('7', '8')
s|replace('', '-')
s|indent
lines|indent(2)
lines|indent(2, true)
lines|indent(2, false, true)
lines|indent(width='> ', first=true)
'a\nb'|indent(2, indentfirst=true)
u|urlencode
map|urlencode
'a b/c?d=é&f'|urlencode
s|e
'<a & "b">'|e
'<a & "b">'|escape
'<a>'|forceescape
'<a>'|safe
'<b>a</b> <!-- c --> d'|striptags
{'class': 'a b', 'id': nil, 'n': 1}|xmlattr
{'a': '<"&>'}|xmlattr
{}|xmlattr
{'a': missing, 'b': true}|xmlattr(false)
1000|filesizeformat
1500000|filesizeformat
1500000|filesizeformat(true)
1|filesizeformat
s|reverse
u|reverse
s|length
u|length
s|first
s|last
empty|first
s|list
u|list
s|sort
s|unique|list
s|batch(5)|list
s|pprint
map|pprint
"""

METHODS = r"""
'a  b c '.split()
'a  b c '.split(' ')
'a  b c '.split(none, 1)
'a  b c '.split(None, 1)
'a  b c '.split(maxsplit=1)
'a,b,c'.split(',', 1)
'a,b,c'.split(',', maxsplit=1)
'a,b,c'.split(sep=',')
'a,b,c'.rsplit(',', 1)
''.split()
''.split(',')
'abc'.split('')
'a\x1fb\u2028c'.split()
lines.splitlines()
lines.splitlines(true)
lines.splitlines(keepends=true)
'a\x0bb\x0cc\u2028d\x85e'.splitlines()
'xxaxx'.strip('x')
'abcab'.strip('ba')
'xxaxx'.lstrip('x')
'xxaxx'.rstrip('x')
t.strip() ~ '|'
t.strip(none) ~ '|'
'\x1fa\x1f'.strip()
s.replace('l', 'L')
s.replace('l', 'L', 1)
s.replace('l', 'L', -1)
s.replace('l', 'L', 0)
s.replace('', '-')
s.replace('', '-', 2)
s.replace('zz', '-')
s.startswith('He')
s.startswith(('x', 'H'))
s.startswith('l', 2)
s.startswith('l', 2, 3)
s.startswith('l', -2)
s.startswith('')
s.endswith('ld')
s.endswith(('x', 'd'))
s.endswith('o', 0, 5)
s.endswith('', 2)
s.find('o')
s.find('o', 5)
s.find('o', 5, 7)
s.find('o', -5)
s.find('zz')
s.find('')
s.find('', 99)
u.find('日')
u.rfind('本')
s.rfind('o')
s.rfind('o', 0, 6)
s.index('o')
s.index('o', 5)
s.index('zz')
s.rindex('o')
s.rindex('zz')
u.index('ß')
s.count('l')
s.count('l', 4)
s.count('l', 0, 3)
s.count('')
s.count('', 5)
u.count('ß')
'42'.zfill(5)
'-42'.zfill(5)
'+4'.zfill(5)
'abc'.zfill(2)
''.zfill(2)
'--1'.zfill(5)
'ab'.center(7) ~ '|'
'ab'.center(7, '*')
'abc'.center(6, '*')
'ab'.center(1)
'ab'.ljust(5, '.')
'ab'.ljust(5) ~ '|'
'ab'.rjust(5, '.')
'ab'.ljust(5, 'xy')
u.center(20, '*')
'12'.isdigit()
''.isdigit()
'1a'.isdigit()
'²'.isdigit()
'½'.isdigit()
'½'.isnumeric()
'²'.isdecimal()
'٣'.isdecimal()
'٣'.isdigit()
'ab'.isalpha()
'ab1'.isalpha()
''.isalpha()
'é'.isalpha()
'ab1'.isalnum()
''.isalnum()
'½'.isalnum()
'ab'.islower()
'aB'.islower()
'a1'.islower()
'1'.islower()
''.islower()
'AB1'.isupper()
'1'.isupper()
'A b'.isupper()
'Ab Cd'.istitle()
'Ab cD'.istitle()
''.istitle()
' \t'.isspace()
''.isspace()
'abc'.isascii()
''.isascii()
u.isascii()
'a_1'.isidentifier()
'1a'.isidentifier()
'a\n'.isprintable()
'ab'.isprintable()
s.upper()
s.lower()
s.swapcase()
'ÄSS'.casefold()
'Straße'.casefold()
'Straße'.upper()
s.capitalize()
'a\tbc\td'.expandtabs()
'a\tbc\td'.expandtabs(4)
'a.b.c'.partition('.')|list
'a.b.c'.rpartition('.')|list
'abc'.partition('.')|list
'abc'.rpartition('.')|list
'abc'.partition('')
'a.b'.partition('.')[0]
'prefix'.removeprefix('pre')
'prefix'.removesuffix('fix')
', '.join(words)
', '.join(list)
''.join(['a', 'b'])
', '.join(map)
'-'.join('abc')
'{} {}'.format(n, s)
'{0}{1}{0}'.format(n, x)
'{a}-{b}'.format(a=1, b=none)
'{:>5}|{:<5}|{:^5}|{:05d}'.format(n, n, n, n)
'{:.2f} {:,} {:x} {:%}'.format(x, big, 255, x)
'{!r} {!s}'.format(s, s)
'{} {} {}'.format(yes, nil, list)
'{} {}'.format(x, 1.0)
'{{}}'.format()
'{}'.format()
'{0[name]}'.format(users[0])
'{:*^9}'.format(s[:3])
'a' 'b'
'a' + 'b'
'a' + 1
'a' in 'abc'
'' in 'abc'
1 in 'abc'
'abc'.nosuch()
n.nosuch()
s.__class__
'abc'[1]
'abc'[-1]
'abc'[9]
u[0]
s[1:4]
s[-3:]
s[::2]
"""

LISTS = r"""
list + [4]
list + nothing
[1] + [2] + [3]
(list + [4])|length
(list + [4])[3]
[1] + 'a'
list + nil
words|join
words|join(', ')
words|join(d=', ')
mixed|join('|')
users|join(', ', attribute='name')
users|join(attribute='age')
users|join(', ', 'name')
users|join(',', attribute='at.city')
map|join(',')
list|sum
list|sum(start=10)
users|sum('age')
users|sum(attribute='age')
users|sum('age', 100)
users|sum(attribute='age', start=0.5)
[[1], [2]]|sum(start=[])
words|sum
nothing|sum
list|max
list|min
words|max
words|min
words|max(true)
words|max(case_sensitive=true)
users|max(attribute='age')
(users|max(attribute='age')).name
(users|min(attribute='age')).name
(users|min(false, 'name')).name
nothing|max
nothing|max is undefined
mixed|max
users|map(attribute='name')|list
users|map(attribute='at.city')|list
users|map(attribute='at.city', default='?')|list
users|map(attribute='on', default=none)|list
users|map('length')|list
words|map('upper')|join
words|map('replace', 'b', 'x')|list
list|map('string')|join('+')
users|map(attribute='nosuch')|list
list|select('odd')|list
list|select('>', 1)|list
list|select('gt', 1)|list
mixed|select|list
list|reject('odd')|list
mixed|select('string')|list
users|selectattr('on')|map(attribute='name')|list
users|rejectattr('on')|map(attribute='name')|list
users|selectattr('age', '>', 5)|map(attribute='name')|list
users|selectattr('at.city', 'equalto', 'Ulm')|map(attribute='name')|list
users|selectattr('name', 'in', ['Bo', 'Cy'])|map(attribute='name')|list
users|selectattr('on', 'defined')|list|length
users|selectattr('nosuch', 'undefined')|list|length
users|groupby('age')|length
{% for age, all in users|groupby('age') %}{{ age }}:{{ all|map(attribute='name')|join('+') }};{% endfor %}
{% for g in users|groupby('age') %}{{ g.grouper }}={{ g.list|length }};{% endfor %}
{% for g in users|groupby('at.city', default='-') %}{{ g.grouper }}={{ g.list|length }};{% endfor %}
{% for g in users|groupby(attribute='name') %}{{ g[0] }};{% endfor %}
{% for g in ['b', 'B', 'a']|groupby('upper') %}{{ g.grouper }}{% endfor %}
list|sort
list|sort(true)
list|sort(reverse=true)
words|sort
words|sort(false, true)
words|sort(case_sensitive=true)
users|sort(attribute='age')|map(attribute='name')|join
users|sort(attribute='age,name')|map(attribute='name')|join
users|sort(false, false, 'name')|map(attribute='name')|join
mixed|sort
map|dictsort
{% for k, v in map|dictsort %}{{ k }}={{ v }};{% endfor %}
{% for k, v in map|dictsort(true) %}{{ k }};{% endfor %}
{% for k, v in {'a': 2, 'b': 1}|dictsort(false, 'value') %}{{ k }};{% endfor %}
{% for k, v in {'a': 2, 'b': 1}|dictsort(by='value', reverse=true) %}{{ k }};{% endfor %}
{% for k, v in {'a': 2, 'b': 1}|dictsort(false, 'key', true) %}{{ k }};{% endfor %}
map|items|list
{% for k, v in map|items %}{{ k }}={{ v }};{% endfor %}
missing|items|list
{% for k, v in map.items() %}{{ k }}={{ v }};{% endfor %}
map.keys()|list
map.values()|list
{'items': 5}.items()|list|length
{'keys': 5}.keys()|list
map|list
map|length
map|first
map|last
map.get('b')
map.get('q')
map.get('q', 5)
map['b']
map.b
map.q is defined
map['q'] is undefined
'a' in map
map.pop('b')
map.update({'z': 1})
list.append(4)
list.index(1)
list.count(1)
list.copy()
words|unique|list
['a', 'A', 'b']|unique|list
['a', 'A', 'b']|unique(true)|list
users|unique(attribute='age')|map(attribute='name')|list
users|unique(false, 'age')|map(attribute='name')|list
list|first
list|last
nothing|first
nothing|last
nothing|first is undefined
list|reverse|list
list|list
list|length
missing|length
nil|length
n|length
list|count
list|batch(2)|list
list|batch(2, '-')|list
list|slice(2)|list
list|slice(2, '-')|list
range(5)|list
range(2, 5)|list
range(5, 0, -2)|list
range(0)|list
range(3)[1]
range(3)|length
list[0]
list[-1]
list[9]
list[9] is undefined
list[1:]
list[::-1]
list[:-1]
list['x']
list.0
1 in list
9 in list
1 not in list
n in missing
list == [3, 1, 2]
[] == nothing
{'a': 1} == {'a': 1}
dict(a=1, b=2)
dict({'a': 1}, b=2)
dict([('a', 1)])
{'a': 1, 'b': {'c': [1]}}
{1: 'a', 'b': 2}
{1: 'a'}[1]
[1, 2,]
(1, 2)|length
(1, 2)[0]
(1,)|length
()|length
{% for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% endfor %}
{% set a, b = 1, 2 %}{{ a }}{{ b }}
list|attr('nosuch') is defined
map|attr('b') is defined
users[0]|attr('name') is defined
missing|default('d')
nil|default('d')
nil|default('d', true)
missing|default(default_value='d')
empty|default('d', boolean=true)
missing|d
missing
missing.x
missing.x.y
map.q.z
missing ~ 'a'
missing + 1
{% for i in missing %}a{% else %}b{% endfor %}
{% for i in nil %}a{% endfor %}
{% for c in 'ab' %}{{ c }}-{% endfor %}
{% for k in map %}{{ k }}{% endfor %}
{% for i in n %}a{% endfor %}
{{ list is sequence }}{{ map is sequence }}{{ s is sequence }}{{ n is sequence }}{{ (list + list) is sequence }}{{ range(2) is sequence }}
{{ list is iterable }}{{ map is iterable }}{{ s is iterable }}{{ n is iterable }}{{ missing is iterable }}
{{ list is mapping }}{{ map is mapping }}{{ map.items() is mapping }}
{{ nil is none }}{{ missing is none }}{{ missing is defined }}{{ nil is defined }}
{{ range is callable }}{{ s is callable }}{{ namespace is callable }}{{ missing is callable }}{{ s.upper is callable }}{{ raise_exception is callable }}
{% macro a() %}{% endmacro %}{{ a is callable }}
{{ n is sameas n }}{{ nil is sameas none }}{{ yes is sameas true }}{{ 1 is sameas true }}
{{ 'upper' is filter }}{{ 'nosuch' is filter }}{{ 'odd' is test }}
{{ 'a' is lower }}{{ 'A' is upper }}{{ 'a' is in 'abc' }}{{ 1 is in list }}{{ 1 is eq 1 }}{{ 2 is gt 1 }}{{ 1 is ne 2 }}
{{ yes is true }}{{ no is false }}{{ 1 is true }}{{ nil is false }}
{{ 'a' is escaped }}{{ 'a' is string }}{{ nil is string }}
"""

JSON = r"""
{true: 1}|tojson
{false: 1, none: 2}|tojson
{1: 2, 1.5: 3}|tojson
{'a': 1}|tojson
map|tojson
odd|tojson
mixed|tojson
u|tojson
u|tojson(ensure_ascii=true)
'😀'|tojson(ensure_ascii=true)
'<a href="b">&\''|tojson
'\x00\x1f\x7f\u2028'|tojson
list|tojson(indent=2)
map|tojson(indent=1)
map|tojson(indent=0)
map|tojson(indent='--')
[]|tojson(indent=2)
{}|tojson(indent=2)
[[], {}]|tojson(indent=2)
map|tojson(separators=(',', ':'))
map|tojson(separators=(',', ':'), indent=1)
odd|tojson(sort_keys=true)
{'b': 1, 'a': 2}|tojson(sort_keys=true)
{'b': {'d': 1, 'c': 2}}|tojson(sort_keys=true)
{1: 1, 'a': 2}|tojson(sort_keys=true)
x|tojson
tiny|tojson
huge|tojson
1.0|tojson
big|tojson
yes|tojson
nil|tojson
missing|tojson
(1, 2)|tojson
range(3)|tojson
range(3)|list|tojson
(list|map('string'))|tojson
(list|map('string')|list)|tojson
(list + [1])|tojson
map.items()|list|tojson
map.keys()|list|tojson
map.keys()|tojson
s|tojson ~ s
{'a': missing}|tojson
1e400|tojson
namespace(a=1)|tojson
"""

STATEMENTS = [
    "{% set ns = namespace(n=0) %}{% macro add() %}{% set ns.n = ns.n + 1 %}{% endmacro %}{{ add() }}{{ add() }}{{ ns.n }}",
    "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b is defined }}",
    "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}",
    "{% set ns = namespace(l=[]) %}{% for i in list %}{% set ns.l = ns.l + [i * 2] %}{% endfor %}{{ ns.l }}",
    "{% set map.b = 2 %}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, a=3) }}",
    "{% macro m() %}{{ varargs|length }}{{ kwargs.a }}{% endmacro %}{{ m(1, 2, a=3) }}",
    "{% macro m(a) %}{{ a }}{{ varargs|join(',') }}{% endmacro %}{{ m(1, 2, 3) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}",
    "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}",
    "{% macro m(a, b='x') %}{{ a }}{{ b }}{% endmacro %}{{ m() }}|{{ m(b=1, a=2) }}",
    "{% macro m(a) %}{{ m.name }}{{ m.arguments|length }}{% endmacro %}{{ m(1) }}",
    "{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}x{% endcall %}",
    "{% macro m() %}[{{ caller(1) }}]{% endmacro %}{% call(a) m() %}{{ a }}{% endcall %}",
    "{% macro m(l) %}{% if l %}{{ l[0] }}{{ m(l[1:]) }}{% endif %}{% endmacro %}{{ m(list) }}",
    "{% macro m() %}a{% endmacro %}{{ m() ~ 'b' }}{{ m()|upper }}{{ m() == 'a' }}{{ m() is string }}",
    "{% raw %}\na {{ b }}\n{% endraw %}\nc",
    "a\n{% raw %}\n{{ x }}{% endraw %}\n b",
    "a {%- raw -%} \n b \n {%- endraw -%} c",
    "  {% raw %}x{% endraw %}  y",
    "{# a #}\nb",
    "a {#- b -#} c",
    "  {# a #}\n  b\n",
    "{% if true %}\n  a\n{% endif %}\nb\n\n",
    "  {%+ if true %}a{% endif +%}\nb",
    "{{ 1 }}\n{{ 2 }}\n",
    "a\r\n{% if true %}\r\nb{% endif %}",
    "{% for i in range(3) -%}\n {{ i }}\n{%- endfor %}",
    "{% for i in list if i > 1 %}{{ loop.index }}{{ i }}{% endfor %}",
    "{% for i in list %}{{ loop.cycle('a', 'b') }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.depth }}{{ loop.nextitem is defined }}{% endfor %}",
    "{% for i in list %}{{ loop.changed(i > 1) }}{% endfor %}",
    "{% for u in users recursive %}{{ u.name }}{% endfor %}",
    "{% for i in [1, [2, [3]]] recursive %}{% if i is iterable %}({{ loop(i) }}){% else %}{{ i }}{% endif %}{% endfor %}",
    "{% for i in list %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in list %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in list %}{{ i }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for i in [] %}a{% else %}b{% endfor %}",
    "{% for i in range(2) %}{% for j in range(2) %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% set a = 1 %}{% for i in list %}{% set a = 2 %}{% endfor %}{{ a }}",
    "{% set a %}x{{ n }}y{% endset %}{{ a|upper }}{{ a|length }}",
    "{% set a | upper %}x{% endset %}{{ a }}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}",
    "{% filter upper %}a{{ s }}{% endfilter %}",
    "{% filter replace('a', 'b') %}aa{% endfilter %}",
    "{% if n == 7 and not no or nil %}a{% elif x %}b{% else %}c{% endif %}",
    "{% if missing %}a{% endif %}{% if nothing %}b{% endif %}{% if 0.0 %}c{% endif %}{% if '' %}d{% endif %}{% if {} %}e{% endif %}{% if ' ' %}f{% endif %}",
    "{{ 'a' if no }}{{ 'a' if no else 'b' }}{{ ('a' if no) is undefined }}",
    "{{ nil or 'a' }}{{ 0 or nothing or 'b' }}{{ 'c' and 'd' }}{{ '' and 'd' }}|{{ not nil }}",
    "{{ empty and 'd' }}|{{ nil and 'd' }}|{{ z or empty }}|{{ list and nothing }}|{{ no or nil }}",
    "{{ s if s else 'x' }}{{ (s or 'x')|length }}",
    "{% do 1 %}",
    "{{ loop }}",
    "{% block a %}b{% endblock %}",
    "{% set joiner = joiner(', ') %}{% for i in list %}{{ joiner() }}{{ i }}{% endfor %}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}",
    "{{ raise_exception('no') }}",
    "{{ nosuch() }}",
    "{{ s|nosuch }}",
    "{{ s is nosuch }}",
    "{{ users[0].name.lower() }}{{ users[0]['at']['city'] }}{{ users[0].at.city[0] }}",
    "{{ 'a\\nb' }}{{ 'a\\tb' }}{{ '\\u00e9' }}{{ '\\x41' }}{{ \"\\\"\" }}{{ '\\'' }}",
    "{{ 1_000 }}{{ 0x1f }}{{ 0b11 }}{{ 0o17 }}{{ 1e3 }}",
    "{{ true }}{{ True }}{{ none }}{{ None }}{{ false }}{{ False }}",
    "{{ [1, 2, 3] | length > 2 }}{{ -1 | abs }}{{ - 1 | abs }}{{ 2 * 3 | string }}",
    "{{ 1 if true else 2 }}{{ (1, 2) }}",
    "{{ not 1 == 2 }}{{ 1 + 2 * 3 }}{{ (1 + 2) * 3 }}{{ 10 - 2 - 3 }}{{ 2 ** 3 ** 2 }}{{ 7 // 2 * 2 }}{{ 'a' ~ 1 + 2 }}",
    "{{ 'a' not in list }}{{ nil is not none }}{{ n is not defined }}",
    "{{ users | map(attribute='name') | map('upper') | join(',') }}",
    "{{ {'a': [1, {'b': 2}]}.a[1].b }}",
    "{% set a = [] %}{% set a = a + [1] %}{% set a = a + ['x'] %}{{ a }}{{ a|length }}{{ a[-1] }}{{ a|tojson }}{{ a + a }}",
    "{{ (list + [4]) is iterable }}{% for i in list + [4] %}{{ i }}{% endfor %}{{ 4 in list + [4] }}{{ list + [4] == [3, 1, 2, 4] }}",
]

TUPLE = "minijinja has no tuples: they are lists"
LAX = "what Jinja2 refuses is taken"
MACRO = "minijinja's macros take the arguments that they name, and no others"
SYNTAX = "minijinja has no such syntax"
RARE = "no template in use needs it"
DIFFERENT = {
    "{{ '%s' % (n, n) }}": TUPLE,
    "{{ map|dictsort }}": TUPLE,
    "{{ map|items|list }}": TUPLE,
    "{{ 1 if true else 2 }}{{ (1, 2) }}": TUPLE,
    "{{ 1 < 'a' }}": LAX,
    "{{ 1 in 'abc' }}": LAX,
    "{% for i in nil %}a{% endfor %}": LAX,
    "{{ map|attr('b') is defined }}": LAX,
    "{{ users[0]|attr('name') is defined }}": LAX,
    "{{ range(3)|tojson }}": LAX,
    "{{ (list|map('string'))|tojson }}": LAX,
    "{{ map.keys()|tojson }}": LAX,
    "{{ namespace(a=1)|tojson }}": LAX,
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, a=3) }}": MACRO,
    "{% macro m() %}{{ varargs|length }}{{ kwargs.a }}{% endmacro %}{{ m(1, 2, a=3) }}": MACRO,
    "{% macro m(a) %}{{ a }}{{ varargs|join(',') }}{% endmacro %}{{ m(1, 2, 3) }}": MACRO,
    "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}": MACRO,
    "{{ +n }}": SYNTAX,
    "{{ s * -1 }}": RARE,
    "{{ map|urlencode }}": RARE,
    "{{ map|pprint }}": RARE,
    "{{ '{:.2f} {:,} {:x} {:%}'.format(x, big, 255, x) }}": RARE,
    "{{ '{!r} {!s}'.format(s, s) }}": RARE,
    "{{ users|map(attribute='on', default=none)|list }}": RARE,
    "{{ dict([('a', 1)]) }}": RARE,
    "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}": RARE,
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}": RARE,
    "{{ nil or 'a' }}{{ 0 or nothing or 'b' }}{{ 'c' and 'd' }}{{ '' and 'd' }}|{{ not nil }}": RARE,
}


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def main():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception

    def render(source):
        try:
            return env.from_string(source).render(**json.loads(json.dumps(GIVEN)))
        except Exception:
            return None

    sources = []
    for group in [PERCENT, NUMBERS, TEXTS, METHODS, LISTS, JSON]:
        for line in group.strip("\n").split("\n"):
            sources.append(line if line.startswith("{%") or line.startswith("{{") else "{{ " + line + " }}")
    sources += STATEMENTS
    assert len(set(sources)) == len(sources), [s for s in sources if sources.count(s) > 1]
    unknown = [s for s in DIFFERENT if s not in sources]
    assert not unknown, unknown
    cases = []
    for source in sources:
        case = {"source": source, "text": render(source)}
        if source in DIFFERENT:
            case["different"] = DIFFERENT[source]
        cases.append(case)
    out = {"jinja2": jinja2.__version__, "variables": json.dumps(GIVEN, ensure_ascii=False), "cases": cases}
    json.dump(out, sys.stdout, indent=1, ensure_ascii=False)
    print()


main()
