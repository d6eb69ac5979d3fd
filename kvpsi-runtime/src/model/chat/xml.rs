//! Calls as Qwen-Coder writes them: each argument between tags of its own.
//!
//! ```text
//! <function=NAME>
//! <parameter=KEY>
//! VALUE
//! </parameter>
//! </function>
//! ```
//!
//! Owns the way from such a call to JSON arguments, and the grammar of a call that
//! must come. A value is a text where its schema takes texts (but `null`, where it
//! takes that, too), and JSON everywhere else. Out of scope: the marks around it.

use super::{
    part::Part,
    schema::closed,
    style::{Tool, ToolFormat},
};
use serde_json::{Map, Value, json};

/// What an argument may be, beside other JSON.
#[derive(Clone, Copy, Debug)]
struct Takes {
    texts: bool,
    null: bool,
}

impl Takes {
    /// Where no schema says.
    const ANY: Self = Self {
        texts: true,
        null: true,
    };
}

/// What is kept of a function while its calls may come.
#[derive(Clone, Debug)]
pub(super) struct Function {
    pub name: String,
    /// Arguments that its schema names, where calls are in this form.
    arguments: Vec<(String, Takes)>,
}

impl Function {
    pub fn new(tool: &Tool, format: ToolFormat) -> Self {
        let mut arguments = Vec::new();
        if format == ToolFormat::Xml {
            let schema = tool.parameters();
            let named = schema["properties"].as_object();
            arguments.extend(named.into_iter().flat_map(|all| all.keys()).map(|key| {
                let takes = Takes {
                    texts: texts(&schema, key),
                    null: allows(&schema, key, "null"),
                };
                (key.clone(), takes)
            }));
        }
        Self {
            name: tool.name.clone(),
            arguments,
        }
    }

    fn takes(&self, key: &str) -> Takes {
        let named = self.arguments.iter().find(|(name, _)| name == key);
        named.map_or(Takes::ANY, |(_, takes)| *takes)
    }
}

/// The call of `text`, and what comes after it; `None` where it is none. A call
/// without its end was cut off: its arguments are a JSON text's beginning.
pub(super) fn call<'a>(text: &'a str, functions: &[Function]) -> Option<(Part, &'a str)> {
    let (name, mut rest) = text
        .trim_start()
        .strip_prefix("<function=")?
        .split_once('>')?;
    let function = functions.iter().find(|f| f.name == name);
    let takes = |key: &str| function.map_or(Takes::ANY, |f| f.takes(key));
    let mut arguments = Map::new();
    let told = |arguments: String| Part::Call {
        name: name.to_owned(),
        arguments,
    };
    loop {
        let next = rest.trim_start();
        if let Some(after) = next.strip_prefix("</function>") {
            return Some((told(Value::Object(arguments).to_string()), after));
        }
        let parameter = next
            .strip_prefix("<parameter=")
            .and_then(|p| p.split_once('>'));
        let Some((key, value)) = parameter else {
            // What is no parameter and none that was begun is no call.
            let begun = "<parameter=".starts_with(next) || next.starts_with("<parameter=");
            let ended = "</function>".starts_with(next);
            return (begun || ended).then(|| (told(open(arguments)), ""));
        };
        let Some((value, after)) = value.split_once("</parameter>") else {
            let mut begun = open(arguments);
            if begun.len() > 1 {
                begun.push(',');
            }
            begun.push_str(&format!("{}:", json!(key)));
            let value = value.strip_prefix('\n').unwrap_or(value);
            match takes(key).texts {
                true => {
                    begun.push_str(&json!(value).to_string());
                    begun.pop();
                }
                false => begun.push_str(value),
            }
            return Some((told(begun), ""));
        };
        arguments.insert(key.to_owned(), read(value, takes(key)));
        rest = after;
    }
}

/// An object without its end.
fn open(arguments: Map<String, Value>) -> String {
    let mut text = Value::Object(arguments).to_string();
    text.pop();
    text
}

/// Whether the value of an argument has no end yet.
pub(super) fn is_open(call: &str) -> bool {
    let last = call.rsplit_once("<parameter=");
    last.is_some_and(|(_, value)| !value.contains("</parameter>"))
}

fn read(value: &str, takes: Takes) -> Value {
    let value = value.strip_prefix('\n').unwrap_or(value);
    let value = value.strip_suffix('\n').unwrap_or(value);
    let parsed = serde_json::from_str::<Value>(value).ok();
    let keep = |v: &Value| match takes.texts {
        true => v.is_null() && takes.null,
        false => true,
    };
    parsed
        .filter(keep)
        .unwrap_or_else(|| Value::String(value.to_owned()))
}

fn property<'a>(schema: &'a Value, key: &str) -> &'a Value {
    &schema["properties"][key]
}

/// Parts of a schema that are looked at for one argument.
const MOST_PARTS: usize = 64;

