//! JSON of clients, read within a bound on how much it becomes.
//!
//! Owns that bound. A byte of JSON may become a hundred bytes of memory: two are a
//! number in a list, eight an object with one key. Out of scope: what values mean.

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::{cell::Cell, fmt};

/// Values that a body may have: as many as the longest context has tokens, twice.
pub(in crate::server) const MOST_VALUES: usize = 1 << 18;
/// An object takes as much as so many numbers, beside its values.
const OBJECT: usize = 8;

/// Values of calls' arguments and of the JSON in a body's texts, all together:
/// templates copy them.
const MOST_IN_TEXTS: usize = 1 << 15;

/// Values that may come yet.
pub(in crate::server) struct Left {
    left: Cell<usize>,
    most: usize,
}

impl Default for Left {
    fn default() -> Self {
        Self::of(MOST_VALUES)
    }
}

impl Left {
    fn of(most: usize) -> Self {
        Self {
            left: Cell::new(most),
            most,
        }
    }

    /// For a body's texts and the arguments of its calls.
    pub fn of_texts() -> Self {
        Self::of(MOST_IN_TEXTS)
    }

    /// Counts a value that is there, if it is no more than is left.
    pub fn spend(&self, v: &Value) -> bool {
        let left = count(v, self.left.get());
        self.left.set(left.unwrap_or(self.left.get()));
        left.is_some()
    }

    /// A value that is no more than is left. One that is refused takes nothing of it.
    ///
    /// # Errors
    /// It is more, or no JSON.
    pub fn parse(&self, bytes: &[u8]) -> serde_json::Result<Value> {
        let before = self.left.get();
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let value = Counting(self).deserialize(&mut json);
        let value = value.and_then(|value| json.end().map(|()| value));
        if value.is_err() {
            self.left.set(before);
        }
        value
    }
}

/// Whether a value has at most so many values in it, objects as [`Left`] counts them.
pub(in crate::server) fn within(v: &Value, most: usize) -> bool {
    count(v, most).is_some()
}

/// What is left of so many values, if `v` has no more.
fn count(v: &Value, left: usize) -> Option<usize> {
    match v {
        Value::Array(all) => all
            .iter()
            .try_fold(left.checked_sub(1)?, |l, v| count(v, l)),
        Value::Object(all) => {
            let left = left.checked_sub(1 + OBJECT)?;
            all.values().try_fold(left, |l, v| count(v, l))
        }
        _ => left.checked_sub(1),
    }
}

/// Bytes of a value as JSON, without its text.
pub(in crate::server) fn bytes(v: &impl serde::Serialize) -> usize {
    struct Counter(usize);
    impl std::io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    match serde_json::to_writer(&mut counter, v) {
        Ok(()) => counter.0,
        Err(_) => usize::MAX,
    }
}

#[derive(Clone, Copy)]
struct Counting<'a>(&'a Left);

impl Counting<'_> {
    fn take<E: Error>(self, many: usize) -> Result<(), E> {
        let left = self.0.left.get().checked_sub(many);
        let left = left.ok_or_else(|| {
            E::custom(format!(
                "it has too many values (a body may have {} of its kind), where an object counts as {OBJECT} more",
                self.0.most
            ))
        })?;
        self.0.left.set(left);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Counting<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Value, D::Error> {
        self.take(1)?;
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counting<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(v) = seq.next_element_seed(self)? {
            all.push(v);
        }
        // A list that grew has room for twice as many.
        all.shrink_to_fit();
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.take(OBJECT)?;
        let mut all = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            all.insert(key, map.next_value_seed(self)?);
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_is_read_as_serde_json_reads_it() {
        for text in [
            r#"{"b": [1, -2, 3.5, 1e300, "\u00fcx", null, true], "a": {}, "b2": {"c": [[]]}}"#,
            "18446744073709551615",
            "\"x\"",
        ] {
            let plain: Value = serde_json::from_str(text).unwrap();
            let counted = Left::default().parse(text.as_bytes()).unwrap();
            // Keys in their order too.
            assert_eq!(counted.to_string(), plain.to_string());
        }
        for bad in ["", "{", "1 2", "[1,]", "{\"a\" 1}"] {
            assert!(Left::default().parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let deep = "[".repeat(100_000);
        assert!(Left::default().parse(deep.as_bytes()).is_err());
    }

    #[test]
    fn a_body_has_so_many_values_and_no_more() {
        let list = |n: usize| format!("[{}0]", "0,".repeat(n - 1));
        let parse = |text: &str| Left::default().parse(text.as_bytes());
        assert!(parse(&list(MOST_VALUES - 1)).is_ok());
        let e = parse(&list(MOST_VALUES)).unwrap_err().to_string();
        assert!(e.contains("may have 262144"), "{e}");
        let objects = format!("[{}0]", r#"{"a":0},"#.repeat(MOST_VALUES / 9));
        assert!(parse(&objects).is_err());
        // What one text takes others lack.
        let left = Left::default();
        assert!(left.parse(list(MOST_VALUES / 2).as_bytes()).is_ok());
        // Nor does one that is refused.
        for refused in [list(MOST_VALUES / 2), "[0, 0, x]".into()] {
            assert!(left.parse(refused.as_bytes()).is_err());
        }
        assert!(left.parse(list(MOST_VALUES / 2 - 2).as_bytes()).is_ok());
        assert!(within(&json!({"a": [0, 0]}), 12) && !within(&json!({"a": [0, 0]}), 11));
        assert_eq!(bytes(&json!({"a": [0, 0]})), r#"{"a":[0,0]}"#.len());
    }
}
