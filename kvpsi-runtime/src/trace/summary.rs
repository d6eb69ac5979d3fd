//! What happened, in figures: per kind how often, how long and how long at
//! worst, and who waited most.
//!
//! Times are of stalls that are over; one within another stall of the same
//! task counts for its kind, not for the task.

use super::{Output, Sample, printable};
use hdrhistogram::Histogram;
use kvpsi_common::{Event, Kind, Phase};
use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Write},
    time::Duration,
};

/// Processes that are listed.
const TOP: usize = 10;
/// Longer stalls count as one of this length in quantiles and histograms: an
/// hour.
const LONGEST_NS: u64 = 3_600_000_000_000;
/// Width of the longest bar.
const BAR: u64 = 40;

#[derive(Debug)]
struct OfKind {
    /// Stalls and marks, those counted in a summary too.
    count: u64,
    total_ns: u64,
    max_ns: u64,
    /// Durations of single stalls in ns, to two digits.
    durations: Histogram<u64>,
}

impl OfKind {
    /// The longest single one; of a kind that does not say, any.
    fn longest(&self) -> u64 {
        match self.max_ns {
            0 => u64::MAX,
            max => max,
        }
    }
}

#[derive(Clone, Debug, Default)]
struct OfTask {
    comm: String,
    count: u64,
    total_ns: u64,
    max_ns: u64,
}

/// Gathers, and prints when it is finished.
#[derive(Debug)]
pub struct Summary<W> {
    out: W,
    kinds: BTreeMap<Kind, OfKind>,
    tasks: HashMap<u32, OfTask>,
    samples: Option<(Sample, Sample)>,
}

impl<W: Write> Summary<W> {
    /// Nothing seen yet.
    pub fn new(out: W) -> Self {
        Self {
            out,
            kinds: BTreeMap::new(),
            tasks: HashMap::new(),
            samples: None,
        }
    }

    fn table(&mut self) -> io::Result<()> {
        writeln!(
            self.out,
            "{:<17} {:>9} {:>12} {:>10} {:>10} {:>10}",
            "kind", "count", "total ms", "p50 us", "p99 us", "max us"
        )?;
        for (kind, k) in &self.kinds {
            let quantile = |q| match k.durations.is_empty() {
                true => "-".to_owned(),
                // The upper edge of a bucket may lie above the longest.
                false => us(k.durations.value_at_quantile(q).min(k.longest())),
            };
            let (total, max) = match kind.is_stall() {
                true => (ms(k.total_ns), us(k.max_ns)),
                false => ("-".into(), "-".into()),
            };
            writeln!(
                self.out,
                "{:<17} {:>9} {total:>12} {:>10} {:>10} {max:>10}",
                kind.name(),
                k.count,
                quantile(0.5),
                quantile(0.99),
            )?;
        }
        Ok(())
    }

    fn histograms(&mut self) -> io::Result<()> {
        for (kind, k) in self.kinds.iter().filter(|(_, k)| !k.durations.is_empty()) {
            writeln!(self.out, "\n{}, us", kind.name())?;
            // By powers of two, the empty ones between too.
            let mut buckets: BTreeMap<u32, u64> = BTreeMap::new();
            for v in k.durations.iter_recorded() {
                let us = v.value_iterated_to() / 1000;
                *buckets.entry(u64::BITS - us.leading_zeros()).or_default() += v.count_at_value();
            }
            let most = buckets.values().copied().max().unwrap_or(1).max(1);
            let ends = buckets.keys().next().zip(buckets.keys().last());
            let (first, last) = ends.map_or((0, 0), |(a, b)| (*a, *b));
            for bucket in first..=last {
                let n = buckets.get(&bucket).copied().unwrap_or(0);
                let low = if bucket == 0 { 0 } else { 1u64 << (bucket - 1) };
                let bar = usize::try_from((n * BAR).div_ceil(most)).unwrap_or(0);
                let bar = "#".repeat(bar);
                writeln!(self.out, "{low:>9} .. {:<9} {n:>9} {bar}", 1u64 << bucket)?;
            }
        }
        Ok(())
    }

