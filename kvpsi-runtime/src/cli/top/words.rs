//! How figures are written in `kvpsi top`: short, with a unit.

use std::time::Duration;

/// A count, with commas between thousands.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Microseconds, in the unit that leaves few digits.
#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
pub fn micros(us: u64) -> String {
    match us {
        0..10_000 => format!("{us} us"),
        10_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// Seconds as people say them: `4.2 s`, `59 s`, `2:05`, `1:02:03`, `3 d 04:05`.
pub fn age(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
    let s = whole.as_secs();
    match s {
        0..10 => format!("{:.1} s", whole.as_secs_f64()),
        10..60 => format!("{s} s"),
        60..3_600 => format!("{}:{:02}", s / 60, s % 60),
        3_600..86_400 => format!("{}:{:02}:{:02}", s / 3_600, s / 60 % 60, s % 60),
        _ => format!("{} d {:02}:{:02}", s / 86_400, s / 3_600 % 24, s / 60 % 60),
    }
}

/// A share of 0 to 1.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// `early_warning` as words.
pub fn spaced(name: &str) -> String {
    name.replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_have_a_unit() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(micros(9_999), "9999 us");
        assert_eq!(micros(12_340), "12.3 ms");
        assert_eq!(micros(4_200_000), "4.2 s");
        assert_eq!(percent(0.153), "15.3 %");
    }

    #[test]
    fn ages_are_written_as_people_say_them() {
        let said: Vec<String> = [0.0, 4.21, 9.96, 59.9, 125.0, 3_723.0, 273_900.0]
            .map(age)
            .into();
        assert_eq!(
            said,
            [
                "0.0 s",
                "4.2 s",
                "10.0 s",
                "59 s",
                "2:05",
                "1:02:03",
                "3 d 04:05"
            ]
        );
        // What no instance sends, but JSON can hold.
        assert_eq!(age(-5.0), "0.0 s");
        assert!(age(1e300).contains(" d "));
    }
}
