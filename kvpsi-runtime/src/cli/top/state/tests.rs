//! What is merged, worked out and ordered.

use super::super::sample::{NOW_MS, answer};
use super::*;
use crate::server::view::{History, TrimDone};

fn more(from_n: u64, samples: u64, trims: Vec<Trim>) -> Answer {
    let mut a = answer();
    let first = a.history.samples[0];
    a.anew = false;
    a.history = History {
        next: from_n + samples,
        now_ms: NOW_MS + samples * SAMPLE_MS,
        samples: (0..=samples)
            .map(|i| Sample {
                t_ms: NOW_MS + i * SAMPLE_MS,
                ..first
            })
            .collect(),
        trims,
    };
    a
}

fn press(view: &mut View, c: char) -> Wish {
    view.key(KeyCode::Char(c).into())
}

#[test]
fn answers_that_overlap_are_merged_without_loss_and_without_doubles() {
    let mut data = Data::default();
    data.take(answer());
    let known = data.trims.clone();
    let newest = known[3].clone();
    // It came late: older than the newest that is known.
    let late = Trim {
        t_ms: newest.t_ms - 1,
        ..newest.clone()
    };
    data.take(more(2400, 3, vec![newest, late.clone()]));
    assert_eq!(data.samples.len(), SAMPLES);
    assert_eq!(data.samples.back().map(|s| s.t_ms), Some(NOW_MS + 750));
    let times: Vec<u64> = data.samples.iter().map(|s| s.t_ms).collect();
    assert!(times.windows(2).all(|w| w[1] - w[0] == SAMPLE_MS));
    assert_eq!(data.trims.len(), known.len() + 1);
    assert_eq!(data.trims[3], late);
}

#[test]
fn another_instance_makes_what_was_known_void() {
    let mut data = Data::default();
    data.take(answer());
    let mut anew = more(0, 2, Vec::new());
    anew.anew = true;
    data.take(anew);
    assert_eq!(data.samples.len(), 3);
    assert!(data.trims.is_empty());
}

#[test]
fn rates_are_of_the_last_seconds() {
    let mut data = Data::default();
    let mut first = answer();
    for s in first.history.samples.iter_mut().rev().take(40) {
        // A tenth of each quarter of a second.
        s.stall_us = 25_000;
        s.psi_some_us = 50_000;
    }
    for s in first.history.samples.iter_mut().rev().take(8) {
        s.tokens = 11;
    }
    let mut second = first.clone();
    data.take(first);
    let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
    assert!(near(data.rates().some, 0.2), "{:?}", data.rates());
    assert_eq!(data.rates().full, None);
    second.anew = false;
    second.status.uptime_s += 2.0;
    if let Some(psi) = &mut second.status.psi {
        psi.some_us += 600_000;
        psi.full_us += 500_000;
    }
    data.take(second);
    let rates = data.rates();
    assert!(near(rates.stalled, 0.1), "{rates:?}");
    assert!(near(rates.some, 0.3), "{rates:?}");
    assert!(near(rates.full.unwrap(), 0.25), "{rates:?}");
    assert!(near(rates.tokens, 44.0), "{rates:?}");
}

#[test]
fn nothing_known_is_a_rate_of_nothing() {
    assert_eq!(Data::default().rates(), Rates::default());
}

#[test]
fn q_escape_and_ctrl_c_quit_and_a_released_key_does_not() {
    let mut view = View::new("http://x".into());
    assert_eq!(press(&mut view, 'q'), Wish::Quit);
    assert_eq!(view.key(KeyCode::Esc.into()), Wish::Quit);
    let c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(view.key(c), Wish::Quit);
    assert_eq!(press(&mut view, 'c'), Wish::Draw);
    let q = KeyCode::Char('q');
    let released = KeyEvent::new_with_kind(q, KeyModifiers::NONE, KeyEventKind::Release);
    assert_eq!(view.key(released), Wish::Draw);
}

#[test]
fn any_key_closes_the_help_and_does_nothing_else() {
    let mut view = View::new("http://x".into());
    press(&mut view, '?');
    assert!(view.help);
    assert_eq!(press(&mut view, 'q'), Wish::Draw);
    assert!(!view.help);
}

#[test]
fn p_goes_through_the_profiles_also_before_an_answer_came() {
    let mut view = View::new("http://x".into());
    view.looked(Ok(answer()));
    let profiles = ['p'; 3].map(|c| match press(&mut view, c) {
        Wish::Order(Order::Control(Control {
            profile: Some(p),
            trimming: None,
        })) => p,
        other => panic!("{other:?}"),
    });
    assert_eq!(
        profiles,
        [Profile::Latency, Profile::Lossless, Profile::Balanced]
    );
}

#[test]
fn o_turns_trimming_over_and_t_asks_for_the_amount() {
    let mut view = View::new("http://x".into());
    view.looked(Ok(answer()));
    let off = Order::Control(Control {
        profile: None,
        trimming: Some(false),
    });
    assert_eq!(press(&mut view, 'o'), Wish::Order(off));
    let trim = |mib| {
        Wish::Order(Order::Trim(TrimOrder {
            bytes: Bytes::mib(mib),
        }))
    };
    assert_eq!(press(&mut view, 't'), trim(4));
    press(&mut view, '+');
    assert_eq!(press(&mut view, 't'), trim(8));
    for _ in 0..9 {
        press(&mut view, '-');
    }
    assert_eq!(press(&mut view, 't'), trim(1));
    for _ in 0..99 {
        press(&mut view, '+');
    }
    assert_eq!(press(&mut view, 't'), trim(MOST_MIB));
}

#[test]
fn no_order_is_sent_without_a_server() {
    let mut view = View::new("http://x".into());
    assert_eq!(press(&mut view, 't'), Wish::Draw);
    assert!(view.said().unwrap().1);
}

#[test]
fn what_came_of_an_order_is_said() {
    let mut view = View::new("http://x".into());
    view.looked(Ok(answer()));
    let order = Order::Trim(TrimOrder {
        bytes: Bytes::mib(4),
    });
    let done = TrimDone {
        bytes: Bytes::mib(3),
        tokens: 1_200,
    };
    view.ordered(order, Ok(Outcome::Trim(done)));
    let said = ("by hand: 3.0 MiB returned, 1,200 tokens lost", false);
    assert_eq!(view.said(), Some(said));
    let refused = ClientError::Refused {
        url: "http://x".into(),
        status: 409,
        why: "no".into(),
    };
    view.ordered(order, Err(refused));
    assert_eq!(view.said(), Some(("not done: it says 409: no", true)));
}

#[test]
fn w_goes_through_the_windows() {
    let mut view = View::new("http://x".into());
    let minutes = ['w'; 4].map(|c| {
        press(&mut view, c);
        view.minutes
    });
    assert_eq!(minutes, [10, 1, 5, 10]);
}
