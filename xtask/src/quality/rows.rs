//! The rows of `bench quality`, put together: one JSON, one page.
//!
//! Owns the names of the figures. What is asked is asked of one cache only
//! once, so the answers stand beside the perplexity of the first text and of
//! every other alike. Out of scope: measuring.

use crate::report::{machine, number, percent, rows_of, text as text_of};
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// What `kvpsi-bench` said.
#[derive(Debug, Default)]
pub struct Lines {
    /// By text: its name, and perplexities.
    pub texts: Vec<(String, Vec<Value>)>,
    pub recall: Vec<Value>,
    pub steps: Vec<Value>,
}

/// Puts what `kvpsi-bench steps` said into a report.
pub fn put_steps(report: &mut Value, lines: &[Value]) {
    let of = |what: &'static str| lines.iter().filter(move |r| r["what"] == what).cloned();
    report["steps"] = of("step").collect();
    for what in ["second_turn", "beside"] {
        report[what] = of(what).next().unwrap_or_default();
    }
}

impl Lines {
    /// Policies that are asked questions: the default, and the newest tokens
    /// beside it.
    pub fn policies(&self) -> String {
        let rows = self.texts.iter().flat_map(|(_, rows)| rows);
        let mut defaults = rows.filter(|r| r["default_policy"] == true);
        let default = defaults.find_map(|r| r["policy"].as_str());
        match default {
            Some(policy) if policy != "window" => format!("{policy},window"),
            _ => "window".into(),
        }
    }

    /// Into a report.
    pub fn put(&self, report: &mut Value) {
        let mut texts = self.texts.iter().map(|(name, rows)| self.text(name, rows));
        if let (Some(report), Some(Value::Object(first))) = (report.as_object_mut(), texts.next()) {
            report.extend(first);
        }
        report["more"] = texts.collect();
        put_steps(report, &self.steps);
        report["recall"] = self.recall.clone().into();
    }

    /// One text: its name, and a row for each cache.
    fn text(&self, name: &str, rows: &[Value]) -> Value {
        let first = rows.first().cloned().unwrap_or_default();
        let rows: Vec<Value> = rows.iter().map(|r| self.row(r)).collect();
        json!({
            "text": name, "tokens": first["tokens"], "context": first["context"],
            "chunks": first["chunks"], "rows": rows,
        })
    }

    fn row(&self, ppl: &Value) -> Value {
        let mut row = Map::new();
        for key in [
            "policy",
            "kv",
            "budget",
            "default_policy",
            "bytes",
            "share",
            "dropped_tokens",
            "ppl",
            "ppl_error",
            "ppl_full",
        ] {
            row.insert(key.into(), ppl[key].clone());
        }
        for what in ["needle", "turns"] {
            let (share, full) = self.answered(what, ppl);
            row.insert(what.into(), share);
            row.insert(format!("{what}_full"), full);
        }
        row.into()
    }

    /// Share of the questions that this cache answered, and a whole one; of
    /// all contexts alike, or null where it was not asked.
    fn answered(&self, what: &str, of: &Value) -> (Value, Value) {
        let (mut known, mut asked, mut full) = (0.0, 0.0, 0.0);
        let same = |r: &&Value| ["policy", "kv", "budget"].iter().all(|k| r[*k] == of[*k]);
        for r in self
            .recall
            .iter()
            .filter(|r| r["what"] == what)
            .filter(same)
        {
            let n = r["asked"].as_f64().unwrap_or(0.0);
            asked += n;
            known += r["known"].as_f64().unwrap_or(0.0);
            full += r["answered_full"].as_f64().unwrap_or(0.0) * n;
        }
        if asked == 0.0 {
            return (Value::Null, Value::Null);
        }
        (json!(known / asked), json!(full / asked))
    }
}

/// The texts of a report, the first one too.
pub fn texts(report: &Value) -> Vec<&Value> {
    let more = rows_of(&report["more"]);
    let all = std::iter::once(report).chain(more);
    all.filter(|t| t["text"].is_string()).collect()
}