    fn tasks(&mut self) -> io::Result<()> {
        let mut tasks: Vec<_> = self.tasks.iter().collect();
        tasks.sort_by_key(|(pid, t)| (u64::MAX - t.total_ns, **pid));
        if tasks.is_empty() {
            return Ok(());
        }
        writeln!(
            self.out,
            "\n{:<16} {:>8} {:>9} {:>12} {:>10}",
            "process", "pid", "stalls", "total ms", "max us"
        )?;
        for (pid, t) in tasks.iter().take(TOP) {
            writeln!(
                self.out,
                "{:<16} {pid:>8} {:>9} {:>12} {:>10}",
                printable(&t.comm),
                t.count,
                ms(t.total_ns),
                us(t.max_ns)
            )?;
        }
        if tasks.len() > TOP {
            writeln!(self.out, "and {} more", tasks.len() - TOP)?;
        }
        Ok(())
    }
}

fn ms(ns: u64) -> String {
    format!("{:.3}", Duration::from_nanos(ns).as_secs_f64() * 1e3)
}

fn us(ns: u64) -> String {
    format!("{:.1}", Duration::from_nanos(ns).as_secs_f64() * 1e6)
}

impl<W: Write> Output for Summary<W> {
    fn event(&mut self, e: &Event) -> io::Result<()> {
        let phase = e.phase();
        // Its end counts.
        let (Some(kind), false) = (e.settled().or(e.kind()), phase == Some(Phase::Begin)) else {
            return Ok(());
        };
        let k = self.kinds.entry(kind).or_insert_with(|| OfKind {
            count: 0,
            total_ns: 0,
            max_ns: 0,
            durations: Histogram::new_with_bounds(1, LONGEST_NS, 2).expect("bounds are in order"),
        });
        k.count += if phase == Some(Phase::Summary) {
            e.count
        } else {
            1
        };
        k.total_ns += e.stall_ns;
        k.max_ns = k.max_ns.max(e.stall_ns);
        if phase == Some(Phase::End) {
            k.durations.saturating_record(e.stall_ns);
            if e.count > 0 {
                let t = self.tasks.entry(e.tgid).or_default();
                e.comm_str().clone_into(&mut t.comm);
                t.count += 1;
                t.total_ns += e.stall_ns;
                t.max_ns = t.max_ns.max(e.stall_ns);
            }
        }
        Ok(())
    }

    fn sample(&mut self, s: &Sample) -> io::Result<()> {
        self.samples = Some((self.samples.map_or(*s, |(first, _)| first), *s));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.kinds.is_empty() {
            writeln!(self.out, "no stall, no mark")?;
        } else {
            self.table()?;
            self.histograms()?;
            self.tasks()?;
        }
        if let Some((first, last)) = self.samples {
            writeln!(
                self.out,
                "\nPSI meanwhile: some {} ms, full {} ms, in {} ms",
                ms((last.some_us - first.some_us) * 1000),
                ms((last.full_us - first.full_us) * 1000),
                ms(last.ts_ns - first.ts_ns),
            )?;
        }
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable;

    fn printed(events: &[Event]) -> String {
        let mut out = Vec::new();
        let mut s = Summary::new(&mut out);
        for e in events {
            s.event(e).unwrap();
        }
        s.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    fn end(tgid: u32, stall_us: u64, count: u64) -> Event {
        let mut e = Event::zeroed();
        e.kind = Kind::MemcgReclaim as u16;
        e.phase = Phase::End as u16;
        (e.tgid, e.count, e.stall_ns) = (tgid, count, stall_us * 1000);
        e.comm[..3].copy_from_slice(b"hog");
        e
    }

    #[test]
    fn counts_times_histogram_and_who_waited() {
        let text = printed(&[end(7, 3, 1), end(7, 3, 1), end(9, 100, 1), end(9, 90, 0)]);
        let line = |start: &str| {
            let line = text.lines().find(|l| l.starts_with(start)).unwrap();
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(line("memcg_reclaim  ")[1..3], ["4", "0.196"]);
        assert_eq!(line("memcg_reclaim  ")[5], "100.0");
        assert_eq!(
            line("        2 .. 4"),
            ["2", "..", "4", "2", "#".repeat(40).as_str()]
        );
        assert_eq!(line("       64 .. 128")[3], "2");
        // Empty ones between are shown.
        assert_eq!(line("        8 .. 16")[3], "0");
        let who: Vec<_> = text.lines().filter(|l| l.starts_with("hog")).collect();
        assert!(who[0].contains(" 9 ") && who[1].contains(" 7 "), "{text}");
    }

    #[test]
    fn nothing_is_said_to_be_nothing() {
        assert_eq!(printed(&[]), "no stall, no mark\n");
    }
}
