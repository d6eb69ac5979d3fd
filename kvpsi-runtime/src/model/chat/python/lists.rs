//! Jinja's filters of lists and mappings, with its names and places of their
//! arguments.
//!
//! Owns the way to an attribute (`a.b.0`) and the order of values: those that Python
//! does not compare are an error. Out of scope: `map`, `select` and their like, which
//! minijinja has alike.

use super::{bind, failed, given, numbers, string};
use crate::model::chat::limits;
use minijinja::{
    Environment, Error, State,
    value::{Rest, Value, ValueKind},
};
use std::cmp::Ordering;

/// Adds all of it.
pub(super) fn add_to(env: &mut Environment<'_>) {
    for name in ["length", "count"] {
        env.add_filter(name, |v: &Value| match v.is_undefined() {
            true => Ok(0),
            false => minijinja::filters::length(v),
        });
    }
    for name in ["default", "d"] {
        env.add_filter(name, |v: &Value, args: Rest<Value>| {
            let [value, boolean] = bind("default", ["default_value", "boolean"], &args)?;
            let lax = boolean.is_some_and(|lax| lax.is_true());
            Ok::<_, Error>(match v.is_undefined() || (lax && !v.is_true()) {
                true => value.unwrap_or("".into()),
                false => v.clone(),
            })
        });
    }
    env.add_filter("join", |v: &Value, args: Rest<Value>| {
        let [by, attribute] = bind("join", ["d", "attribute"], &args)?;
        let by = by.map_or_else(|| Ok(String::new()), |by| string(&by))?;
        let items = attributes(v, attribute.as_ref())?;
        limits::made(items.len().saturating_mul(by.len()))?;
        let texts = items.iter().map(string);
        let texts: Vec<String> = texts.collect::<Result<_, _>>()?;
        limits::made(texts.iter().map(String::len).sum())?;
        Ok::<_, Error>(texts.join(&by))
    });
    env.add_filter("sum", |v: &Value, args: Rest<Value>| {
        let [attribute, start] = bind("sum", ["attribute", "start"], &args)?;
        let items = attributes(v, attribute.as_ref())?;
        let start = start.unwrap_or(0.into());
        items.iter().try_fold(start, |sum, item| added(&sum, item))
    });
    for (name, last) in [("max", Ordering::Greater), ("min", Ordering::Less)] {
        env.add_filter(name, move |v: &Value, args: Rest<Value>| {
            let [case, attribute] = bind(name, ["case_sensitive", "attribute"], &args)?;
            let items: Vec<Value> = all(v)?;
            let keys = keys(&items, attribute.as_ref(), None, is_on(case))?;
            comparable(&keys)?;
            let best = (1..keys.len()).fold(0, |best, i| {
                if keys[i].cmp(&keys[best]) == last {
                    i
                } else {
                    best
                }
            });
            Ok::<_, Error>(items.get(best).cloned().unwrap_or_default())
        });
    }
    env.add_filter("sort", |v: &Value, args: Rest<Value>| {
        let names = ["reverse", "case_sensitive", "attribute"];
        let [reverse, case, attribute] = bind("sort", names, &args)?;
        let items = all(v)?;
        let case = is_on(case);
        // Several are separated by commas.
        let several = attribute
            .as_ref()
            .and_then(Value::as_str)
            .filter(|a| a.contains(','));
        let keys = match several {
            None => keys(&items, attribute.as_ref(), None, case)?,
            Some(several) => {
                let columns = several.split(',').map(|one| {
                    let keys = keys(&items, Some(&one.trim().into()), None, case)?;
                    comparable(&keys).map(|()| keys)
                });
                let columns: Vec<Vec<Value>> = columns.collect::<Result<_, _>>()?;
                let row = |i: usize| columns.iter().map(|column| column[i].clone()).collect();
                (0..items.len()).map(row).collect()
            }
        };
        sorted(&items, &keys, is_on(reverse))
    });
    env.add_filter("dictsort", |v: &Value, args: Rest<Value>| {
        let [case, by, reverse] = bind("dictsort", ["case_sensitive", "by", "reverse"], &args)?;
        let pairs = pairs(v)?;
        let of = match by.as_ref().map_or(Some("key"), Value::as_str) {
            Some("key") => 0,
            Some("value") => 1,
            _ => return Err(failed("dictsort: by `key` or `value`")),
        };
        let keys = keys(&pairs, Some(&of.into()), None, is_on(case))?;
        sorted(&pairs, &keys, is_on(reverse))
    });
    env.add_filter("items", |v: &Value| match v.is_undefined() {
        true => Ok(Vec::new()),
        false => pairs(v),
    });
    env.add_filter("unique", |v: &Value, args: Rest<Value>| {
        let [case, attribute] = bind("unique", ["case_sensitive", "attribute"], &args)?;
        let items = all(v)?;
        let keys = keys(&items, attribute.as_ref(), None, is_on(case))?;
        let mut seen = std::collections::BTreeSet::new();
        let new = items
            .into_iter()
            .zip(keys)
            .filter(|(_, key)| seen.insert(key.clone()));
        Ok::<_, Error>(new.map(|(item, _)| item).collect::<Vec<_>>())
    });
    env.add_filter("groupby", groupby);
    env.add_filter("first", |v: &Value| match v.as_str() {
        Some(text) => Ok(text.chars().next().map_or(Value::UNDEFINED, Value::from)),
        None => v
            .try_iter()
            .map(|mut items| items.next().unwrap_or_default()),
    });
    env.add_filter("last", |v: &Value| match v.as_str() {
        Some(text) => Ok(text
            .chars()
            .next_back()
            .map_or(Value::UNDEFINED, Value::from)),
        None => v.try_iter().map(|items| items.last().unwrap_or_default()),
    });
    // A value for each character or line, and `map` has them called for each of many.
    env.add_filter("list", |v: &Value| all(v));
    env.add_filter("batch", |state: &State, v: Value, args: Rest<Value>| {
        let [n, fill] = bind("batch", ["linecount", "fill_with"], &args)?;
        minijinja::filters::batch(state, v, part(n)?, given(fill))
    });
    env.add_filter("slice", |state: &State, v: Value, args: Rest<Value>| {
        let [n, fill] = bind("slice", ["slices", "fill_with"], &args)?;
        minijinja::filters::slice(state, v, part(n)?, given(fill))
    });
}

