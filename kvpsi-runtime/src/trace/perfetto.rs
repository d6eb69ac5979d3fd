//! A trace that ui.perfetto.dev and chrome://tracing open: the JSON array of
//! the Trace Event Format (Google's document "Trace Event Format", JSON Array
//! Format; Perfetto's `src/trace_processor/importers/json`).
//!
//! Owns the tracks. A task has a track with its stalls as complete slices,
//! which nest as the stalls do; a CPU has one with the same stalls as
//! asynchronous slices, since a task that sleeps in a stall makes room for
//! another. Marks are instants; stalled tasks and PSI are counters. A trace
//! that was cut off is still read up to there: the format lets the closing
//! bracket be missing.

use super::{KvLevel, Output, Sample, printable, recording::Trim};
use kvpsi_common::{Event, Kind, Phase, event::ORDER_UNKNOWN};
use serde_json::{Value, json};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    io::{self, Write},
};

/// Process under which the system's counters and kswapd are shown. Real ones
/// have a number below `PID_MAX_LIMIT`, which is 2^22.
const SYSTEM: u32 = 1 << 30;
/// Process of the first CPU; the others follow.
const CPUS: u32 = SYSTEM + 1;
/// Process of a running kvpsi: behind as many CPUs as Linux can have (8192).
const KVPSI: u32 = CPUS + (1 << 14);
/// Onsets that a trim may still come from.
const ONSETS: usize = 256;
/// Length of an onset: an arrow begins in a slice, and an instant is none.
const ONSET_NS: u64 = 1000;

/// Writes the trace.
#[derive(Debug)]
pub struct Perfetto<W> {
    out: W,
    /// Written so far.
    entries: u64,
    /// Tracks that have a name: process and thread.
    named: HashSet<(u32, u32)>,
    /// kswapd's slices that are open, by node.
    kswapd: HashMap<u32, u64>,
    last: Option<Sample>,
    /// Until when a track is taken, ns, of those whose slices never lie within
    /// each other: one that begins before would be dropped by who reads the
    /// trace.
    taken: HashMap<(u32, u32), u64>,
    /// When and whose, the last ones.
    onsets: VecDeque<(u64, u32, u32)>,
    /// Number of the next asynchronous slice.
    next: u64,
}

impl<W: Write> Perfetto<W> {
    /// Begins a trace.
    pub fn new(out: W) -> Self {
        Self {
            out,
            entries: 0,
            named: HashSet::new(),
            kswapd: HashMap::new(),
            last: None,
            taken: HashMap::new(),
            onsets: VecDeque::new(),
            next: 1,
        }
    }

    fn put(&mut self, entry: &Value) -> io::Result<()> {
        let before = if self.entries == 0 { "[\n" } else { ",\n" };
        self.entries += 1;
        write!(self.out, "{before}{entry}")
    }

    /// Names a track before its first entry.
    fn track(&mut self, pid: u32, tid: u32, process: &str, thread: &str) -> io::Result<()> {
        for (what, tid, name) in [("process_name", 0, process), ("thread_name", tid, thread)] {
            if (what == "process_name" || tid != 0) && self.named.insert((pid, tid)) {
                self.put(&json!({
                    "ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name},
                }))?;
            }
        }
        Ok(())
    }

    fn counter(&mut self, ts_ns: u64, name: &str, args: &Value) -> io::Result<()> {
        self.track(SYSTEM, 0, "memory", "")?;
        self.put(&json!({
            "ph": "C", "name": name, "pid": SYSTEM, "ts": us(ts_ns), "args": args,
        }))
    }

    /// When a slice begins on a track of slices side by side.
    fn beside(&mut self, track: (u32, u32), begin_ns: u64, end_ns: u64) -> u64 {
        let taken = self.taken.entry(track).or_default();
        let begin = begin_ns.max(*taken).min(end_ns);
        *taken = end_ns.max(*taken);
        begin
    }

    /// A stall that is over, on its task's track and on its CPU's.
    fn stall(&mut self, e: &Event, name: &str) -> io::Result<()> {
        let (mut begin, end) = (e.ts_ns.saturating_sub(e.stall_ns), e.ts_ns);
        if e.phase() == Some(Phase::Summary) {
            // Time of the whole scope, that began with the onset or after the
            // summary before, but for what clocks and sums are apart.
            begin = self.beside((e.tgid, e.tid), begin, end);
        }
        let args = args(e);
        let comm = printable(e.comm_str());
        self.track(e.tgid, e.tid, &comm, &comm)?;
        self.put(&json!({
            "ph": "X", "cat": "stall", "name": name, "pid": e.tgid, "tid": e.tid,
            "ts": us(begin), "dur": us(end - begin), "args": args,
        }))?;
        // What lies within another stall of the task is on its track alone.
        if e.count == 0 {
            return Ok(());
        }
        let cpu = CPUS + e.cpu;
        self.track(cpu, 0, &format!("CPU {}", e.cpu), "")?;
        let id = self.next;
        self.next += 1;
        let label = format!("{comm} {name}");
        for (ph, ts) in [("b", begin), ("e", end)] {
            self.put(&json!({
                "ph": ph, "cat": "stall", "name": label, "id2": local(id), "pid": cpu, "tid": 0,
                "ts": us(ts), "args": if ph == "b" { &args } else { &Value::Null },
            }))?;
        }
        Ok(())
    }