/// The page: what was measured and how, in tables.
pub fn page(report: &Value) -> String {
    let mut t = String::from("# What a smaller cache costs\n\n");
    let _ = writeln!(
        t,
        "Written by `cargo xtask bench quality{}`. Model {}; {}\n",
        if report["quick"] == true {
            " --quick"
        } else {
            ""
        },
        text_of(&report["model"]),
        machine(report),
    );
    t += METHOD;
    for text in texts(report) {
        perplexities(&mut t, text);
    }
    recall(&mut t, report);
    steps(&mut t, report);
    t
}

const METHOD: &str = "\
A cache is held, every 128 tokens, to a share of the bytes that the tokens so far take in f16. `f16` with a
policy drops tokens alone; `ladder` packs cold blocks down to the narrowest encoding first, and then drops tokens.
Perplexity is taken as llama.cpp does: each chunk begins with an empty cache and its second half is predicted, here
from a cache of that size. Texts: `kjv` is Genesis 1-30 from Debian's bible-kjv-text, `holmes` is tests/data/holmes.txt.
";

fn perplexities(t: &mut String, text: &Value) {
    let name = text_of(&text["text"]);
    let _ = writeln!(
        t,
        "\n## Perplexity: {name}\n\n{} chunks of {} tokens.\n\n![Perplexity against bytes kept](quality-{name}.svg)\n",
        text["chunks"], text["context"],
    );
    let _ = writeln!(
        t,
        "| cache | policy | budget | kept | KiB | perplexity | over full | needle | turns |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|"
    );
    for r in rows_of(&text["rows"]) {
        let over = r["ppl"].as_f64().zip(r["ppl_full"].as_f64());
        let over = over.map(|(ppl, full)| ppl / full - 1.0);
        let _ = writeln!(
            t,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            text_of(&r["kv"]),
            text_of(&r["policy"]),
            percent(r["budget"].clone(), 1),
            percent(r["share"].clone(), 1),
            r["bytes"].as_u64().unwrap_or(0) >> 10,
            number(r["ppl"].clone(), 3),
            percent(over, 2),
            percent(r["needle"].clone(), 0),
            percent(r["turns"].clone(), 0),
        );
    }
}

fn recall(t: &mut String, report: &Value) {
    t.push_str(
        "\n## Facts from early on\n\n\
         Needle: one made-up fact at eight depths of a prose text, asked for at the end. Turns: four facts in the first\n\
         turns of a conversation, prose, then a question a turn. The answer is begun for the model, and must hold the\n\
         fact's words; what is held down was so before the question is read.\n\n\
         | test | tokens | cache | policy | budget | answered | whole cache |\n|---|--:|---|---|--:|--:|--:|\n",
    );
    for r in rows_of(&report["recall"]) {
        let _ = writeln!(
            t,
            "| {} | {} | {} | {} | {} | {} of {} | {} |",
            text_of(&r["what"]),
            r["context"],
            text_of(&r["kv"]),
            text_of(&r["policy"]),
            percent(r["budget"].clone(), 1),
            r["known"],
            r["asked"],
            percent(r["answered_full"].clone(), 0),
        );
    }
}