/// A count of parts.
fn part(n: Option<Value>) -> Result<usize, Error> {
    let n = usize::try_from(n.ok_or_else(|| failed("into how many?"))?)?;
    limits::made(limits::narrow(n)?.saturating_mul(size_of::<Value>()))?;
    Ok(n)
}

fn is_on(flag: Option<Value>) -> bool {
    flag.is_some_and(|flag| flag.is_true())
}

/// The items of a list, the keys of a mapping, or the characters of a text.
fn all(v: &Value) -> Result<Vec<Value>, Error> {
    limits::listed(v)?;
    Ok(match v.as_str() {
        Some(text) => text.chars().map(Value::from).collect(),
        None => v.try_iter()?.collect(),
    })
}

/// Keys and values, as lists of two.
fn pairs(v: &Value) -> Result<Vec<Value>, Error> {
    if v.kind() != ValueKind::Map {
        return Err(failed(format!(
            "a mapping was expected, not a value that is {}",
            v.kind()
        )));
    }
    limits::made(v.len().unwrap_or(0).saturating_mul(3 * size_of::<Value>()))?;
    let each = v.try_iter()?.map(|key| {
        let value = v.get_item(&key)?;
        Ok(Value::from([key, value]))
    });
    each.collect()
}

/// What is at a path below a value: names and numbers between points.
fn attribute(v: &Value, path: &Value, default: Option<&Value>) -> Result<Value, Error> {
    let step = |v: &Value, key: &Value| {
        let found = v.get_item(key)?;
        Ok::<_, Error>(match default {
            Some(default) if found.is_undefined() => default.clone(),
            _ => found,
        })
    };
    let Some(path) = path.as_str() else {
        return step(v, path);
    };
    path.split('.')
        .try_fold(v.clone(), |v, part| match part.parse::<u32>() {
            Ok(n) => step(&v, &n.into()),
            Err(_) => step(&v, &part.into()),
        })
}

/// All items, or what is below each.
fn attributes(v: &Value, path: Option<&Value>) -> Result<Vec<Value>, Error> {
    let items = all(v)?;
    match path.filter(|path| !path.is_none()) {
        None => Ok(items),
        Some(path) => items
            .iter()
            .map(|item| attribute(item, path, None))
            .collect(),
    }
}

