//! What Python's own methods give, as Python 3.11 wrote it.

use crate::model::chat::ChatTemplate;

fn rendered(source: &str) -> Result<String, String> {
    let template = ChatTemplate::compile(source, String::new(), String::new());
    let text = template.and_then(|t| t.render(&[], true));
    text.map_err(|e| e.to_string())
}

#[test]
fn methods_that_split_give_what_pythons_do() {
    for (source, want) in [
        ("'a  b  c '.rsplit(none, 1)", "['a  b', 'c']"),
        ("' a  b '.rsplit(none, 0)", "[' a  b']"),
        ("'a b'.rsplit(none, -1)", "['a', 'b']"),
        ("' a b  c'.rsplit()", "['a', 'b', 'c']"),
        ("' a b  c'.rsplit(none, 9)", "['a', 'b', 'c']"),
        ("'a,b,c'.rsplit(',', 1)", "['a,b', 'c']"),
        ("'  '.rsplit(none, 1)", "[]"),
        ("' a  b  c '.split(none, 1)", "['a', 'b  c ']"),
        ("'a,b'.split(',', 0)", "['a,b']"),
        ("'a,b,c'.split(',', maxsplit=1)", "['a', 'b,c']"),
        ("'a,b,c'.split(sep=',')", "['a', 'b', 'c']"),
        ("'a,b,c'.rsplit(',', maxsplit=1)", "['a,b', 'c']"),
        ("'a b c'.rsplit(maxsplit=1)", "['a b', 'c']"),
        ("'a\\nb\\n'.splitlines(keepends=true)", "['a\\n', 'b\\n']"),
    ] {
        let text = rendered(&format!("{{{{ {source} }}}}"));
        assert_eq!(text.as_deref(), Ok(want), "{source}");
    }
    for source in ["'a'.split('')", "'a'.rsplit('')", "'a'.rsplit('', 1)"] {
        let error = rendered(&format!("{{{{ {source} }}}}")).unwrap_err();
        assert!(error.contains("empty separator"), "{source}: {error}");
    }
}

/// `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`
/// of transformers' chat_template_utils.py.
#[test]
fn arguments_of_tojson_may_be_given_by_their_place() {
    let value = "{'b': 'é', 'a': [1]}";
    for (arguments, want) in [
        ("", r#"{"b": "é", "a": [1]}"#),
        ("true", r#"{"b": "\u00e9", "a": [1]}"#),
        ("false, 1", "{\n \"b\": \"é\",\n \"a\": [\n  1\n ]\n}"),
        ("false, none, [';', '=']", r#"{"b"="é";"a"=[1]}"#),
        ("false, none, none, true", r#"{"a": [1], "b": "é"}"#),
        ("false, none, sort_keys=true", r#"{"a": [1], "b": "é"}"#),
        ("indent=none", r#"{"b": "é", "a": [1]}"#),
    ] {
        let text = rendered(&format!("{{{{ {value}|tojson({arguments}) }}}}"));
        assert_eq!(text.as_deref(), Ok(want), "{arguments}");
    }
    for arguments in ["true, ensure_ascii=true", "1, 2, 3, 4, 5", "of_next_year=1"] {
        let text = rendered(&format!("{{{{ {value}|tojson({arguments}) }}}}"));
        assert!(text.is_err(), "{arguments}: {text:?}");
    }
}

/// The end of an `if` is where its branches jump to, and may be what ends a block.
#[test]
fn a_block_may_end_with_an_if() {
    for (source, want) in [
        (
            "{% set x %}{% if true %}a{% else %}b{% endif %}{% endset %}{{ x }}",
            "a",
        ),
        (
            "{% set x %}{% if false %}a{% elif true %}b{% endif %}{% endset %}{{ x }}",
            "b",
        ),
        (
            "{% filter upper %}{% if true %}a{% else %}b{% endif %}{% endfilter %}",
            "A",
        ),
        (
            "{% with y = 1 %}{% if y %}a{% else %}b{% endif %}{% endwith %}",
            "a",
        ),
    ] {
        assert_eq!(rendered(source).as_deref(), Ok(want), "{source}");
    }
    let leaves = "{% for i in [1] %}{% set x %}{% break %}{% endset %}{% endfor %}";
    assert!(rendered(leaves).unwrap_err().contains("cannot leave"));
}
