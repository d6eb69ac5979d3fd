//! `text % values`: Python's printf.
//!
//! Owns the conversions `%s %r %a %d %i %u %o %x %e %f %g %c %%` with their flags. Of a
//! list it is not known whether it was written as a tuple: it is taken for one,
//! unless there is one place for several values. Out of scope: `str.format`.

use super::{failed, numbers, quoted, write_str};
use crate::model::chat::limits;
use minijinja::{
    Error,
    value::{Value, ValueKind},
};
use numbers::Number;
use std::str::Chars;

/// What stands between `%` and the conversion.
#[derive(Default)]
struct Spec {
    left: bool,
    zeros: bool,
    alternate: bool,
    sign: Option<char>,
    width: usize,
    precision: Option<usize>,
}

/// The values, in their order or by their names.
struct Values<'a> {
    places: std::slice::Iter<'a, Value>,
    named: Option<&'a Value>,
}

impl Values<'_> {
    fn next(&mut self) -> Result<&Value, Error> {
        let next = self.places.next();
        next.ok_or_else(|| failed("not enough values for the format"))
    }
}

/// Formats it.
pub(super) fn formatted(text: &str, values: &Value) -> Result<String, Error> {
    let list = matches!(values.kind(), ValueKind::Seq | ValueKind::Iterable);
    let mut all: Vec<Value> = match list {
        true => values.try_iter()?.collect(),
        false => vec![values.clone()],
    };
    let places = text.replace("%%", "").matches(['%', '*']).count();
    if list && places == 1 && all.len() != 1 {
        all = vec![values.clone()];
    }
    limits::format(text, '%', &all)?;
    let named = (values.kind() == ValueKind::Map).then_some(values);
    let mut values = Values {
        places: all.iter(),
        named,
    };
    let (mut out, mut rest) = (String::new(), text.chars());
    while let Some(c) = rest.next() {
        match c {
            '%' => one(&mut out, &mut rest, &mut values)?,
            c => out.push(c),
        }
    }
    if named.is_none() && values.places.next().is_some() {
        return Err(failed("not all values are in the format"));
    }
    Ok(out)
}

/// What follows a `%`.
fn one(out: &mut String, rest: &mut Chars<'_>, values: &mut Values<'_>) -> Result<(), Error> {
    let wrong = || failed("an incomplete or unknown format");
    let mut named = None;
    if let Some(behind) = rest.as_str().strip_prefix('(') {
        let (name, behind) = behind.split_once(')').ok_or_else(wrong)?;
        let map = values
            .named
            .ok_or_else(|| failed("the format needs a mapping"))?;
        let value = map.get_item(&Value::from(name))?;
        if value.is_undefined() {
            return Err(failed(format!(
                "the format names `{name}`, which is not there"
            )));
        }
        named = Some(value);
        *rest = behind.chars();
    }
    let mut spec = Spec::default();
    let mut c = rest.next().ok_or_else(wrong)?;
    loop {
        match c {
            '-' => spec.left = true,
            '0' => spec.zeros = true,
            '#' => spec.alternate = true,
            '+' => spec.sign = Some('+'),
            ' ' => spec.sign = spec.sign.or(Some(' ')),
            _ => break,
        }
        c = rest.next().ok_or_else(wrong)?;
    }
    let width = size(&mut c, rest, values)?;
    spec.left |= width.is_some_and(|n| n < 0);
    spec.width = width.map_or(0, |n| count(n.unsigned_abs()));
    if c == '.' {
        c = rest.next().ok_or_else(wrong)?;
        let precision = size(&mut c, rest, values)?.unwrap_or(0);
        spec.precision = Some(usize::try_from(precision).unwrap_or(0));
    }
    if matches!(c, 'h' | 'l' | 'L') {
        c = rest.next().ok_or_else(wrong)?;
    }
    if c == '%' {
        out.push('%');
        return Ok(());
    }
    let value = match &named {
        Some(value) => value,
        None => values.next()?,
    };
    let made = conversion(c, &spec, value)?;
    let missing = spec.width.saturating_sub(made.chars().count());
    limits::made(made.len().saturating_add(missing))?;
    let numeric = !matches!(c, 's' | 'r' | 'a' | 'c');
    if spec.left {
        out.push_str(&made);
        out.extend(std::iter::repeat_n(' ', missing));
    } else if spec.zeros && numeric {
        let digits = made.trim_start_matches(['-', '+', ' ']);
        let head = made.len() - digits.len();
        let head = head
            + if digits.starts_with(['0']) && digits[1..].starts_with(['x', 'X', 'o']) {
                2
            } else {
                0
            };
        out.push_str(&made[..head]);
        out.extend(std::iter::repeat_n('0', missing));
        out.push_str(&made[head..]);
    } else {
        out.extend(std::iter::repeat_n(' ', missing));
        out.push_str(&made);
    }
    Ok(())
}

