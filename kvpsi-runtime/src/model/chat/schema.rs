//! JSON schemas as llguidance takes them.
//!
//! Out of scope: what a schema means.

use serde_json::Value;

/// A schema whose objects have no properties but those that it names, where it
/// does not say: a function has no use for others. Parts of an `allOf` stay open:
/// they name what others of them have.
pub(super) fn closed(mut schema: Value) -> Value {
    let Some(fields) = schema.as_object_mut() else {
        return schema;
    };
    for (key, value) in fields.iter_mut() {
        match (key.as_str(), value) {
            ("properties" | "$defs" | "definitions", Value::Object(all)) => {
                all.values_mut().for_each(|v| *v = closed(v.take()));
            }
            ("anyOf" | "oneOf" | "prefixItems", Value::Array(all)) => {
                all.iter_mut().for_each(|v| *v = closed(v.take()));
            }
            ("items", items) => *items = closed(items.take()),
            _ => {}
        }
    }
    let says = ["additionalProperties", "patternProperties", "allOf", "$ref"];
    if fields.contains_key("properties") && !says.iter().any(|key| fields.contains_key(*key)) {
        fields.insert("additionalProperties".into(), Value::Bool(false));
    }
    schema
}

/// A schema whose references have no percent-escapes: these are URIs, and
/// llguidance looks their parts up as they are written.
#[must_use]
pub fn decoded(mut schema: Value) -> Value {
    match &mut schema {
        Value::Array(all) => all.iter_mut().for_each(|v| *v = decoded(v.take())),
        Value::Object(fields) => {
            for (key, value) in fields.iter_mut() {
                match (key.as_str(), &mut *value) {
                    // Values, and no schemas.
                    ("const" | "enum" | "default" | "examples", _) => {}
                    ("$ref", Value::String(reference)) if reference.starts_with("#/") => {
                        if let Some(plain) = unescaped(reference) {
                            *reference = plain;
                        }
                    }
                    (
                        "properties" | "patternProperties" | "$defs" | "definitions",
                        Value::Object(all),
                    ) => all.values_mut().for_each(|v| *v = decoded(v.take())),
                    _ => *value = decoded(value.take()),
                }
            }
        }
        _ => {}
    }
    schema
}

/// `None` where an escape is wrong, or its bytes are no text.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let digits = part
            .get(..2)
            .filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(part.get(2..)?.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn arguments_have_no_properties_that_their_schema_does_not_name() {
        let schema = json!({
            "properties": {
                "a": {"properties": {"b": {"type": "string"}}},
                "c": {"anyOf": [{"properties": {}}, {"type": "null"}]},
                "d": {"properties": {}, "additionalProperties": true},
            },
        });
        let closed = closed(schema);
        assert_eq!(closed["additionalProperties"], false);
        assert_eq!(closed["properties"]["a"]["additionalProperties"], false);
        assert_eq!(
            closed["properties"]["c"]["anyOf"][0]["additionalProperties"],
            false
        );
        assert_eq!(closed["properties"]["d"]["additionalProperties"], true);
        assert!(
            closed["properties"]["c"]
                .get("additionalProperties")
                .is_none()
        );
    }

    #[test]
    fn pointers_are_decoded_where_they_are_references() {
        let schema = json!({
            "$ref": "#/$defs/p%20q%C3%BC",
            "properties": {"$ref": {"$ref": "#/$defs/a%5Bb%5D"}, "const": {"$ref": "#/%41"}},
            "enum": [{"$ref": "#/%41"}], "const": {"$ref": "#/%41"},
            "anyOf": [{"$ref": "#/$defs/%zz%4"}, {"$ref": "other%20.json"}, {"$ref": "#/%ff"}],
        });
        let decoded = decoded(schema);
        assert_eq!(decoded["$ref"], "#/$defs/p qü");
        assert_eq!(decoded["properties"]["$ref"]["$ref"], "#/$defs/a[b]");
        assert_eq!(decoded["properties"]["const"]["$ref"], "#/A");
        assert_eq!(decoded["enum"][0]["$ref"], "#/%41");
        assert_eq!(decoded["const"]["$ref"], "#/%41");
        assert_eq!(decoded["anyOf"][0]["$ref"], "#/$defs/%zz%4");
        assert_eq!(decoded["anyOf"][1]["$ref"], "other%20.json");
        assert_eq!(decoded["anyOf"][2]["$ref"], "#/%ff");
    }
}