fn steps(t: &mut String, report: &Value) {
    t.push_str(
        "\n## Time of each step\n\n\
         Slack, cached and window until half of the cache is back; pack over all blocks; thin to half.\n\n\
         | step | | us for a MiB given back | GB/s read |\n|---|---|--:|--:|\n",
    );
    for r in rows_of(&report["steps"]) {
        let how = r["kv"].as_str().or(r["policy"].as_str());
        let _ = writeln!(
            t,
            "| {} | {} | {} | {} |",
            text_of(&r["step"]),
            how.unwrap_or(""),
            number(r["us_per_mib"].clone(), 1),
            number(r["read_bytes_s"].as_f64().map(|b| b / 1e9), 2),
        );
    }
    let beside = &report["beside"];
    let times = |who: &str| {
        let us = ["p50_us", "p90_us", "max_us"].map(|k| number(beside[who][k].clone(), 0));
        format!("{}, {} and {}", us[0], us[1], us[2])
    };
    let _ = writeln!(
        t,
        "\nOne block by `window`, as the reactor takes it: {} us (median, 90th percentile, maximum); while another\n\
         thread of the same priority packs the sequence to q4_0: {} us.",
        times("alone"),
        times("packing"),
    );
    let turn = &report["second_turn"];
    let _ = writeln!(
        t,
        "\nA conversation of {} tokens that was laid aside: first token of the second turn after {} s, of the first \
         after {} s, which is {}.",
        turn["tokens"],
        number(turn["second_ttft_s"].clone(), 3),
        number(turn["first_ttft_s"].clone(), 3),
        percent(turn["ratio"].clone(), 1),
    );
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn lines() -> Lines {
        let row = |kv: &str, policy: Option<&str>, budget: f64, ppl: f64| {
            json!({
                "what": "ppl", "kv": kv, "policy": policy, "budget": budget, "share": budget,
                "default_policy": policy == Some("expected"), "context": 2048, "chunks": 1,
                "tokens": 2048, "bytes": 4096, "dropped_tokens": 7, "ppl": ppl, "ppl_error": 0.1,
                "ppl_full": 10.0,
            })
        };
        let rows = vec![
            row("f16", None, 1.0, 10.0),
            row("f16", Some("window"), 0.5, 12.0),
            row("f16", Some("window"), 0.25, 14.0),
            row("ladder", Some("expected"), 0.25, 11.0),
        ];
        let asked = |context, known| {
            json!({
                "what": "needle", "context": context, "kv": "ladder", "policy": "expected",
                "budget": 0.25, "asked": 8, "known": known, "answered_full": 1.0,
            })
        };
        Lines {
            texts: vec![("kjv".into(), rows.clone()), ("holmes".into(), rows)],
            recall: vec![asked(1024, 8), asked(2048, 4)],
            steps: vec![
                json!({"what": "step", "step": "pack", "kv": "f16->q8_0", "us_per_mib": 500.0, "read_bytes_s": 2e9}),
                json!({"what": "second_turn", "tokens": 2000, "ratio": 0.05}),
                json!({"what": "beside", "alone": {"p50_us": 44.0, "p90_us": 66.0, "max_us": 107.0}}),
            ],
        }
    }

    pub fn report() -> Value {
        let mut report = json!({
            "bench": "quality", "machine": "a processor", "kernel": "6.1", "cpus": 2,
            "model": "m.gguf", "quick": true,
        });
        lines().put(&mut report);
        report
    }

    #[test]
    fn answers_stand_beside_the_perplexity_of_the_same_cache() {
        assert_eq!(lines().policies(), "expected,window");
        let report = report();
        assert_eq!(
            (&report["text"], &report["tokens"]),
            (&json!("kjv"), &json!(2048))
        );
        let rows = report["rows"].as_array().unwrap();
        for row in rows {
            for key in [
                "policy",
                "kv",
                "budget",
                "bytes",
                "ppl",
                "ppl_full",
                "needle",
                "needle_full",
            ] {
                assert!(row.get(key).is_some(), "{key} in {row}");
            }
        }
        assert_eq!(rows[3]["needle"], json!(0.75));
        assert_eq!(rows[3]["needle_full"], json!(1.0));
        assert!(rows[1]["needle"].is_null());
        assert_eq!(report["more"][0]["text"], "holmes");
        assert_eq!(report["steps"][0]["step"], "pack");
        assert_eq!(report["second_turn"]["ratio"], 0.05);
    }

    #[test]
    fn the_page_has_a_line_for_every_row() {
        let page = page(&report());
        for want in [
            "| ladder | expected | 25.0 % | 25.0 % | 4 | 11.000 | 10.00 % | 75 % | - |",
            "| needle | 2048 | ladder | expected | 25.0 % | 4 of 8 | 100 % |",
            "| pack | f16->q8_0 | 500.0 | 2.00 |",
            "which is 5.0 %",
            "as the reactor takes it: 44, 66 and 107 us",
        ] {
            assert!(page.contains(want), "{want} in\n{page}");
        }
    }
}