/// Digits, or `*` for the next value; `c` is what stands behind.
fn size(c: &mut char, rest: &mut Chars<'_>, values: &mut Values<'_>) -> Result<Option<i64>, Error> {
    let mut next = || rest.next().ok_or_else(|| failed("an incomplete format"));
    if *c == '*' {
        let n = i64::try_from(values.next()?.clone())?;
        *c = next()?;
        limits::narrow(count(n.unsigned_abs()))?;
        return Ok(Some(n));
    }
    let mut n = None;
    while let Some(digit) = c.to_digit(10) {
        let more = n
            .unwrap_or(0_u64)
            .saturating_mul(10)
            .saturating_add(digit.into());
        limits::narrow(count(more))?;
        n = Some(more);
        *c = next()?;
    }
    Ok(n.and_then(|n| i64::try_from(n).ok()))
}

fn count(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

fn conversion(c: char, spec: &Spec, value: &Value) -> Result<String, Error> {
    let no = || failed(format!("%{c} of a value that is {}", value.kind()));
    let number = || numbers::number(value).ok_or_else(no);
    let mut text = String::new();
    match c {
        's' => write_str(&mut text, value)?,
        'r' | 'a' => match value.as_str() {
            Some(s) => quoted(&mut text, s),
            None => write_str(&mut text, value)?,
        },
        'c' => match (value.as_str(), numbers::number(value)) {
            (Some(s), _) if s.chars().count() == 1 => text.push_str(s),
            (None, Some(Number::Int(n))) => {
                let one = u32::try_from(n).ok().and_then(char::from_u32);
                text.push(one.ok_or_else(no)?);
            }
            _ => return Err(no()),
        },
        'd' | 'i' | 'u' => {
            let n = match number()? {
                Number::Int(n) => n,
                #[expect(clippy::cast_possible_truncation, reason = "a larger one is refused")]
                Number::Float(x) if x.abs() < 1e38 => x as i128,
                Number::Float(_) => return Err(no()),
            };
            return Ok(whole(spec, n, format!("{}", n.unsigned_abs()), ""));
        }
        'o' | 'x' | 'X' => {
            let Number::Int(n) = number()? else {
                return Err(no());
            };
            let (all, prefix) = match c {
                'o' => (format!("{:o}", n.unsigned_abs()), "0o"),
                'x' => (format!("{:x}", n.unsigned_abs()), "0x"),
                _ => (format!("{:X}", n.unsigned_abs()), "0X"),
            };
            let prefix = if spec.alternate { prefix } else { "" };
            return Ok(whole(spec, n, all, prefix));
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let x = number()?.float();
            let precision = spec.precision.unwrap_or(6);
            let digits = match c.to_ascii_lowercase() {
                _ if x.is_nan() => "nan".into(),
                _ if x.is_infinite() => "inf".into(),
                'e' => scientific(x.abs(), precision),
                'f' => format!("{:.precision$}", x.abs()),
                _ => general(x.abs(), precision.max(1), spec.alternate),
            };
            text.extend(sign(spec, x.is_sign_negative() && !x.is_nan()));
            text.push_str(&digits);
            if c.is_ascii_uppercase() {
                text.make_ascii_uppercase();
            }
            return Ok(text);
        }
        _ => return Err(failed(format!("unknown format %{c}"))),
    }
    Ok(match spec.precision {
        Some(most) if c != 'c' => text.chars().take(most).collect(),
        _ => text,
    })
}

fn sign(spec: &Spec, negative: bool) -> Option<char> {
    if negative { Some('-') } else { spec.sign }
}

fn whole(spec: &Spec, n: i128, digits: String, prefix: &str) -> String {
    let mut text: String = sign(spec, n < 0).into_iter().collect();
    text.push_str(prefix);
    let zeros = spec.precision.unwrap_or(0).saturating_sub(digits.len());
    text.extend(std::iter::repeat_n('0', zeros));
    text + &digits
}

/// `1.5e+10`.
fn scientific(x: f64, precision: usize) -> String {
    let text = format!("{x:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    match exponent.strip_prefix('-') {
        Some(e) => format!("{digits}e-{e:0>2}"),
        None => format!("{digits}e+{exponent:0>2}"),
    }
}

/// The shorter of both, without zeros at its end.
fn general(x: f64, precision: usize, zeros: bool) -> String {
    let text = scientific(x, precision - 1);
    let exponent = text
        .split_once('e')
        .and_then(|(_, e)| e.parse::<i32>().ok());
    let exponent = exponent.unwrap_or(0);
    let places = i32::try_from(precision).unwrap_or(i32::MAX) - 1 - exponent;
    let (digits, end) = match usize::try_from(places) {
        Ok(places) if exponent >= -4 => (format!("{x:.places$}"), String::new()),
        _ => {
            let (digits, end) = text.split_once('e').unwrap_or((&text, ""));
            (digits.to_owned(), format!("e{end}"))
        }
    };
    match digits.contains('.') && !zeros {
        true => format!(
            "{}{end}",
            digits.trim_end_matches('0').trim_end_matches('.')
        ),
        false => digits + &end,
    }
}