/// Whether an argument may be a text. One that the schema does not know is.
fn texts(schema: &Value, key: &str) -> bool {
    allows(schema, key, "string")
}

fn allows(schema: &Value, key: &str, kind: &str) -> bool {
    takes(property(schema, key), schema, kind, &mut 0)
}

/// Whether a part of `whole` takes values of a kind, as far as its keywords say,
/// and as far as a look at `MOST_PARTS` tells: references may go in circles.
fn takes(part: &Value, whole: &Value, kind: &str, looked: &mut usize) -> bool {
    *looked += 1;
    if *looked > MOST_PARTS {
        return false;
    }
    let inner = |part: &Value| takes(part, whole, kind, looked);
    let is_kind = |v: &Value| match kind {
        "null" => v.is_null(),
        _ => v.is_string(),
    };
    if let Some(reference) = part["$ref"].as_str() {
        let target = reference.strip_prefix('#').and_then(|p| whole.pointer(p));
        return target.is_some_and(inner);
    }
    if let Some(value) = part.get("const") {
        return is_kind(value);
    }
    if let Some(values) = part["enum"].as_array() {
        return values.iter().any(is_kind);
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        if let Some(parts) = part[key].as_array() {
            return match key {
                "allOf" => parts.iter().all(inner),
                _ => parts.iter().any(inner),
            };
        }
    }
    match &part["type"] {
        Value::String(one) => one == kind,
        Value::Array(all) => all.iter().any(|one| one == kind),
        _ => true,
    }
}

/// Lark rules of a call of `tool`; their names begin with `rule`.
///
/// # Errors
/// A text must be as a keyword says that cannot be enforced here.
pub(super) fn rules(tool: &Tool, rule: &str) -> Result<String, String> {
    let schema = closed(tool.parameters());
    let none = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&none);
    let required = schema["required"].as_array();
    let text = |text: &str| json!(text).to_string();
    let mut call = text(&format!("<function={}>\n", tool.name));
    let mut all = String::new();
    for (i, (key, part)) in properties.iter().enumerate() {
        if key.contains(['>', '<', '\n']) {
            return Err(format!("the property `{key}` has a name that is no tag"));
        }
        let (name, tag) = (format!("{rule}p{i}"), text(&format!("<parameter={key}>\n")));
        let end = text("\n</parameter>\n");
        let mark = match required.is_some_and(|r| r.iter().any(|k| k == key)) {
            true => "",
            false => "?",
        };
        call.push_str(&format!(" {name}{mark}"));
        if !texts(&schema, key) {
            let mut value = part.clone();
            if let Some(fields) = value.as_object_mut() {
                for shared in ["$defs", "definitions"] {
                    if let Some(defs) = schema.get(shared) {
                        fields.entry(shared).or_insert_with(|| defs.clone());
                    }
                }
                fields.insert(
                    "x-guidance".into(),
                    json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}),
                );
            }
            all.push_str(&format!(
                "{name}: {tag} {name}v {end}\n{name}v: %json {value}\n"
            ));
            continue;
        }
        let fixed = part["enum"].as_array().cloned();
        let fixed = fixed.or_else(|| Some(vec![part.get("const")?.clone()]));
        if let Some(values) = fixed {
            let values = values.iter().map(|v| match v {
                Value::String(v) => text(v),
                other => text(&other.to_string()),
            });
            let values = values.collect::<Vec<_>>().join(" | ");
            all.push_str(&format!("{name}: {tag} ({values}) {end}\n"));
            continue;
        }
        let least = part["minLength"].as_u64().unwrap_or(0);
        let most = part["maxLength"].as_u64();
        if let Some(keyword) = ["pattern", "format", "allOf"]
            .into_iter()
            .find(|k| part.get(*k).is_some())
        {
            return Err(format!(
                "`{keyword}` of `{key}` cannot be enforced in the form of this model's calls"
            ));
        }
        let most = most.map_or(String::new(), |n| n.to_string());
        // A text with the tag that ends it, or the mark that ends the call, would not
        // come back whole.
        all.push_str(&format!(
            "{name}: {tag} {name}v \"\\n\"\n{name}v[suffix=\"</parameter>\"]: \
             /(?s:.{{{least},{most}}})\\n/ & ~/(?s:.*)<\\/(parameter|tool_call)>(?s:.*)/\n"
        ));
    }
    Ok(format!("{rule}: {call} {}\n{all}", text("</function>")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_that_refers_to_itself_is_looked_at_for_a_while_only() {
        let again = json!({"$ref": "#/properties/a"});
        let all = vec![again; 100];
        let schema = json!({"properties": {"a": {"anyOf": all}, "b": {"type": "string"}}});
        assert!(!texts(&schema, "a"));
        assert!(texts(&schema, "b"));
    }
}
