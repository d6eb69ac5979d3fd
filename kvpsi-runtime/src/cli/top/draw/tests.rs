//! What stands on the screen, at sizes that people have and at all others.

use super::super::{
    client::{Answer, ClientError},
    sample::{NOW_MS, answer, status},
};
use super::*;
use crate::control::{Verdicts, WallReport};
use crate::server::view::{Doing, History, Kv, Psi, Requests, Sample, Sequence, Stalls, Trim};
use proptest::prelude::*;
use ratatui::{Terminal, backend::TestBackend, buffer::Buffer, crossterm::event::KeyCode};

fn view_of(answer: Answer) -> View {
    let mut view = View::new("http://127.0.0.1:8080".into());
    view.looked(Ok(answer));
    view
}

fn drawn(view: &View, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen(frame, view)).unwrap();
    terminal.backend().buffer().clone()
}

fn lines(buffer: &Buffer) -> Vec<String> {
    let area = buffer.area;
    (area.top()..area.bottom())
        .map(|y| {
            let row: String = (area.left()..area.right())
                .map(|x| buffer[(x, y)].symbol())
                .collect();
            row.trim_end().to_owned()
        })
        .collect()
}

/// The line that has `mark`, its runs of spaces shortened.
fn line(lines: &[String], mark: &str) -> String {
    let found = lines.iter().find(|l| l.contains(mark));
    let found = found.unwrap_or_else(|| panic!("no {mark} in\n{}", lines.join("\n")));
    found.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The color of the first cell of `text`.
fn color(buffer: &Buffer, text: &str) -> Color {
    let area = buffer.area;
    let at =
        |x: u16, y: u16| -> String { (x..area.right()).map(|x| buffer[(x, y)].symbol()).collect() };
    let all =
        (area.top()..area.bottom()).flat_map(|y| (area.left()..area.right()).map(move |x| (x, y)));
    let mut found = all.filter(|(x, y)| at(*x, *y).starts_with(text));
    buffer[found.next().unwrap_or_else(|| panic!("no {text}"))].fg
}

/// Every figure of the status, as it is to be read.
fn has_the_figures(lines: &[String]) {
    let kvpsi = line(lines, "kvpsi 0.1.0");
    assert!(
        kvpsi.contains("SmolLM2-135M-Instruct-Q4_K_M up 1:02:03"),
        "{kvpsi}"
    );
    assert!(kvpsi.ends_with("● connected"), "{kvpsi}");
    let set = line(lines, "signal ");
    assert!(
        set.starts_with(
            "signal ebpf (fentry) profile balanced trimming on RSS 150.1 MiB of 176.0 MiB"
        ),
        "{set}"
    );
    assert_eq!(
        line(lines, "stalled"),
        // 3300 us of the last 10 s, 3630 by PSI: the sample of now.
        "stalled 0.0 % (4.3 s) PSI some 0.0 % (5.4 s) full - (987.6 ms)"
    );
    assert_eq!(
        line(lines, "events"),
        "events 12,345 seen 678 delivered 11,667 coalesced 0 dropped"
    );
    assert_eq!(
        line(lines, "requests"),
        "requests 2 running 1 waiting 1,087 finished 7 refused 0 failed 13 cancelled"
    );
    assert_eq!(
        line(lines, "of prompts"),
        "tokens 24.0/s 98,765 generated 345,678 of prompts 96 lost in 4 trims"
    );
    assert_eq!(
        line(lines, "slack 1"),
        "KV in use 24.0 MiB cached 13.0 MiB slack 1.3 MiB floor 4.5 MiB"
    );
    assert_eq!(
        line(lines, "resident, budget"),
        "KV 38.3 MiB resident, budget 48.0 MiB of 64.0 MiB, returned 4.9 MiB"
    );
    assert_eq!(
        line(lines, "STALL TIME"),
        "STALL TIME per 250 ms: now 3300 us, worst 41.7 ms, sum 68.1 ms last 5 min"
    );
}

#[test]
fn at_80_by_24_every_figure_and_both_plots_and_tables_have_room() {
    let buffer = drawn(&view_of(answer()), 80, 24);
    let lines = lines(&buffer);
    has_the_figures(&lines);
    // 41.7 of 50 ms in 24 eighths: two rows and a half.
    assert!(line(&lines, "50 ms┤").contains('▄'));
    assert!(line(&lines, "48.0 MiB┤").contains('▔'));
    let marks: Vec<&String> = lines.iter().filter(|l| l.contains("trims ")).collect();
    assert_eq!(
        marks.iter().filter(|l| l.contains('▲')).count(),
        2,
        "{marks:?}"
    );
    let sequence = line(&lines, "b2c9");
    assert_eq!(sequence, "chatcmpl-5f1d70a4b2c9 decode 993 412 96 17 s");
    assert!(line(&lines, "SEQUENCES").starts_with("SEQUENCES 2 of 3 doing"));
    assert_eq!(
        line(&lines, "background"),
        "4.2 s background refault pack 96.0 KiB 0 0.0 1.2 s"
    );
    assert_eq!(
        line(&lines, "softlimit"),
        "1:39 follow up softlimit_reclaim window 2.2 MiB 96 15.3 33.9 ms"
    );
    assert!(lines[23].contains("q quit") && lines[23].contains("? help"));
    assert!(lines[23].contains("t trim  +- 4 MiB"));
}

#[test]
fn at_140_by_45_the_plots_are_higher_and_all_trims_and_sequences_are_listed() {
    let buffer = drawn(&view_of(answer()), 140, 45);
    let lines = lines(&buffer);
    has_the_figures(&lines);
    let ground: Vec<usize> = (0..45).filter(|y| lines[*y].contains(" 0┤")).collect();
    let tops: Vec<usize> = (0..45)
        .filter(|y| lines[*y].contains("50 ms┤") || lines[*y].contains("48.0 MiB┤"))
        .collect();
    assert!(
        ground.iter().zip(&tops).all(|(g, t)| g - t >= 6),
        "{lines:#?}"
    );
    assert_eq!(
        line(&lines, "LIMITS"),
        "LIMITS used anonymous high max hits missing"
    );
    assert_eq!(
        line(&lines, "robot"),
        "→ robot/llm 170.0 MiB 161.0 MiB 176.0 MiB 192.0 MiB 1,234 0 B"
    );
    assert_eq!(line(&lines, "system"), "system 3.00 GiB - - 7.00 GiB - 0 B");
    for text in [
        "b2c9",
        "b2ca",
        "b2cb",
        "early warning",
        "onset",
        "follow up",
        "background",
    ] {
        line(&lines, text);
    }
    assert!(!line(&lines, "SEQUENCES").contains("of"));
}

#[test]
fn no_figure_of_a_table_is_cut_at_80_columns() {
    let mut answer = answer();
    let trim = &mut answer.history.trims[3];
    trim.t_ms = NOW_MS - 599_000;
    trim.trigger = "early_warning".into();
    trim.kind = "softlimit_reclaim".into();
    trim.step = "preempt".into();
    (trim.bytes, trim.tokens) = (Bytes(1_023 << 10), 65_432);
    (trim.mass_dropped, trim.onset_to_returned_us) = (1.0, 812_300);
    answer.history.trims.swap(0, 3);
    answer.history.trims.truncate(1);
    let s = &mut answer.status.sequences[0];
    (s.doing, s.prompt_tokens, s.tokens) = (Doing::Preempted, 131_072, 131_072);
    (s.lost_tokens, s.age_s) = (131_072, 273_900.0);
    let lines = lines(&drawn(&view_of(answer), 80, 24));
    assert_eq!(
        line(&lines, "softlimit"),
        "9:59 early warning softlimit_reclaim preempt 1023.0 KiB 65,432 100.0 812.3 ms"
    );
    assert_eq!(
        line(&lines, "b2c9"),
        "chatcmpl-5f1d70a4b2c9 preempted 131,072 131,072 131,072 3 d 04:05"
    );
}

#[test]
fn a_budget_far_above_does_not_hide_what_is_resident() {
    let mut answer = answer();
    for sample in &mut answer.history.samples {
        sample.budget = Bytes::mib(720);
    }
    answer.status.kv.budget = Bytes::mib(720);
    answer.status.kv.capacity = Bytes::mib(720);
    answer.history.trims.clear();
    let lines = lines(&drawn(&view_of(answer), 80, 24));
    assert!(line(&lines, "resident, budget").contains("budget 720.0 MiB↑ of 720.0 MiB"));
    // 38.3 of 48 MiB in 24 eighths: two rows and three eighths.
    let top = line(&lines, "48.0 MiB┤");
    assert!(top.ends_with('▃'), "{top}");
    assert!(!lines.join("").contains('▔'));
    line(&lines, "none lately");
}

#[test]
fn where_there_is_width_the_tables_stand_side_by_side() {
    let lines = lines(&drawn(&view_of(answer()), 180, 30));
    let both = line(&lines, "SEQUENCES");
    assert!(both.contains("TRIMS"), "{both}");
    let both = line(&lines, "b2c9");
    assert!(
        both.ends_with("17 s 4.2 s background refault pack 96.0 KiB 0 0.0 1.2 s"),
        "{both}"
    );
    assert!(lines[0].contains("http://127.0.0.1:8080"));
}

#[test]
fn a_trim_is_marked_in_the_column_of_its_time() {
    let mut answer = answer();
    answer.history.trims.truncate(2);
    answer.history.trims[0].t_ms = NOW_MS;
    answer.history.trims[1].t_ms = NOW_MS - 150_000;
    answer.history.trims[1].tokens = 5;
    let buffer = drawn(&view_of(answer), 80, 24);
    let lines = lines(&buffer);
    let marks = lines.iter().find(|l| l.contains("trims ")).unwrap();
    let at = |glyph| marks.chars().position(|c| c == glyph).unwrap();
    assert_eq!(at('△'), 79);
    // Half of five minutes ago, in columns that begin at the tenth.
    assert!((43..=45).contains(&at('▲')), "{marks}");
    assert_eq!(color(&buffer, "▲"), Color::Red);
}

#[test]
fn dropped_events_and_failed_requests_are_red_and_none_are_not() {
    let mut answer = answer();
    let calm = drawn(&view_of(answer.clone()), 80, 24);
    assert_ne!(color(&calm, "0 dropped"), Color::Red);
    assert_ne!(color(&calm, "0 failed"), Color::Red);
    answer.status.stalls.dropped = 3;
    answer.status.requests.failed = 2;
    let buffer = drawn(&view_of(answer), 80, 24);
    assert_eq!(color(&buffer, "3 dropped"), Color::Red);
    assert_eq!(color(&buffer, "2 failed"), Color::Red);
}

#[test]
fn a_server_that_does_not_answer_is_reported_gone_and_the_last_figures_stay() {
    let mut view = View::new("http://robot:8080".into());
    let gone = || ClientError::Gone {
        url: "http://robot:8080".into(),
        why: "connection refused".into(),
    };
    view.looked(Err(gone()));
    let first = lines(&drawn(&view, 80, 24));
    assert!(first[0].contains("● gone 0."), "{}", first[0]);
    assert_eq!(first[2], "no answer: connection refused; trying again");
    assert!(first.join("\n").contains("kvpsi serve -m MODEL"));
    view.looked(Ok(answer()));
    let up = lines(&drawn(&view, 80, 24));
    assert!(!up.join("\n").contains("no answer"));
    view.looked(Err(gone()));
    let after = lines(&drawn(&view, 80, 24));
    assert!(after[0].contains("● gone"));
    assert!(after[2].contains("below is what was last known"));
    assert!(line(&after, "events").contains("12,345 seen"));
}

#[test]
fn what_became_of_the_signal_is_said_and_trimming_off_is_not_overlooked() {
    let mut answer = answer();
    answer.status.note = Some("the programs are silent: PSI is read instead".into());
    answer.status.trimming = false;
    let buffer = drawn(&view_of(answer), 80, 24);
    let lines = lines(&buffer);
    assert_eq!(lines[2], "the programs are silent: PSI is read instead");
    assert!(line(&lines, "signal ebpf").contains("trimming OFF"));
    assert_eq!(color(&buffer, "OFF"), Color::Yellow);
}

#[test]
fn a_held_picture_says_so_and_stands_still() {
    let mut view = view_of(answer());
    view.key(KeyCode::Char(' ').into());
    let mut next = answer();
    next.status.stalls.seen = 99_999;
    view.looked(Ok(next));
    let held = lines(&drawn(&view, 80, 24));
    assert!(held[0].ends_with("HELD"));
    assert!(line(&held, "events").contains("12,345 seen"));
    view.key(KeyCode::Char(' ').into());
    assert!(line(&lines(&drawn(&view, 80, 24)), "events").contains("99,999 seen"));
}

#[test]
fn the_help_names_every_key() {
    let mut view = view_of(answer());
    view.key(KeyCode::Char('?').into());
    let shown = lines(&drawn(&view, 80, 24)).join("\n");
    for key in ["Ctrl-C", "space", "lossless", "on or off", "by hand", "+ -"] {
        assert!(shown.contains(key), "{key} in\n{shown}");
    }
}

#[test]
fn names_cannot_move_the_cursor() {
    let mut answer = answer();
    answer.status.model = "a\u{1b}[2Jb\nc".into();
    answer.status.sequences[0].id = "\u{7}x\u{9b}y".into();
    let shown = lines(&drawn(&view_of(answer), 80, 24)).join("\n");
    assert!(!shown.chars().any(|c| c.is_control() && c != '\n'));
}

prop_compose! {
    fn any_sample()(
        t_ms in prop_oneof![any::<u64>(), NOW_MS - 600_000..=NOW_MS], stall_us: u64, resident: u64,
        budget: u64, tokens: u64,
    ) -> Sample {
        Sample { t_ms, stall_us, psi_some_us: stall_us, resident: Bytes(resident),
            budget: Bytes(budget), tokens, ..Sample::default() }
    }
}

prop_compose! {
    fn any_trim()(
        t_ms in prop_oneof![any::<u64>(), NOW_MS - 600_000..=NOW_MS], trigger: String,
        bytes: u64, tokens: u64, mass_dropped: f32, us: u64,
    ) -> Trim {
        Trim { t_ms, kind: trigger.clone(), step: trigger.clone(), trigger, bytes: Bytes(bytes),
            tokens, mass_dropped, onset_to_returned_us: us }
    }
}

prop_compose! {
    fn any_answer()(
        n: u64, text: String, uptime_s: f64, age_s: f64, psi: bool,
        samples in prop::collection::vec(any_sample(), 0..40),
        trims in prop::collection::vec(any_trim(), 0..10),
        sequences in 0_usize..5,
    ) -> Answer {
        let b = Bytes(n);
        let mut s = status();
        s.model = text.clone();
        s.note = (n % 2 == 0).then(|| text.clone());
        s.uptime_s = uptime_s;
        s.psi = psi.then_some(Psi { some_us: n, full_us: n });
        s.kv = Kv { resident: b, swapped: Bytes::ZERO, in_use: b, cached: b, slack: b, floor: b, budget: b, capacity: b, tokens: n };
        s.stalls = Stalls { seen: n, delivered: n, coalesced: n, dropped: n, some_us: Some(n),
            verdicts: Verdicts::default() };
        for w in &mut s.walls {
            *w = WallReport { level: text.clone(), usage: b, high: Some(b), hits: Some(n), ..w.clone() };
        }
        s.requests = Requests { running: n, tokens: n, failed: n, ..Requests::default() };
        s.sequences = vec![Sequence { id: text, doing: Doing::Preempted, prompt_tokens: n,
            tokens: n, lost_tokens: n, age_s }; sequences];
        Answer { status: s, anew: true,
            history: History { next: n, now_ms: if n % 3 == 0 { n } else { NOW_MS }, samples, trims } }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_size_and_no_figures_panic(
        width in 1_u16..220, height in 1_u16..90, answer in any_answer(), help: bool, gone: bool,
    ) {
        let mut view = view_of(answer);
        view.help = help;
        if gone {
            view.looked(Err(ClientError::Key { url: "http://x".into() }));
        }
        drawn(&view, width, height);
    }
}

#[test]
fn every_small_size_can_be_drawn() {
    let mut view = view_of(answer());
    let empty = View::new("http://127.0.0.1:8080".into());
    for width in 1..=60 {
        for height in 1..=30 {
            view.help = (width + height) % 2 == 0;
            drawn(&view, width, height);
            drawn(&empty, width, height);
        }
    }
}