    fn kswapd(&mut self, e: &Event, kind: Kind) -> io::Result<()> {
        self.track(SYSTEM, 0, "memory", "")?;
        let (ph, id) = match (kind, self.kswapd.get(&e.node)) {
            (Kind::KswapdWake, None) => {
                let id = self.next;
                self.next += 1;
                self.kswapd.insert(e.node, id);
                ("b", id)
            }
            (Kind::KswapdSleep, Some(id)) => ("e", *id),
            _ => return Ok(()),
        };
        if ph == "e" {
            self.kswapd.remove(&e.node);
        }
        self.put(&json!({
            "ph": ph, "cat": "kswapd", "name": format!("kswapd, node {}", e.node),
            "id2": local(id), "pid": SYSTEM, "tid": 0, "ts": us(e.ts_ns),
        }))
    }

    /// The first stall of a burst, which trims come from.
    fn onset(&mut self, e: &Event, name: &str) -> io::Result<()> {
        let comm = printable(e.comm_str());
        self.track(e.tgid, e.tid, &comm, &comm)?;
        if self.onsets.len() >= ONSETS {
            self.onsets.pop_front();
        }
        self.onsets.push_back((e.ts_ns, e.tgid, e.tid));
        self.beside((e.tgid, e.tid), e.ts_ns, e.ts_ns + ONSET_NS);
        self.put(&json!({
            "ph": "X", "cat": "onset", "name": format!("{name} onset"), "pid": e.tgid,
            "tid": e.tid, "ts": us(e.ts_ns), "dur": us(ONSET_NS), "args": args(e),
        }))
    }

    fn instant(&mut self, e: &Event, name: &str) -> io::Result<()> {
        let comm = printable(e.comm_str());
        self.track(e.tgid, e.tid, &comm, &comm)?;
        // A victim concerns every process.
        let scope = if e.kind() == Some(Kind::OomVictim) {
            "g"
        } else {
            "t"
        };
        self.put(&json!({
            "ph": "i", "cat": "mark", "name": name, "pid": e.tgid, "tid": e.tid,
            "ts": us(e.ts_ns), "s": scope, "args": args(e),
        }))
    }
}

/// Microseconds with all digits of a nanosecond.
#[expect(clippy::cast_precision_loss, reason = "exact for 104 days of uptime")]
fn us(ns: u64) -> f64 {
    ns as f64 / 1e3
}

/// A slice's number within its process: one by `id` has no process, and all CPUs
/// would share a track.
fn local(id: u64) -> Value {
    json!({"local": format!("{id:#x}")})
}

fn args(e: &Event) -> Value {
    json!({
        "pages": e.pages, "count": e.count, "stalled_now": e.stalled_now,
        "order": (e.order != ORDER_UNKNOWN).then_some(e.order),
        "cgroup_id": e.cgroup_id, "cpu": e.cpu,
    })
}

impl<W: Write> Output for Perfetto<W> {
    fn event(&mut self, e: &Event) -> io::Result<()> {
        let kind = e.settled().or(e.kind());
        let name = kind.map_or("?", Kind::name);
        match (e.kind(), e.phase()) {
            (Some(k @ (Kind::KswapdWake | Kind::KswapdSleep)), _) => self.kswapd(e, k)?,
            (_, Some(Phase::End)) => self.stall(e, name)?,
            (Some(_), Some(Phase::Onset)) => self.onset(e, name)?,
            // Its end will tell.
            (_, Some(Phase::Begin)) => {}
            // Time that at least one task of the scope was stalled.
            (_, Some(Phase::Summary)) if e.stall_ns > 0 => self.stall(e, name)?,
            _ => self.instant(e, name)?,
        }
        if kind.is_some_and(Kind::is_stall) {
            let stalled = json!({"tasks": e.stalled_now});
            self.counter(e.ts_ns, "stalled tasks", &stalled)?;
        }
        Ok(())
    }

