//! Templates that take too much, and those that take much with reason.

use crate::model::chat::{ChatTemplate, Message, Role};
use std::time::Instant;

fn rendered(source: &str) -> Result<String, String> {
    let template = ChatTemplate::compile(source, String::new(), String::new());
    let messages = [Message::new(Role::User, "a user's question")];
    template
        .and_then(|t| t.render(&messages, true))
        .map_err(|e| e.to_string())
}

#[test]
fn what_takes_too_much_is_an_error_in_time() {
    let doubled = |what: &str| {
        format!(
            "{{% set n = namespace(s='x', l=[1]) %}}{{% for i in range(60) %}}{what}{{% endfor %}}{{{{ n.s|length }}}}"
        )
    };
    for source in [
        // A text, a list or what is written, doubled.
        doubled("{% set n.s = n.s ~ n.s %}"),
        doubled("{% set n.s = n.s + n.s %}"),
        doubled("{% set n.s = n.s * 2 %}"),
        doubled("{% set n.s = [n.s, n.s]|join %}"),
        doubled("{% set n.s = n.s.replace('x', 'xx') %}"),
        doubled("{% set n.s = n.s|replace('x', 'xx') %}"),
        doubled("{% set n.s = '%s%s'|format(n.s, n.s) %}"),
        doubled("{% set n.s = '{0}{0}'.format(n.s) %}"),
        doubled("{% set n.l = n.l + n.l %}"),
        doubled("{% set n.l = [n.l, n.l] %}"),
        doubled("{% set n.l = {'a': n.l, 'b': n.l} %}"),
        doubled("{% set t %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = t %}"),
        "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}".to_owned()
            + &doubled("{% set n.s = m(n.s) %}"),
        "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}".to_owned()
            + &doubled("{% set t %}{% call m() %}{{ n.s }}{% endcall %}{% endset %}{% set n.s = t %}"),
        doubled("{% set t %}{% filter replace('x', 'xx') %}{{ n.s }}{% endfilter %}{% endset %}{% set n.s = t %}"),
        // Much at once.
        "{{ 'x' * 10 ** 9 }}".into(),
        "{{ 10 ** 9 * 'x' }}".into(),
        format!("{{% set s = {} %}}", vec!["'x' * 90000000"; 100].join(" ~ ")),
        "{{ ([0] * 10 ** 12)|list|length }}".into(),
        "{{ ([0] * 10 ** 12)|sum }}".into(),
        "{{ ([[0] * 10 ** 6] * 10 ** 6)|string|length }}".into(),
        "{{ '%.1000000000f'|format(1.0) }}".into(),
        "{{ '%*d'|format(1000000000, 1) }}".into(),
        "{{ '{:>1000000000}'.format(1) }}".into(),
        "{{ 'a\nb'|indent(1000000000) }}".into(),
        "{{ 'a\nb'|indent(width=1000000000) }}".into(),
        "{{ [1]|batch(1000000000, 'x')|list }}".into(),
        "{{ [1]|slice(1000000000)|list }}".into(),
        "{{ 'a'|center(1000000000) }}".into(),
        "{{ 'a'.center(4000, 'x' * 1000000) }}".into(),
        "{{ ('a' * 100000).replace('a', 'b' * 100000)|length }}".into(),
        "{{ ('a' * 100000).join(range(100000))|length }}".into(),
        "{% set l = ['a' * 1000000] * 60 %}{{ l|map('replace', 'a', 'bb')|map('replace', 'b', 'cc')|list|length }}".into(),
        // Without an end.
        "{% for i in range(100000) %}{% for k in range(100000) %}{% endfor %}{% endfor %}".into(),
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}".into(),
        "{% set l = range(100000)|list %}{% for i in l %}{% if -1 in l %}{% endif %}{% endfor %}".into(),
        // Written, and not shown.
        format!("{{% for i in range(100000) %}}{{% set t %}}{}{{% endset %}}{{% endfor %}}", "long ".repeat(1000)),
        // Too deep, and in itself.
        "{% set n = namespace(l=[]) %}{% for i in range(100000) %}{% set n.l = [n.l] %}{% endfor %}".into(),
        "{% set n = namespace() %}{% set n.j = joiner(n) %}{{ n }}".into(),
        "{% set n = namespace() %}{% set n.c = cycler(n) %}{{ n ~ '' }}".into(),
        "{% set l = range(100000)|list %}{{ l|select('in', l)|list|length }}".into(),
        "{{ ('x' * 60000000)|list|length }}".into(),
        "{{ (['x' * 60000] * 1000)|map('list')|list|length }}".into(),
        "{{ (['x' * 60000] * 1000)|map('split', '')|list|length }}".into(),
        "{{ ('x' * 2000000).rsplit('x')|length }}".into(),
        "{{ ('\n' * 2000000).splitlines()|length }}".into(),
        "{{ ('\n' * 2000000).splitlines(true)|length }}".into(),
        "{{ ('x' * 2000000).split('x')|length }}".into(),
        "{{ 'abc'.split('')|length }}".into(),
        "{{ strftime_now('%c' * 30000) }}".into(),
        // What the compiler looks at again and again.
        format!("{{{{ {} }}}}", vec!["a == b"; 20_000].join(" and ")),
        format!("{{{{ {} }}}}", vec!["'a'"; 50_000].join(" ~ ")),
        // Compared between two looks at the clock.
        format!("{{% set a = [1] * 2000000 %}}{{% set b = [1] * 2000000 %}}{}", "{% if a == b %}{% endif %}".repeat(9000)),
        // Namespaces hold copies.
        format!("{{% set n = namespace() %}}{{% set l = [range(100000)|list] %}}{}", (0..200).map(|i| format!("{{% set n.a{i} = l %}}")).collect::<String>()),
        "{% for i in [1, 2] %}{% with y = 1 %}{% break %}{% endwith %}{% endfor %}ok".into(),
        "{% for i in [1, 2] %}{% autoescape true %}{% continue %}{% endautoescape %}{% endfor %}ok".into(),
        "{{ 5 is divisibleby(0) }}{{ 1 / 0 }}{{ nothing.of.it }}".into(),
        "{% for i in [1, 2] %}{% set x %}a{% break %}b{% endset %}{% endfor %}ok".into(),
        "{% for i in [1, 2] %}{% filter upper %}{% if i %}{% continue %}{% endif %}{% endfilter %}{% endfor %}".into(),
        "{{ ([[0]] * 100000)|map('batch', 4096, 0)|list|length }}".into(),
        "{{ range(100000)|map('center', 4096)|list|length }}".into(),
        "{% for i in range(100000) %}{% for k in range(100000) %}some text{% endfor %}{% endfor %}".into(),
    ] {
        let begun = Instant::now();
        let error = rendered(&source).expect_err(&source);
        assert!(error.len() < 500 && !error.contains('\n'), "{source}: {error}");
        assert!(begun.elapsed().as_secs() < 120, "{source}: {:?}", begun.elapsed());
    }
}

