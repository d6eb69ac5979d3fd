//! Numbers of the metadata, each with its allowed range.
//!
//! Invariant: what is outside of its range, or of another type, is an error
//! that names the key. Out of scope: what a number is for.

use super::ModelError;
use candle_core::quantized::gguf_file::{Content, Value};
use std::{ops::RangeInclusive, path::Path};

/// Positions above 2^24 are further than any model sees.
pub(super) const MOST_CONTEXT: u64 = 1 << 24;

/// Reads values under one prefix.
pub(super) struct Keys<'a> {
    pub path: &'a Path,
    pub content: &'a Content,
    pub prefix: &'static str,
}

impl Keys<'_> {
    pub fn bad(&self, key: &str, what: impl Into<String>) -> ModelError {
        ModelError::Metadata {
            path: self.path.into(),
            key: format!("{}.{key}", self.prefix),
            what: what.into(),
        }
    }

    pub fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(&format!("{}.{key}", self.prefix))
    }

    /// A whole number that is not negative.
    fn number(&self, key: &str) -> Result<Option<u64>, ModelError> {
        // Some converters write one number for each layer.
        let value = match self.value(key) {
            Some(Value::Array(each)) => match each.split_first() {
                Some((one, rest)) if rest.iter().all(|v| whole(v) == whole(one)) => Some(one),
                _ => {
                    return Err(self.bad(
                        key,
                        "has a number for each layer and they differ: such models are not supported",
                    ));
                }
            },
            one => one,
        };
        value.map(|value| self.natural(key, value)).transpose()
    }

    fn natural(&self, key: &str, value: &Value) -> Result<u64, ModelError> {
        let n = whole(value).and_then(|n| u64::try_from(n).ok());
        n.ok_or_else(|| {
            let kind = value.value_type();
            self.bad(key, format!("is {kind:?}, a count was expected"))
        })
    }

    /// A count from 1 to `most`.
    pub fn int(&self, key: &str, most: u64) -> Result<Option<usize>, ModelError> {
        let n = self.number(key)?;
        n.map(|n| self.count(key, n, most)).transpose()
    }

    fn count(&self, key: &str, n: u64, most: u64) -> Result<usize, ModelError> {
        match usize::try_from(n) {
            Ok(small) if (1..=most).contains(&n) => Ok(small),
            _ => Err(self.bad(
                key,
                format!("is {n}, which is not between 1 and {most}: the file is damaged"),
            )),
        }
    }

    /// A count for each of so many layers, where the file tells them apart.
    pub fn each(
        &self,
        key: &str,
        layers: usize,
        most: u64,
    ) -> Result<Option<Box<[usize]>>, ModelError> {
        let Some(Value::Array(each)) = self.value(key) else {
            return Ok(None);
        };
        if each.len() != layers {
            let what = format!("has {} numbers for {layers} layers", each.len());
            return Err(self.bad(key, what));
        }
        let each = each
            .iter()
            .map(|value| self.count(key, self.natural(key, value)?, most));
        each.collect::<Result<_, _>>().map(Some)
    }

    pub fn required(&self, key: &str, most: u64) -> Result<usize, ModelError> {
        self.int(key, most)?.ok_or_else(|| {
            self.bad(
                key,
                "is missing: this is not a complete language model file",
            )
        })
    }

    /// A number in `range`, which NaN never is.
    pub fn float(&self, key: &str, range: RangeInclusive<f32>) -> Result<Option<f32>, ModelError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::F32(x)) if range.contains(x) => Ok(Some(*x)),
            Some(Value::F32(x)) => Err(self.bad(
                key,
                format!(
                    "is {x}, which is not between {:e} and {:e}",
                    range.start(),
                    range.end()
                ),
            )),
            Some(other) => Err(self.bad(key, format!("is {:?}, not F32", other.value_type()))),
        }
    }

    /// Whether the key is there and 0.
    pub fn is_zero(&self, key: &str) -> bool {
        matches!(self.number(key), Ok(Some(0)))
    }

    /// Truth values for each of so many layers, as such or as 0 and 1, or none where
    /// the key is absent or a number.
    pub fn flags(&self, key: &str, layers: usize) -> Result<Option<Box<[bool]>>, ModelError> {
        let Some(Value::Array(each)) = self.value(key) else {
            return Ok(None);
        };
        let flag = |v: &Value| match v {
            Value::Bool(flag) => Some(*flag),
            n => whole(n).filter(|n| (0..=1).contains(n)).map(|n| n == 1),
        };
        let Some(flags) = each.iter().map(flag).collect::<Option<Box<[_]>>>() else {
            return Ok(None);
        };
        if flags.len() != layers {
            let what = format!("has {} truth values for {layers} layers", flags.len());
            return Err(self.bad(key, what));
        }
        Ok(Some(flags))
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.bad(
                key,
                format!("is {:?}, a truth value was expected", other.value_type()),
            )),
        }
    }

    /// A number in `range`, or 0 for what is off.
    pub fn float_or_off(
        &self,
        key: &str,
        range: RangeInclusive<f32>,
    ) -> Result<Option<f32>, ModelError> {
        match self.value(key) {
            Some(Value::F32(0.0)) => Ok(None),
            _ => self.float(key, range),
        }
    }

    /// [`Self::float`]; 0 is what `instead` is, and a line says so.
    pub fn float_not_0(
        &self,
        key: &str,
        range: RangeInclusive<f32>,
        instead: Option<f32>,
    ) -> Result<Option<f32>, ModelError> {
        if !matches!(self.value(key), Some(Value::F32(0.0))) {
            return self.float(key, range);
        }
        let (path, prefix) = (self.path.display(), self.prefix);
        tracing::warn!("{path}: `{prefix}.{key}` is 0 and not used: positions are not stretched");
        Ok(instead)
    }

    /// What kvpsi does not compute must be absent or off: no, 0, or for a
    /// count of one, 1.
    pub fn refuse(&self, key: &str, what: &str) -> Result<(), ModelError> {
        let off = match self.value(key) {
            None | Some(Value::Bool(false)) => true,
            Some(Value::F32(x)) => *x == 0.0,
            Some(Value::Bool(true) | Value::String(_) | Value::Array(_)) => false,
            Some(_) => self.number(key)?.is_none_or(|n| n <= 1),
        };
        if off {
            return Ok(());
        }
        Err(self.bad(key, what))
    }
}

/// A whole number of any width.
pub(in crate::model) fn whole(value: &Value) -> Option<i128> {
    Some(match value {
        Value::U8(n) => i128::from(*n),
        Value::I8(n) => i128::from(*n),
        Value::U16(n) => i128::from(*n),
        Value::I16(n) => i128::from(*n),
        Value::U32(n) => i128::from(*n),
        Value::I32(n) => i128::from(*n),
        Value::U64(n) => i128::from(*n),
        Value::I64(n) => i128::from(*n),
        _ => return None,
    })
}