    fn sample(&mut self, s: &Sample) -> io::Result<()> {
        let Some(before) = self.last.replace(*s) else {
            return Ok(());
        };
        let time = us(s.ts_ns.saturating_sub(before.ts_ns)).max(1.0);
        let percent = |now: u64, before: u64| us(now.saturating_sub(before) * 1000) / time * 100.0;
        let psi = json!({
            "some": percent(s.some_us, before.some_us),
            "full": percent(s.full_us, before.full_us),
        });
        self.counter(s.ts_ns, "PSI memory, %", &psi)
    }

    fn trim(&mut self, t: &Trim) -> io::Result<()> {
        // A track for each thread that trims: they do it at the same time.
        let (tid, thread) = match &*t.trigger {
            "background" => (KVPSI + 1, "trims in the background"),
            "by_hand" => (KVPSI + 2, "trims by hand"),
            _ => (KVPSI, "trims"),
        };
        self.track(KVPSI, tid, "kvpsi", thread)?;
        let end_ns = t.returned_ns.max(t.noticed_ns);
        let begin_ns = self.beside((KVPSI, tid), t.noticed_ns, end_ns);
        let (begin, end) = (us(begin_ns), us(end_ns));
        let name = format!("trim {}", t.deepest());
        let args = json!({
            "trigger": t.trigger, "behind": t.kind_name(), "bytes": t.bytes(),
            "wanted": t.wanted, "tokens": t.tokens, "mass_dropped": t.mass_dropped,
            "onset_to_returned_us": us(t.returned_ns.saturating_sub(t.onset_ns)),
        });
        let pid = KVPSI;
        self.put(&json!({
            "ph": "X", "cat": "trim", "name": name, "pid": pid, "tid": tid, "ts": begin,
            "dur": us(end_ns - begin_ns), "args": args,
        }))?;
        self.put(&json!({
            "ph": "i", "cat": "trim", "name": format!("{} returned", t.bytes()), "pid": pid,
            "tid": tid, "ts": end, "s": "p", "args": args,
        }))?;
        let from = self.onsets.iter().rev().find(|o| o.0 == t.onset_ns);
        let Some(&(ts_ns, from_pid, from_tid)) = from else {
            return Ok(());
        };
        let id = self.next;
        self.next += 1;
        self.put(&json!({
            "ph": "s", "cat": "trim", "name": "trim", "id": id, "pid": from_pid,
            "tid": from_tid, "ts": us(ts_ns),
        }))?;
        // It ends in the slice that it points at.
        self.put(&json!({
            "ph": "f", "cat": "trim", "name": "trim", "id": id, "pid": pid, "tid": tid,
            "ts": begin, "bp": "e",
        }))
    }

