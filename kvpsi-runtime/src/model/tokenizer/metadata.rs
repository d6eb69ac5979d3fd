//! Lists and numbers of a file's tokenizer, each refused by the name of its
//! key where it is not what it must be.

use crate::model::gguf::{Gguf, ModelError, whole};
use candle_core::quantized::gguf_file::Value;

/// Reads the tokenizer's keys.
pub(super) struct Metadata<'a>(pub &'a Gguf);

impl Metadata<'_> {
    pub fn bad(&self, key: &str, what: impl Into<String>) -> ModelError {
        ModelError::Metadata {
            path: self.0.path().into(),
            key: key.into(),
            what: what.into(),
        }
    }

    /// Whether the file has this key.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// A text, where the file has one.
    pub fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.bad(key, format!("is {:?}, not a string", other.value_type()))),
        }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.0.content().metadata.get(key)
    }

    /// A list with one entry for each of `count` tokens.
    fn list<T>(
        &self,
        key: &str,
        count: Option<usize>,
        one: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<T>, ModelError> {
        let values = match self.get(key) {
            Some(Value::Array(values)) => values,
            Some(other) => {
                return Err(self.bad(key, format!("is {:?}, not a list", other.value_type())));
            }
            None => {
                return Err(self.bad(
                    key,
                    "is missing: use a GGUF that was converted with its vocabulary",
                ));
            }
        };
        if let Some(count) = count
            && values.len() != count
        {
            return Err(self.bad(
                key,
                format!("has {} entries for {count} tokens", values.len()),
            ));
        }
        let all = values.iter().enumerate().map(|(i, value)| {
            one(value).ok_or_else(|| self.bad(key, format!("holds {value:?} at {i}")))
        });
        all.collect()
    }

    /// The texts of a list.
    pub fn texts(&self, key: &str) -> Result<Vec<String>, ModelError> {
        self.list(key, None, |v| match v {
            Value::String(s) => Some(s.clone()),
            _ => None,
        })
    }

    /// Numbers that are none but NaN and infinities.
    pub fn floats(&self, key: &str, count: usize) -> Result<Vec<f32>, ModelError> {
        self.list(key, Some(count), |v| match v {
            Value::F32(x) if x.is_finite() => Some(*x),
            // Some converters write ranks.
            Value::I32(n) => Some(*n as f32),
            _ => None,
        })
    }

    /// Whole numbers that are not negative.
    pub fn counts(&self, key: &str, count: usize) -> Result<Vec<u32>, ModelError> {
        self.list(key, Some(count), |v| {
            whole(v).and_then(|n| u32::try_from(n).ok())
        })
    }

    /// A token below `count`, where the file names one. Files say -1 for none,
    /// or all ones. One that is not there is told of and not used, as by llama.cpp.
    pub fn id(&self, key: &str, count: usize) -> Result<Option<u32>, ModelError> {
        let value = match self.get(key) {
            None | Some(Value::U32(u32::MAX)) => return Ok(None),
            Some(value) => value,
        };
        match whole(value) {
            Some(..0) => Ok(None),
            Some(id) if id < count as i128 => Ok(u32::try_from(id).ok()),
            Some(id) => {
                let path = self.0.path().display();
                tracing::warn!(
                    "{path}: `{key}` is {id} and there are {count} tokens: it is not used, answers may not end"
                );
                Ok(None)
            }
            None => Err(self.bad(
                key,
                format!("is {:?}, a token was expected", value.value_type()),
            )),
        }
    }

    /// Yes or no, where the file says it.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(yes)) => Ok(Some(*yes)),
            Some(other) => Err(self.bad(
                key,
                format!("is {:?}, not a truth value", other.value_type()),
            )),
        }
    }
}
