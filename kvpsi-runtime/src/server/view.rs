//! What a running kvpsi shows of itself: the JSON of `/kvpsi/*`.
//!
//! Owns the shapes, which `kvpsi top`, the status page and `trace-dump
//! --attach` read. Times are `CLOCK_MONOTONIC`: what is compared was measured
//! by one clock. Out of scope: where the figures come from.

use crate::{
    control::{Verdicts, WallReport},
    kv::{Account, Profile},
    units::Bytes,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Time between two samples of [`History`], ms.
pub const SAMPLE_MS: u64 = 250;
/// Samples that are kept: ten minutes.
pub const SAMPLES: usize = 10 * 60 * 4;
/// Trims that are kept for [`History`].
pub const TRIMS: usize = 1024;

/// `GET /kvpsi/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of kvpsi.
    pub version: String,
    /// The name that clients call the model by.
    pub model: String,
    /// Seconds since it was ready.
    pub uptime_s: f64,
    /// The source of pressure events: `ebpf`, `psi-trigger`, `none`, ...
    pub signal: String,
    /// How far up the ladder eBPF goes; none for other signals.
    pub rung: Option<String>,
    /// What became of the signal, where it broke or was replaced.
    pub note: Option<String>,
    /// What may be lost to return memory.
    pub profile: Profile,
    /// False while it only watches.
    pub trimming: bool,
    /// The KV pool.
    pub kv: Kv,
    /// The kernel's stalls.
    pub stalls: Stalls,
    /// PSI's own account of memory, the whole system's; none on a kernel
    /// without PSI.
    pub psi: Option<Psi>,
    /// What was given back.
    pub trims: Trims,
    /// What clients asked for.
    pub requests: Requests,
    /// What clients hold outside of the KV cache.
    #[serde(default)]
    pub inbound: Inbound,
    /// Sequences in flight, oldest first.
    pub sequences: Vec<Sequence>,
    /// The process's resident set.
    pub rss: Bytes,
    /// The tightest limit of its memory cgroup.
    pub limit: Option<Bytes>,
    /// Each limit that memory can run into, our cgroup's first, the system's last.
    #[serde(default)]
    pub walls: Vec<WallReport>,
}

/// The KV pool at one moment, in bytes unless named otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kv {
    /// Pages of blocks in RAM.
    pub resident: Bytes,
    /// Pages of blocks in swap.
    #[serde(default)]
    pub swapped: Bytes,
    /// Blocks of sequences in flight.
    pub in_use: Bytes,
    /// Blocks of ended ones, kept to be used again.
    pub cached: Bytes,
    /// Free blocks that have pages.
    pub slack: Bytes,
    /// What no step but preemption takes.
    pub floor: Bytes,
    /// Most that may be resident now.
    pub budget: Bytes,
    /// Most that the budget may be.
    pub capacity: Bytes,
    /// Positions with keys and values.
    pub tokens: u64,
}

impl Kv {
    /// Of an account, with the budget and what it may grow to.
    #[must_use]
    pub fn new(a: &Account, budget: Bytes, capacity: Bytes) -> Self {
        Self {
            resident: a.resident,
            swapped: a.swapped,
            in_use: a.in_use,
            cached: a.cached,
            slack: a.slack,
            floor: a.floor,
            budget,
            capacity,
            tokens: a.live_tokens,
        }
    }
}

/// What the signal saw since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stalls {
    /// Stalls and marks that the programs saw.
    pub seen: u64,
    /// Of these, handed over one by one.
    pub delivered: u64,
    /// Of these, told of in summaries.
    pub coalesced: u64,
    /// Of these, lost because the ring buffer was full.
    pub dropped: u64,
    /// Microseconds in which at least one task stalled; none where the signal
    /// cannot tell.
    pub some_us: Option<u64>,
    /// By what became of them.
    #[serde(default)]
    pub verdicts: Verdicts,
}

/// Totals of `/proc/pressure/memory`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Psi {
    /// Of the `some` line, us.
    pub some_us: u64,
    /// Of the `full` line, us.
    pub full_us: u64,
}

