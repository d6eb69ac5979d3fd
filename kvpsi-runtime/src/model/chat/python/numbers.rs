//! Numbers as Python has them: division, remainders and powers, and what texts and
//! values are as numbers.
//!
//! Out of scope: sums and products, which minijinja computes alike.

use super::{bind, failed, given};
use crate::model::chat::{DIVIDED, FLOORED, POWER, limits};
use minijinja::{
    Environment, Error,
    value::{Rest, Value, ValueKind},
};

/// Adds all of it.
pub(super) fn add_to(env: &mut Environment<'_>) {
    env.add_filter(DIVIDED, |a: &Value, b: &Value| {
        let (a, b) = both("/", a, b)?;
        Ok::<_, Error>(Value::from(a.float() / nonzero(b)?.float()))
    });
    env.add_filter(FLOORED, |a: &Value, b: &Value| {
        Ok::<_, Error>(match both("//", a, b)? {
            (Number::Int(a), Number::Int(b)) => {
                let b = whole(nonzero(Number::Int(b))?);
                let quotient = a.checked_div(b).ok_or_else(too_large)?;
                int(quotient - i128::from(a % b != 0 && (a < 0) != (b < 0)))
            }
            (a, b) => {
                let (a, b) = (a.float(), nonzero(b)?.float());
                // As Python: what is left is exact, the quotient is not.
                Value::from(((a - rest_of(a, b)) / b).round())
            }
        })
    });
    env.add_filter(POWER, |a: &Value, b: &Value| {
        let (a, b) = both("**", a, b)?;
        if let (Number::Int(a), Number::Int(b @ 0..)) = (a, b) {
            let b = u32::try_from(b).ok();
            return b
                .and_then(|b| a.checked_pow(b))
                .map(int)
                .ok_or_else(too_large);
        }
        let (a, b) = (a.float(), b.float());
        if a == 0.0 && b < 0.0 {
            return Err(failed("0 to a negative power"));
        }
        Ok(Value::from(a.powf(b)))
    });
    env.add_filter("int", |v: &Value, args: Rest<Value>| {
        let [default, base] = bind("int", ["default", "base"], &args)?;
        let base = given(base).map_or(Ok(10), u32::try_from)?;
        // Python tries the whole number first, and what a float leaves of one.
        let number = match v.as_str() {
            Some(text) => parsed(text, base).or_else(|| float_of(text).and_then(truncated)),
            None if v.is_undefined() => return Err(failed("int of a value that is not defined")),
            None => match number(v) {
                Some(Number::Int(n)) => Some(n),
                Some(Number::Float(x)) => truncated(x),
                None => None,
            },
        };
        Ok::<_, Error>(number.map_or_else(|| default.unwrap_or(0.into()), int))
    });
    env.add_filter("float", |v: &Value, args: Rest<Value>| {
        let [default] = bind("float", ["default"], &args)?;
        let x = match v.as_str() {
            Some(text) => float_of(text),
            None => number(v).map(Number::float),
        };
        Ok::<_, Error>(x.map_or_else(|| default.unwrap_or(0.0.into()), Value::from))
    });
    env.add_filter("round", |v: &Value, args: Rest<Value>| {
        let [precision, method] = bind("round", ["precision", "method"], &args)?;
        let precision = given(precision).map_or(Ok(0), i32::try_from)?;
        let digits = usize::try_from(precision.unsigned_abs()).unwrap_or(usize::MAX);
        limits::narrow(digits)?;
        let number = number(v).ok_or_else(|| failed("round: no number"))?;
        let scale = 10_f64.powi(precision);
        Ok::<_, Error>(
            match (
                method.as_ref().map_or(Some("common"), Value::as_str),
                number,
            ) {
                (Some("common"), Number::Int(n)) if precision >= 0 => int(n),
                (Some("common"), Number::Int(n)) => {
                    let unit = 10_i128.checked_pow(precision.unsigned_abs());
                    let unit = unit.ok_or_else(too_large)?;
                    // Half goes to the even one.
                    let (down, rest) = (n.div_euclid(unit), n.rem_euclid(unit));
                    let up = rest > unit - rest || (rest == unit - rest && down % 2 != 0);
                    let near = (down + i128::from(up)).checked_mul(unit);
                    int(near.ok_or_else(too_large)?)
                }
                // Rust's digits are those of the exact value, half to the even one.
                (Some("common"), Number::Float(x)) if precision >= 0 => {
                    Value::from(format!("{x:.digits$}").parse().unwrap_or(x))
                }
                (Some("common"), Number::Float(x)) => {
                    Value::from((x * scale).round_ties_even() / scale)
                }
                (Some("ceil"), n) => Value::from((n.float() * scale).ceil() / scale),
                (Some("floor"), n) => Value::from((n.float() * scale).floor() / scale),
                _ => return Err(failed("round: method must be common, ceil or floor")),
            },
        )
    });
}

