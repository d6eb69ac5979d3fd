//! Which files a model is: one, or the parts that `llama-gguf-split` cuts.
//!
//! Owns the names of parts and the checks that they belong together. Invariant:
//! parts that open together name the same count, each its own place, and no
//! tensor twice. Out of scope: what a part holds.

use super::{ModelError, keys::whole, scan::Tensors};
use candle_core::quantized::gguf_file::Content;
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

/// Most parts that one model may have. The largest known have dozens.
const MOST_PARTS: usize = 1000;

/// All parts of the model that `path` is a part of, in their order; `path`
/// alone where its name says nothing of parts (`NAME-00001-of-00003.gguf`).
///
/// # Errors
/// A part is not there, or the name is absurd.
pub fn parts(path: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let Some((stem, number, count)) = cut(path) else {
        return Ok(vec![path.to_owned()]);
    };
    let bad = |what: String| ModelError::Format {
        path: path.into(),
        what,
    };
    if count > MOST_PARTS || !(1..=count).contains(&number) {
        return Err(bad(format!(
            "its name says part {number} of {count}: there are at most {MOST_PARTS}, counted from 1"
        )));
    }
    let all: Vec<_> = (1..=count)
        .map(|i| path.with_file_name(format!("{stem}-{i:05}-of-{count:05}.gguf")))
        .collect();
    match all.iter().find(|part| !part.exists()) {
        // That the named one is missing is told when it is opened.
        Some(lost) if lost != path => Err(bad(format!(
            "the model has {count} parts and {} is missing: put all of them into one folder",
            lost.file_name().unwrap_or_default().display()
        ))),
        _ => Ok(all),
    }
}

/// How many parts a model has, by the name of one of them.
pub(super) fn count(path: &Path) -> Option<usize> {
    cut(path).map(|(_, _, count)| count)
}

/// Stem, number and count of a part's name.
fn cut(path: &Path) -> Option<(&str, usize, usize)> {
    let digits = |s: &str| match s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit()) {
        true => s.parse::<usize>().ok(),
        false => None,
    };
    let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (head, count) = name.rsplit_once("-of-")?;
    let (stem, number) = head.rsplit_once('-')?;
    Some((stem, digits(number)?, digits(count)?))
}

/// A number of a part's header.
fn number(content: &Content, key: &str) -> Option<u64> {
    u64::try_from(whole(content.metadata.get(key)?)?).ok()
}

/// Checks that `all` are the parts of one model, in their order.
pub(super) fn belong_together(all: &[(&Path, &Content, &Tensors)]) -> Result<(), ModelError> {
    let tensors = |content: &Content| number(content, "split.tensors.count");
    let first = match all {
        [(path, one, _)] => {
            return match number(one, "split.count") {
                Some(count) if count > 1 => Err(ModelError::Format {
                    path: (*path).into(),
                    what: format!(
                        "is one of {count} parts: name it as its like are, NAME-00001-of-{count:05}.gguf, beside them"
                    ),
                }),
                _ => Ok(()),
            };
        }
        [(_, first, _), ..] => tensors(first),
        [] => return Ok(()),
    };
    let mut seen = HashSet::new();
    for (i, (path, content, held)) in all.iter().enumerate() {
        let bad = |what: String| ModelError::Format {
            path: (*path).into(),
            what,
        };
        let count = number(content, "split.count");
        if count != Some(all.len() as u64) || tensors(content) != first {
            return Err(bad(format!(
                "is a part of another model: its `split.count` or `split.tensors.count` differs (part {} of {})",
                i + 1,
                all.len()
            )));
        }
        if number(content, "split.no") != Some(i as u64) {
            return Err(bad(format!(
                "is named as part {} of {}, but its `split.no` says another: a part is doubled or renamed",
                i + 1,
                all.len()
            )));
        }
        for name in held.by_name.keys() {
            if !seen.insert(name.as_str()) {
                return Err(ModelError::Tensor {
                    path: (*path).into(),
                    name: name.clone(),
                    what: "is in two parts: one of them is of another model".into(),
                });
            }
        }
    }
    match (first, all.first()) {
        (Some(count), Some((path, ..))) if count != seen.len() as u64 => Err(ModelError::Format {
            path: (*path).into(),
            what: format!(
                "its parts hold {} tensors, `split.tensors.count` says {count}: a part is of another model",
                seen.len()
            ),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
