//! The fields of a JSON object, each asked for by name and type.

use super::{super::error::ApiError, is_nothing, values::Left};
use serde_json::{Map, Value};
use std::{fmt::Display, ops::RangeInclusive};

/// A parsed body.
pub(in crate::server) struct Fields {
    all: Map<String, Value>,
    /// For JSON in its texts, and arguments of calls.
    pub left: Left,
}

impl Fields {
    /// Of an object that is there.
    pub fn of(fields: Map<String, Value>) -> Self {
        Self {
            all: fields,
            left: Left::of_texts(),
        }
    }

    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let left = Left::default();
        match left.parse(body) {
            Ok(Value::Object(all)) => Ok(Self {
                all,
                left: Left::of_texts(),
            }),
            Ok(_) => Err(ApiError::bad("the body must be a JSON object")),
            Err(e) if body.is_empty() => Err(ApiError::bad(format!("the body is empty: {e}"))),
            Err(e) if e.is_data() => Err(ApiError::bad(format!("the body is too much: {e}"))),
            Err(e) => Err(ApiError::bad(format!("the body is not JSON: {e}"))),
        }
    }

    /// Without these fields from now on.
    pub fn leave(&mut self, names: &[&str]) {
        self.all.retain(|name, _| !names.contains(&name.as_str()));
    }

    /// A field, which is not there any more; null is none.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        let value = self.all.get_mut(name).map(Value::take);
        value.filter(|v| !v.is_null())
    }

    /// A field that has another name elsewhere.
    pub fn set(&mut self, name: &str, value: Option<Value>) {
        self.all.insert(name.to_owned(), value.unwrap_or_default());
    }

    /// A field; null is none.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.all.get(name).filter(|v| !v.is_null())
    }

    /// A field is there and asks for something.
    pub fn asks_for(&self, name: &str) -> bool {
        self.all.get(name).is_some_and(|v| !is_nothing(v))
    }

    /// Refuses those of `refused` that are there and ask for something.
    pub fn refuse(&self, refused: &[(&str, &str)]) -> Result<(), ApiError> {
        match refused.iter().find(|(name, _)| self.asks_for(name)) {
            Some((name, why)) => Err(ApiError::unsupported(name, why)),
            None => Ok(()),
        }
    }

    fn typed<T>(
        &self,
        name: &str,
        what: impl Display,
        get: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let wrong = || ApiError::param(name, format!("`{name}` must be {what}"));
        self.get(name).map(|v| get(v).ok_or_else(wrong)).transpose()
    }

    pub fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub fn text(&self, name: &str) -> Result<Option<String>, ApiError> {
        self.typed(name, "a string", |v| v.as_str().map(str::to_owned))
    }

    /// An array, which is not there any more; none is an empty one.
    pub fn take_list(&mut self, name: &str) -> Result<Vec<Value>, ApiError> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(all)) => Ok(all),
            Some(_) => Err(ApiError::param(name, format!("`{name}` must be an array"))),
        }
    }

    pub fn number(&self, name: &str, in_: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let what = format!("a number between {} and {}", in_.start(), in_.end());
        self.typed(name, what, |v| v.as_f64().filter(|n| in_.contains(n)))
    }

    pub fn whole(&self, name: &str, in_: RangeInclusive<u64>) -> Result<Option<u64>, ApiError> {
        let what = if *in_.end() == u64::MAX {
            format!("a whole number from {} to {}", in_.start(), u64::MAX)
        } else {
            format!("a whole number between {} and {}", in_.start(), in_.end())
        };
        // Some clients write 64 as 64.0.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked: whole, not negative, and exact in f64"
        )]
        let whole = |v: &Value| {
            v.as_u64().or_else(|| {
                v.as_f64()
                    .filter(|f| f.fract() == 0.0 && (0.0..=9e15).contains(f))
                    .map(|f| f as u64)
            })
        };
        self.typed(name, what, |v| whole(v).filter(|n| in_.contains(n)))
    }
}