/// `a % b` of numbers.
pub(super) fn remainder(a: &Value, b: &Value) -> Result<Value, Error> {
    Ok(match both("%", a, b)? {
        (Number::Int(a), Number::Int(b)) => {
            let b = whole(nonzero(Number::Int(b))?);
            let rest = a.checked_rem(b).unwrap_or(0);
            int(if rest != 0 && (rest < 0) != (b < 0) {
                rest + b
            } else {
                rest
            })
        }
        (a, b) => Value::from(rest_of(a.float(), nonzero(b)?.float())),
    })
}

/// A number; truth values are 0 and 1.
#[derive(Clone, Copy)]
pub(super) enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    #[expect(clippy::cast_precision_loss, reason = "as Python converts an int")]
    pub(super) fn float(self) -> f64 {
        match self {
            Self::Int(n) => n as f64,
            Self::Float(x) => x,
        }
    }
}

pub(super) fn number(v: &Value) -> Option<Number> {
    match v.kind() {
        ValueKind::Bool => Some(Number::Int(i128::from(v.is_true()))),
        ValueKind::Number if v.is_integer() => i128::try_from(v.clone()).ok().map(Number::Int),
        ValueKind::Number => f64::try_from(v.clone()).ok().map(Number::Float),
        _ => None,
    }
}

/// As small a number as holds it: they compare alike.
pub(super) fn int(n: i128) -> Value {
    i64::try_from(n).map_or_else(|_| Value::from(n), Value::from)
}

fn both(operator: &str, a: &Value, b: &Value) -> Result<(Number, Number), Error> {
    number(a)
        .zip(number(b))
        .ok_or_else(|| failed(format!("{} {operator} {} is nothing", a.kind(), b.kind())))
}

fn too_large() -> Error {
    failed("a number is too large")
}

fn whole(n: Number) -> i128 {
    match n {
        Number::Int(n) => n,
        Number::Float(_) => 0,
    }
}

fn nonzero(n: Number) -> Result<Number, Error> {
    match n.float() == 0.0 {
        true => Err(failed("division by zero")),
        false => Ok(n),
    }
}

/// Of the sign of what divides.
fn rest_of(a: f64, b: f64) -> f64 {
    let rest = a % b;
    if rest != 0.0 && (rest < 0.0) != (b < 0.0) {
        rest + b
    } else {
        rest
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a float beyond is refused")]
fn truncated(x: f64) -> Option<i128> {
    (x.abs() < 1e38).then_some(x as i128)
}

/// Digits, with single underscores between them taken out.
fn digits(text: &str) -> Option<String> {
    let lone = |part: &str| !part.is_empty();
    let well = !text.contains('_') || text.split('_').all(lone);
    well.then(|| text.replace('_', ""))
}

/// `int(text, base)`.
fn parsed(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(super::methods::is_space);
    let (minus, text) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = text.to_lowercase();
    let prefixed = [("0x", 16), ("0o", 8), ("0b", 2)];
    let prefixed = prefixed.into_iter().find_map(|(prefix, of)| {
        let rest = lower.strip_prefix(prefix)?;
        let rest = rest.strip_prefix('_').unwrap_or(rest);
        (base == of || base == 0).then_some((rest, of))
    });
    let (text, base) = prefixed.unwrap_or((lower.as_str(), if base == 0 { 10 } else { base }));
    let signed = text.starts_with(['-', '+']);
    if signed || !(2..=36).contains(&base) {
        return None;
    }
    let n = i128::from_str_radix(&digits(text)?, base).ok()?;
    Some(if minus { -n } else { n })
}

/// `float(text)`.
pub(super) fn float_of(text: &str) -> Option<f64> {
    digits(text.trim_matches(super::methods::is_space))?
        .parse()
        .ok()
}