/// What items are ordered by: capitals do not count unless they are to.
fn keys(
    items: &[Value],
    path: Option<&Value>,
    default: Option<&Value>,
    case: bool,
) -> Result<Vec<Value>, Error> {
    let path = path.filter(|path| !path.is_none());
    let each = items.iter().map(|item| {
        let key = match path {
            Some(path) => attribute(item, path, default)?,
            None => item.clone(),
        };
        Ok(match key.as_str() {
            Some(text) if !case => Value::from(text.to_lowercase()),
            _ => key,
        })
    });
    each.collect()
}

/// Whether Python has an order of these: numbers, texts or lists, and none of them
/// beside others.
pub(super) fn comparable(keys: &[Value]) -> Result<(), Error> {
    let kind = |v: &Value| match v.kind() {
        ValueKind::Bool | ValueKind::Number => Some(0),
        ValueKind::String => Some(1),
        ValueKind::Seq | ValueKind::Iterable => Some(2),
        _ => None,
    };
    let mut pairs = keys.iter().zip(keys.iter().skip(1));
    match pairs.find(|(a, b)| kind(a).is_none() || kind(a) != kind(b)) {
        Some((a, b)) => Err(failed(format!(
            "{} and {} have no order",
            a.kind(),
            b.kind()
        ))),
        None => Ok(()),
    }
}

fn sorted(items: &[Value], keys: &[Value], reverse: bool) -> Result<Vec<Value>, Error> {
    comparable(keys)?;
    let mut order: Vec<usize> = (0..items.len()).collect();
    // Equal ones keep their order, also from the end.
    match reverse {
        true => order.sort_by(|a, b| keys[*b].cmp(&keys[*a])),
        false => order.sort_by(|a, b| keys[*a].cmp(&keys[*b])),
    }
    Ok(order.into_iter().map(|i| items[i].clone()).collect())
}

/// Groups of items whose attribute is the same, in its order.
fn groupby(v: &Value, args: Rest<Value>) -> Result<Vec<Value>, Error> {
    let [path, default, case] = bind("groupby", ["attribute", "default", "case_sensitive"], &args)?;
    let path = path.ok_or_else(|| failed("groupby: by which attribute?"))?;
    let (default, case) = (given(default), is_on(case));
    let items = all(v)?;
    let folded = keys(&items, Some(&path), default.as_ref(), case)?;
    let written = keys(&items, Some(&path), default.as_ref(), true)?;
    let order = (0..items.len()).map(Value::from).collect::<Vec<_>>();
    let order = sorted(&order, &folded, false)?;
    let order: Vec<usize> = order.into_iter().filter_map(|i| i.as_usize()).collect();
    let groups = order.chunk_by(|a, b| folded[*a] == folded[*b]);
    Ok(groups
        .map(|group| {
            let members: Vec<Value> = group.iter().map(|i| items[*i].clone()).collect();
            Value::from_object(Group([written[group[0]].clone(), members.into()]))
        })
        .collect())
}

/// A group: its key and its members, by their places and by name.
#[derive(Debug)]
struct Group([Value; 2]);

impl minijinja::value::Object for Group {
    fn repr(self: &std::sync::Arc<Self>) -> minijinja::value::ObjectRepr {
        minijinja::value::ObjectRepr::Seq
    }

    fn get_value(self: &std::sync::Arc<Self>, key: &Value) -> Option<Value> {
        match (key.as_usize(), key.as_str()) {
            (Some(i), _) => self.0.get(i).cloned(),
            (_, Some("grouper")) => Some(self.0[0].clone()),
            (_, Some("list")) => Some(self.0[1].clone()),
            _ => None,
        }
    }

    fn enumerate(self: &std::sync::Arc<Self>) -> minijinja::value::Enumerator {
        minijinja::value::Enumerator::Seq(2)
    }
}

/// A sum of two numbers or two lists.
fn added(a: &Value, b: &Value) -> Result<Value, Error> {
    use numbers::Number as N;
    match (numbers::number(a), numbers::number(b)) {
        (Some(N::Int(a)), Some(N::Int(b))) => {
            let sum = a.checked_add(b).map(numbers::int);
            sum.ok_or_else(|| failed("a sum is too large"))
        }
        (Some(a), Some(b)) => Ok(Value::from(a.float() + b.float())),
        _ if a.kind() == ValueKind::Seq && b.kind() == ValueKind::Seq => {
            limits::listed(a)?;
            let both = a.try_iter()?.chain(b.try_iter()?);
            Ok(both.collect::<Vec<_>>().into())
        }
        _ => Err(failed(format!("{} and {} have no sum", a.kind(), b.kind()))),
    }
}