#[test]
fn a_namespace_holds_a_copy_of_what_is_put_into_it() {
    for (source, want) in [
        ("{% set n.n = n %}{{ n ~ '' }}", "{'n': {}}"),
        ("{% set n.n = [n] %}{{ n|pprint }}", "{'n': [{}]}"),
        (
            "{% set n.a = n|items %}{% set n.b = n.items() %}{{ n.b|list }}",
            "[['a', []]]",
        ),
        (
            "{% set m = namespace(n=n) %}{% set n.m = {'m': m} %}{{ n == m }}{{ n }}",
            "False{'m': {'m': {'n': {}}}}",
        ),
        ("{% set n.c = n|chain({}) %}{{ n ~ '' }}", "{'c': {}}"),
    ] {
        let source = format!("{{% set n = namespace() %}}{source}");
        assert_eq!(rendered(&source).as_deref(), Ok(want), "{source}");
    }
}

#[test]
fn what_a_conversation_needs_is_there() {
    // A variable that gathers all of a long conversation, message by message.
    let source = "{% set n = namespace(s='') %}{% for m in messages %}{% set n.s = n.s + m.content + '\\n' %}{% endfor %}{{ n.s }}";
    let template = ChatTemplate::compile(source, String::new(), String::new()).unwrap();
    let text = "some words of a turn ".repeat(100);
    let messages: Vec<_> = (0..500).map(|_| Message::new(Role::User, &text)).collect();
    assert_eq!(template.render(&messages, true).unwrap().len(), 500 * 2101);
    let source = "{% for m in messages[::-1] %}{{ m.content|upper|trim }}{% endfor %}";
    let template = ChatTemplate::compile(source, String::new(), String::new()).unwrap();
    let messages: Vec<_> = (0..20_000)
        .map(|_| Message::new(Role::User, "hi"))
        .collect();
    assert_eq!(template.render(&messages, true).unwrap().len(), 40_000);
}

#[test]
fn words_of_templates_are_none_in_a_text() {
    for (source, want) in [
        ("{{ '{% generation %}' }}", "{% generation %}"),
        ("{% raw %}{% generation %}{% endraw %}", "{% generation %}"),
        ("{# {% generation %} #}a", "a"),
        ("{%- generation -%} a {%- endgeneration %}", "a"),
        ("{{ '2 * 3' }}{{ 2 * 3 }}{{ 2 *3.5 }}", "2 * 367.0"),
        (
            "{{ 'a' ~ true ~ none ~ 1.0 ~ [1, 'b'] ~ {'k': none} ~ nothing }}",
            "aTrueNone1.0[1, 'b']{'k': None}",
        ),
        (
            "{{ 'id_20240101: %s'|format(1) }}{{ '**%d**'|format(8192) }}{{ '{:>3}'.format('20240101') }}",
            "id_20240101: 1**8192**20240101",
        ),
        ("{{ 'ab' * 2 }}{{ 2 * 'ab' }}", "abababab"),
        ("{{ [1, 2] * 2 }}", "[1, 2, 1, 2]"),
        ("{{ dict(*[{'a': 1}]) }}", "{'a': 1}"),
        ("{% set a, b = 2, 3 %}{{ (a) * b }}", "6"),
        (
            "{{ 'a'|center(4) }}|{{ 'abc'.count('') }}|{{ 'a b'|urlencode }}",
            " a  |4|a%20b",
        ),
        (
            "{% for i in [1, [2, 3]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}",
            "123",
        ),
    ] {
        assert_eq!(rendered(source).as_deref(), Ok(want), "{source}");
    }
    let error = rendered("\n\n{{ nothing.of.it }}").unwrap_err();
    assert!(error.contains(":3)"), "{error}");
}
