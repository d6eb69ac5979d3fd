//! What a kernel's refusal means, in one line.
//!
//! Owns the reading of errors' causes. Out of scope: what is done about them.

use super::hooks::How;
use aya::programs::ProgramError;
use std::error::Error;

/// What the kernel's errno means for this kind of program.
pub(super) fn refusal(how: How, e: &ProgramError) -> String {
    // The verifier has its own words, and the same errno.
    if matches!(e, ProgramError::LoadError { verifier_log, .. } if !verifier_log.to_string().trim().is_empty())
    {
        return one_line(e);
    }
    let hint = match (how, os_error(e)) {
        (How::RawTp, Some(2)) => "this kernel has no such tracepoint",
        (How::RawTp, Some(22)) => "the tracepoint has fewer arguments here",
        (How::Fentry | How::Fexit, Some(1)) => {
            "Operation not permitted (kernel lockdown, or no CAP_PERFMON)"
        }
        (How::Fentry | How::Fexit, Some(524 | 95)) => {
            "this kernel cannot attach fentry on this processor"
        }
        (How::Kprobe | How::Kretprobe, Some(2 | 19)) => {
            "this kernel has no kprobes, or no such function"
        }
        (How::Kprobe | How::Kretprobe, Some(1 | 13)) => {
            "not permitted (kernel lockdown, or no CAP_PERFMON)"
        }
        _ => return one_line(e),
    };
    hint.into()
}

/// The errno at the root of an error, if there is one.
pub(super) fn os_error(e: &(dyn Error + 'static)) -> Option<i32> {
    let mut next = Some(e);
    while let Some(e) = next {
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            return io.raw_os_error();
        }
        next = e.source();
    }
    None
}

/// An error and its causes on one line; of a verifier log the first lines.
pub(super) fn one_line(e: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(e);
    while let Some(e) = next {
        let part = e.to_string();
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        next = e.source();
    }
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(400) {
        Some((at, _)) => format!("{} ...", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_error_becomes_one_bounded_line() {
        let e = std::io::Error::other(format!("a\n  b{}", "é".repeat(900)));
        let line = one_line(&e);
        assert!(line.starts_with("a b") && line.ends_with(" ..."));
        assert_eq!(line.chars().count(), 404);
    }
}