    fn kv(&mut self, kv: &KvLevel) -> io::Result<()> {
        self.track(KVPSI, 0, "kvpsi", "")?;
        self.put(&json!({
            "ph": "C", "name": "KV memory, bytes", "pid": KVPSI, "ts": us(kv.ts_ns),
            "args": {"resident": kv.resident, "in_use": kv.in_use, "budget": kv.budget},
        }))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn finish(&mut self) -> io::Result<()> {
        let end = if self.entries == 0 { "[\n]\n" } else { "\n]\n" };
        self.out.write_all(end.as_bytes())?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable;

    fn event(kind: Kind, phase: Phase, ts_us: u64, stall_us: u64) -> Event {
        let mut e = Event::zeroed();
        e.kind = kind as u16;
        e.phase = phase as u16;
        e.ts_ns = ts_us * 1000;
        e.stall_ns = stall_us * 1000;
        e.count = 1;
        (e.tgid, e.tid, e.cpu) = (70, 71, 1);
        e.comm[..3].copy_from_slice(b"hog");
        e
    }

    fn trace(f: impl FnOnce(&mut Perfetto<&mut Vec<u8>>)) -> Vec<Value> {
        let mut out = Vec::new();
        let mut p = Perfetto::new(&mut out);
        f(&mut p);
        p.finish().unwrap();
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn a_stall_is_a_slice_on_its_task_and_on_its_cpu() {
        let all = trace(|p| {
            p.event(&event(Kind::MemcgReclaim, Phase::Begin, 100, 0))
                .unwrap();
            p.event(&event(Kind::MemcgReclaim, Phase::End, 150, 50))
                .unwrap();
        });
        let of = |ph: &str| all.iter().find(|e| e["ph"] == ph).unwrap();
        assert_eq!(
            (&of("X")["ts"], &of("X")["dur"]),
            (&json!(100.0), &json!(50.0))
        );
        assert_eq!((&of("X")["pid"], &of("X")["tid"]), (&json!(70), &json!(71)));
        assert_eq!(
            (&of("b")["ts"], &of("e")["ts"]),
            (&json!(100.0), &json!(150.0))
        );
        assert!(of("b")["id2"]["local"].is_string());
        assert_eq!(of("b")["id2"], of("e")["id2"]);
        assert_eq!(of("b")["pid"], json!(CPUS + 1));
        let names = all.iter().filter(|e| e["ph"] == "M").count();
        assert_eq!(names, 4, "process, thread, CPU, memory: {all:?}");
    }

    #[test]
    fn an_arrow_leads_from_the_onset_to_the_trim() {
        let trim = Trim {
            trigger: "onset".into(),
            kind: Kind::MemcgReclaim as u16,
            onset_ns: 100_000,
            noticed_ns: 130_000,
            returned_ns: 300_000,
            by_step: vec![crate::units::Bytes(4096)],
            ..Trim::default()
        };
        let all = trace(|p| {
            p.event(&event(Kind::MemcgReclaim, Phase::Onset, 100, 0))
                .unwrap();
            p.trim(&trim).unwrap();
            // Its begin was not seen.
            p.trim(&Trim::default()).unwrap();
        });
        let of = |ph: &str| all.iter().filter(|e| e["ph"] == ph).collect::<Vec<_>>();
        let (s, f) = (of("s"), of("f"));
        assert_eq!((s.len(), f.len()), (1, 1));
        assert_eq!(s[0]["id"], f[0]["id"]);
        // Both ends lie in a slice of their track.
        for end in [s[0], f[0]] {
            let within = |x: &&Value| {
                let ts = end["ts"].as_f64().unwrap();
                let begin = x["ts"].as_f64().unwrap();
                x["tid"] == end["tid"] && begin <= ts && ts <= begin + x["dur"].as_f64().unwrap()
            };
            assert_eq!(of("X").iter().filter(|x| within(x)).count(), 1, "{end}");
        }
        assert_eq!(of("i")[0]["args"]["bytes"], 4096);
    }

    #[test]
    fn what_is_drawn_side_by_side_does_not_overlap() {
        let all = trace(|p| {
            p.event(&event(Kind::MemcgReclaim, Phase::Onset, 100, 0))
                .unwrap();
            // Both say to have begun before the one before was over.
            for ts in [400, 600] {
                p.event(&event(Kind::MemcgReclaim, Phase::Summary, ts, 300))
                    .unwrap();
            }
            for (trigger, noticed_ns) in [("onset", 0), ("background", 0), ("background", 2)] {
                p.trim(&Trim {
                    trigger: trigger.into(),
                    noticed_ns,
                    returned_ns: noticed_ns + 5,
                    ..Trim::default()
                })
                .unwrap();
            }
        });
        let mut tracks: HashMap<(u64, u64), Vec<(f64, f64)>> = HashMap::new();
        for x in all.iter().filter(|e| e["ph"] == "X") {
            let number = |key: &str| x[key].as_f64().unwrap();
            let track = (x["pid"].as_u64().unwrap(), x["tid"].as_u64().unwrap());
            let slices = tracks.entry(track).or_default();
            let (begin, end) = (number("ts"), number("ts") + number("dur"));
            let before = slices.last().map_or(0.0, |s| s.1);
            assert!(begin >= before, "{track:?}: {begin} before {before}");
            slices.push((begin, end));
        }
        assert_eq!(
            tracks[&(70, 71)],
            [(100.0, 101.0), (101.0, 400.0), (400.0, 600.0)]
        );
        let many: Vec<usize> = tracks.values().map(Vec::len).collect();
        assert_eq!(many.iter().sum::<usize>(), 6);
        assert_eq!(tracks.len(), 3);
    }

    #[test]
    fn psi_is_a_share_of_the_time_between_two_samples() {
        let sample = |ts_ms: u64, some_us| Sample {
            ts_ns: ts_ms * 1_000_000,
            some_us,
            full_us: 0,
        };
        let all = trace(|p| {
            p.sample(&sample(0, 500)).unwrap();
            p.sample(&sample(100, 50_500)).unwrap();
        });
        let counter = all.iter().find(|e| e["ph"] == "C").unwrap();
        assert_eq!(counter["args"]["some"], 50.0);
    }

    #[test]
    fn kswapd_is_a_slice_and_a_victim_an_instant_and_nothing_is_a_trace_too() {
        let all = trace(|p| {
            for (kind, ts) in [
                (Kind::KswapdSleep, 1),
                (Kind::KswapdWake, 5),
                (Kind::KswapdWake, 6),
                (Kind::KswapdSleep, 9),
                (Kind::OomVictim, 10),
            ] {
                p.event(&event(kind, Phase::Mark, ts, 0)).unwrap();
            }
        });
        let count = |ph: &str| all.iter().filter(|e| e["ph"] == ph).count();
        assert_eq!((count("b"), count("e"), count("i")), (1, 1, 1));
        assert!(trace(|_| ()).is_empty());
    }
}
