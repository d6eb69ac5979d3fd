//! An answer as a running kvpsi gives it, for tests.

use super::client::Answer;
use crate::{
    control::{Verdicts, WallReport},
    kv::Profile,
    server::view::{
        Doing, History, Kv, Psi, Requests, SAMPLE_MS, Sample, Sequence, Stalls, Status, Trim, Trims,
    },
    units::Bytes,
};

const KIB: u64 = 1024;

/// The instance's clock in [`answer`], ms.
pub const NOW_MS: u64 = 9_000_000;

/// Ten minutes of a kvpsi that gave something back four times.
pub fn answer() -> Answer {
    let samples: Vec<Sample> = (1..=2400).map(sample).collect();
    let history = History {
        next: 2400,
        now_ms: NOW_MS,
        samples,
        trims: trims(),
    };
    Answer {
        status: status(),
        history,
        anew: true,
    }
}

/// Number `n`: quiet, but for a stall each 40 s and a worse one 100 s ago.
fn sample(n: u64) -> Sample {
    let stall_us = match n {
        2000 => 41_700,
        _ if n.is_multiple_of(160) => 3_300,
        _ => 0,
    };
    Sample {
        t_ms: NOW_MS - (2400 - n) * SAMPLE_MS,
        stall_us,
        psi_some_us: stall_us + stall_us / 10,
        stalls: u64::from(stall_us > 0),
        resident: Bytes((36 * KIB + n) * KIB),
        in_use: Bytes(24 << 20),
        budget: Bytes::mib(48),
        returned_total: Bytes::mib(n / 100),
        tokens: 6,
        running: 2,
        waiting: 1,
    }
}

fn trims() -> Vec<Trim> {
    let trim = |ago_ms, trigger: &str, kind: &str, step: &str, kib: u64, tokens, us| Trim {
        t_ms: NOW_MS - ago_ms,
        trigger: trigger.into(),
        kind: kind.into(),
        step: step.into(),
        bytes: Bytes(kib * KIB),
        tokens,
        mass_dropped: if tokens > 0 { 0.153 } else { 0.0 },
        onset_to_returned_us: us,
    };
    vec![
        trim(420_000, "early_warning", "kswapd_wake", "slack", 512, 0, 0),
        trim(100_000, "onset", "memcg_reclaim", "cached", 2_150, 0, 812),
        trim(
            99_200,
            "follow_up",
            "softlimit_reclaim",
            "window",
            2_250,
            96,
            33_900,
        ),
        trim(4_200, "background", "refault", "pack", 96, 0, 1_204_000),
    ]
}

/// Its figures differ from each other, so that none can stand for another.
pub fn status() -> Status {
    let sequence = |id: &str, doing, prompt_tokens, tokens, lost_tokens, age_s| Sequence {
        id: id.into(),
        doing,
        prompt_tokens,
        tokens,
        lost_tokens,
        age_s,
    };
    Status {
        version: "0.1.0".into(),
        model: "SmolLM2-135M-Instruct-Q4_K_M".into(),
        uptime_s: 3_723.4,
        signal: "ebpf".into(),
        rung: Some("fentry".into()),
        note: None,
        profile: Profile::Balanced,
        trimming: true,
        kv: Kv {
            resident: Bytes(39_264 * KIB),
            swapped: Bytes::ZERO,
            in_use: Bytes(24 << 20),
            cached: Bytes(13 << 20),
            slack: Bytes(1_376 * KIB),
            floor: Bytes(4_608 * KIB),
            budget: Bytes::mib(48),
            capacity: Bytes::mib(64),
            tokens: 1_745,
        },
        stalls: Stalls {
            seen: 12_345,
            delivered: 678,
            coalesced: 11_667,
            dropped: 0,
            some_us: Some(4_321_000),
            verdicts: Verdicts {
                answered_cgroup: 31,
                answered_system: 2,
                harmless_cgroup: 507,
                foreign: 88,
                ..Verdicts::default()
            },
        },
        psi: Some(Psi {
            some_us: 5_432_100,
            full_us: 987_600,
        }),
        trims: Trims {
            count: 4,
            bytes: Bytes(5_008 * KIB),
            by_step: [
                ("cached".to_owned(), Bytes(2_150 * KIB)),
                ("pack".to_owned(), Bytes(96 * KIB)),
                ("slack".to_owned(), Bytes(512 * KIB)),
                ("window".to_owned(), Bytes(2_250 * KIB)),
            ]
            .into(),
            tokens: 96,
        },
        requests: Requests {
            running: 2,
            waiting: 1,
            finished: 1_087,
            cancelled: 13,
            refused: 7,
            failed: 0,
            prompt_tokens: 345_678,
            tokens: 98_765,
        },
        inbound: Default::default(),
        sequences: vec![
            sequence("chatcmpl-5f1d70a4b2c9", Doing::Decode, 993, 412, 96, 17.6),
            sequence("chatcmpl-5f1d70a4b2ca", Doing::Prefill, 2_048, 0, 0, 2.5),
            sequence("cmpl-5f1d70a4b2cb", Doing::Waiting, 55, 0, 0, 0.4),
        ],
        rss: Bytes(157_389_619),
        limit: Some(Bytes::mib(176)),
        walls: vec![
            WallReport {
                level: "/sys/fs/cgroup/robot/llm".into(),
                depth: Some(0),
                usage: Bytes::mib(170),
                anonymous: Some(Bytes::mib(161)),
                page_cache: Some(Bytes::mib(7)),
                high: Some(Bytes::mib(176)),
                max: Some(Bytes::mib(192)),
                hits: Some(1_234),
                missing: Bytes::ZERO,
                room: Bytes::mib(10),
                binds: true,
            },
            WallReport {
                level: "system".into(),
                usage: Bytes(3 << 30),
                max: Some(Bytes(7 << 30)),
                room: Bytes(4 << 30),
                ..WallReport::default()
            },
        ],
    }
}