/// What was given back since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trims {
    /// Trims that gave something.
    pub count: u64,
    /// Bytes given.
    pub bytes: Bytes,
    /// The same by step of the ladder.
    pub by_step: BTreeMap<String, Bytes>,
    /// Positions that lost their keys and values.
    pub tokens: u64,
}

/// Requests since the start, and now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// Being computed.
    pub running: u64,
    /// Waiting for a place.
    pub waiting: u64,
    /// Answered to their end.
    pub finished: u64,
    /// Ended because the client disconnected or cancelled.
    pub cancelled: u64,
    /// Turned away: no place, not valid, not allowed.
    pub refused: u64,
    /// Begun and broken off with an error.
    pub failed: u64,
    /// Tokens of prompts, those found in the cache too.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub tokens: u64,
}

/// Connections, and bodies before their requests are admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inbound {
    /// Open connections.
    pub connections: u64,
    /// Bytes of bodies that are held.
    pub body_bytes: Bytes,
    /// Most that large bodies may take together.
    pub most_body_bytes: Bytes,
    /// Bytes of answers that are made at once: tokens, texts, vectors.
    #[serde(default)]
    pub answer_bytes: Bytes,
    /// Bodies that wait for others to be done with.
    pub waiting: u64,
    /// Prompts that are made into tokens.
    pub preparing: u64,
}

/// What a sequence is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Doing {
    /// Waits for a place.
    Waiting,
    /// Its prompt is being computed.
    Prefill,
    /// It generates.
    Decode,
    /// It lost its memory and waits to be computed anew.
    Preempted,
}

impl Doing {
    /// Name in text and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Preempted => "preempted",
        }
    }
}

/// One request in flight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sequence {
    /// As in its response.
    pub id: String,
    /// What it is doing.
    pub doing: Doing,
    /// Tokens of its prompt.
    pub prompt_tokens: u64,
    /// Tokens generated so far.
    pub tokens: u64,
    /// Positions that lost keys and values.
    pub lost_tokens: u64,
    /// Seconds since it came.
    pub age_s: f64,
}

/// `GET /kvpsi/history?since=N`: what came after sample number N, and the
/// trims since.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Ask for what comes after this one next.
    pub next: u64,
    /// Now, ms.
    pub now_ms: u64,
    /// One in [`SAMPLE_MS`], oldest first.
    pub samples: Vec<Sample>,
    /// Those since the first of the samples, oldest first.
    pub trims: Vec<Trim>,
}

/// One sample. What is counted is counted since the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When, ms.
    pub t_ms: u64,
    /// Time in which at least one task stalled, us, as the signal measures it.
    pub stall_us: u64,
    /// The same as PSI measures it, us.
    pub psi_some_us: u64,
    /// Stalls.
    pub stalls: u64,
    /// Resident KV.
    pub resident: Bytes,
    /// KV of sequences in flight.
    pub in_use: Bytes,
    /// The budget.
    pub budget: Bytes,
    /// Bytes returned so far, all in all.
    pub returned_total: Bytes,
    /// Tokens generated.
    pub tokens: u64,
    /// Requests being computed.
    pub running: u64,
    /// Requests waiting.
    pub waiting: u64,
}

/// One trim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trim {
    /// When its last page was returned, ms.
    pub t_ms: u64,
    /// Why: `onset`, `ongoing`, `follow_up`, `early_warning`, `background`,
    /// `by_hand`.
    pub trigger: String,
    /// The kernel's event behind it.
    pub kind: String,
    /// The step that lost most.
    pub step: String,
    /// Bytes returned.
    pub bytes: Bytes,
    /// Positions that lost keys and values.
    pub tokens: u64,
    /// Share of recent attention mass that fell on them, 0 to 1.
    pub mass_dropped: f32,
    /// From the stall's onset to the return of the last page, us.
    pub onset_to_returned_us: u64,
}

/// `POST /kvpsi/trim`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrimOrder {
    /// Bytes to return.
    pub bytes: Bytes,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrimDone {
    /// Bytes returned.
    pub bytes: Bytes,
    /// Positions that lost keys and values.
    pub tokens: u64,
}

/// `POST /kvpsi/control`: what is named is changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// What may be lost to return memory from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
    /// False: watch only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trimming: Option<bool>,
}
