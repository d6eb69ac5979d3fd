//! The process outside of the cgroup: makes it, fills it, watches it, and
//! always removes it.

use super::{
    Args, Press, SLACK_UNDER_LIMIT,
    messages::{Done, FromWorker, Kv, Trim},
    report::Report,
};
use crate::{
    cli::{
        output,
        signals::{self, Ending},
    },
    control::cgroup::OwnedCgroup,
    model::{default_model, gguf::files},
    units::Bytes,
};
use anyhow::{Context, Result, bail};
use std::{
    io::{IsTerminal, Write},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{Instant, sleep_until},
};

const PREFIX: &str = "kvpsi-demo-";

/// Above any need: the cgroup counts as limited before its limit is known.
const LIMIT_AT_FIRST: Bytes = Bytes(1 << 40);

/// Below this much to trim, growing memory could not be served.
const WORTH_GROWING: Bytes = Bytes::mib(8);

/// How long a burst of reading lasts, and grown memory is held.
const BURST: Duration = Duration::from_millis(350);

/// A worker that was loaded must report within this time.
const SILENCE: Duration = Duration::from_secs(120);

pub(super) fn run(args: &Args) -> Result<()> {
    signals::one_thread()?.block_on(supervise(args))
}

async fn supervise(args: &Args) -> Result<()> {
    for (flag, path) in [("--report", &args.report), ("--record", &args.record)] {
        if let Some(path) = path {
            output::writable(path).context(flag)?;
        }
    }
    let mut ending = Ending::listen()?;
    OwnedCgroup::sweep(PREFIX);
    let cgroup = OwnedCgroup::create(&format!("{PREFIX}{}", std::process::id()))
        .context("the demo needs a memory cgroup of its own")?;
    cgroup
        .set_limit(LIMIT_AT_FIRST)
        .or_else(|_| cgroup.set_limit(Bytes(1 << 34)))?;
    warm(args)?;
    let mut demo = Demo::start(args, cgroup)?;
    let number = tokio::select! {
        done = demo.play() => { done?; 0 }
        number = ending.next() => number,
    };
    demo.end(number).await
}

/// Reads the model's file out here. Page cache is charged to the cgroup that
/// reads it first: left to the worker, a cold cache would fill the room that
/// the hog is to take, and setting the limit alone would be a storm.
fn warm(args: &Args) -> Result<()> {
    // No model is the worker's error to tell.
    let Ok(path) = default_model::named(args.model.as_deref()) else {
        return Ok(());
    };
    for part in files::parts(&path).unwrap_or_default() {
        if let Ok(mut file) = std::fs::File::open(part) {
            std::io::copy(&mut file, &mut std::io::sink())?;
        }
    }
    Ok(())
}

/// Both processes, the cgroup, and what is known so far.
struct Demo<'a> {
    args: &'a Args,
    worker: Child,
    lines: Lines<BufReader<ChildStdout>>,
    hog: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    /// The hog is at work.
    busy: bool,
    kv: Kv,
    token_bytes: Bytes,
    report: Report,
    done: Option<Done>,
    /// Slow steps not shown yet: how many, bytes, tokens.
    packed: (u32, Bytes, u64),
    /// The cursor is inside a line of the model's text.
    in_text: bool,
    /// Last: dropped after the processes are gone.
    cgroup: OwnedCgroup,
}

impl<'a> Demo<'a> {
    fn start(args: &'a Args, cgroup: OwnedCgroup) -> Result<Self> {
        let (mut worker, mut hog) = (
            child(args, &cgroup, "worker")?,
            child(args, &cgroup, "hog")?,
        );
        let piped = "both pipes were asked for";
        let lines = BufReader::new(worker.stdout.take().context(piped)?).lines();
        let answers = BufReader::new(hog.stdout.take().context(piped)?).lines();
        let orders = hog.stdin.take().context(piped)?;
        let report = Report {
            signal: "none".into(),
            trimming: !args.no_trim,
            ..Report::default()
        };
        Ok(Self {
            args,
            worker,
            lines,
            hog,
            orders,
            answers,
            busy: false,
            kv: Kv::default(),
            token_bytes: Bytes::ZERO,
            report,
            done: None,
            packed: (0, Bytes::ZERO, 0),
            in_text: false,
            cgroup,
        })
    }

    /// Until the worker is done, or dead.
    async fn play(&mut self) -> Result<()> {
        let mut next_burst: Option<Instant> = None;
        loop {
            let burst = next_burst.filter(|_| !self.busy);
            tokio::select! {
                line = tokio::time::timeout(SILENCE, self.lines.next_line()) => {
                    let line = line.context("the model's process says nothing any more")??;
                    let Some(line) = line else { return Ok(()) };
                    let message = serde_json::from_str(&line)
                        .with_context(|| format!("the model's process said `{line}`"))?;
                    let first = matches!(message, FromWorker::Text(_)) && self.report.limit == Bytes::ZERO;
                    self.handle(message);
                    if first {
                        self.close_in()?;
                        next_burst = Some(Instant::now() + self.pause());
                    }
                }
                answer = self.answers.next_line(), if self.busy => {
                    self.busy = false;
                    next_burst = answer?.map(|_| Instant::now() + self.pause());
                }
                () = sleep_until(burst.unwrap_or_else(Instant::now)), if burst.is_some() => {
                    next_burst = None;
                    self.press().await?;
                }
            }
        }
    }

    fn pause(&self) -> Duration {
        Duration::from_millis(self.args.pause)
    }

    /// Sets the limit to what the run needs without pressure.
    fn close_in(&mut self) -> Result<()> {
        let anon = self
            .cgroup
            .memory()
            .anonymous()
            .context("the cgroup has no memory.stat")?;
        // What the text still to come will take.
        let growth = self.token_bytes.0 * u64::from(self.args.tokens);
        let limit = (anon.0 + growth + SLACK_UNDER_LIMIT.0).next_multiple_of(1 << 20);
        self.report.limit = Bytes(limit);
        self.cgroup.set_limit(Bytes(limit))?;
        self.note(&format!("the cgroup's limit is now {}", Bytes(limit)));
        Ok(())
    }

    /// One burst: growth where a trim can make room for it, else reading. In turn:
    /// growth after growth finds no page cache left, and the kernel kills at the
    /// first stall, in about one of twelve runs, before a trim can help.
    async fn press(&mut self) -> Result<()> {
        let anon = self.cgroup.memory().anonymous().unwrap_or_default();
        let room = self.report.limit.saturating_sub(anon);
        let trimmable = self.kv.resident.saturating_sub(self.kv.floor);
        let turn = self.args.press == Press::Both && self.report.bursts.1 <= self.report.bursts.0;
        let (what, bytes) = if turn && trimmable >= WORTH_GROWING {
            self.report.bursts.1 += 1;
            ("anon", room.0 + trimmable.0 / 2)
        } else {
            self.report.bursts.0 += 1;
            ("file", room.0 + (48 << 20))
        };
        let words = if what == "anon" {
            "grows to"
        } else {
            "reads a mapped file of"
        };
        self.note(&format!(
            "the hog {words} {} ({} are left)",
            Bytes(bytes),
            room
        ));
        self.busy = true;
        let order = format!("{what} {bytes} {} {}\n", BURST.as_millis(), self.args.rate);
        // A hog that was killed shows as the end of its answers.
        let _ = self.orders.write_all(order.as_bytes()).await;
        Ok(())
    }

    fn handle(&mut self, message: FromWorker) {
        match message {
            FromWorker::Ready {
                signal,
                notes,
                token_bytes,
                prompt_tokens,
            } => {
                for n in notes {
                    self.note(&n);
                }
                self.note(&format!(
                    "signal {signal}; reading a prompt of {prompt_tokens} tokens, {token_bytes} each in the KV cache"
                ));
                self.report.signal = signal;
                self.token_bytes = token_bytes;
            }
            FromWorker::Text(text) => {
                if !self.args.quiet {
                    print!("{text}");
                    let _ = std::io::stdout().flush();
                    self.in_text = !text.ends_with('\n') && (self.in_text || !text.is_empty());
                }
                self.report.tokens += 1;
            }
            FromWorker::Kv(kv) => self.kv = kv,
            FromWorker::Trim(t) => {
                self.kv.resident = self.kv.resident.saturating_sub(t.bytes);
                self.show(&t);
                self.report.trims.push(t);
            }
            FromWorker::Done(done) => {
                if let Some(e) = &done.source_error {
                    self.note(&format!("the signal broke: {e}"));
                }
                self.done = Some(done);
            }
        }
    }

    /// One line for a trim; many a block is packed one by one, and they have one
    /// together.
    fn show(&mut self, t: &Trim) {
        if t.in_background() {
            self.packed.0 += 1;
            self.packed.1 = Bytes(self.packed.1.0 + t.bytes.0);
            self.packed.2 += t.tokens_dropped;
            return;
        }
        self.show_packed();
        let line = format!(
            "trim {}: {} {} -> {} returned in {:.0} us ({:.0} us after the stall began), RSS {} -> {}, {} -> {} tokens kept, {:.1} % of attention gone, step {}",
            self.report.trims.len() + 1,
            t.kind,
            t.trigger,
            t.bytes,
            t.onset_to_returned_us - t.onset_to_start_us,
            t.onset_to_start_us,
            t.rss_before,
            t.rss_after,
            t.kv_tokens_before,
            t.kv_tokens_after,
            f64::from(t.mass_dropped) * 100.0,
            t.step,
        );
        self.note(&line);
    }

    /// What was packed and thinned since the last line.
    fn show_packed(&mut self) {
        let (steps, bytes, tokens) = std::mem::take(&mut self.packed);
        if steps > 0 {
            self.note(&format!(
                "in the background: {steps} steps, {bytes} returned, {tokens} tokens dropped"
            ));
        }
    }

    /// A line of the demo's own, apart from the model's text.
    fn note(&mut self, line: &str) {
        if std::mem::take(&mut self.in_text) {
            println!();
        }
        if std::io::stdout().is_terminal() {
            println!("\x1b[36m[kvpsi] {line}\x1b[0m");
        } else {
            println!("[kvpsi] {line}");
        }
    }

    /// Ends both processes, prints and writes the figures.
    async fn end(mut self, signal: i32) -> Result<()> {
        self.show_packed();
        let status = match (&self.done, signal) {
            (Some(_), _) => Some(self.worker.wait().await?),
            (None, 0) => Some(self.worker.wait().await?),
            _ => {
                self.worker.kill().await.ok();
                None
            }
        };
        self.hog.kill().await.ok();
        self.report.oom_kills = self.cgroup.memory().oom_kills();
        self.report.kv = self.kv;
        let done = self.done.take();
        let finished = done.is_some();
        if let Some(done) = done {
            self.report.finish(done);
        }
        self.note("the run in figures:");
        print!("{}", self.report.table());
        if let Some(path) = &self.args.report {
            let json = serde_json::to_vec_pretty(&self.report)?;
            std::fs::write(path, json)
                .with_context(|| format!("{}: cannot write", path.display()))?;
        }
        let oom = self.report.oom_kills;
        let (no_trim, mut cgroup) = (self.args.no_trim, Some(self.cgroup));
        drop(cgroup.take());
        if signal != 0 {
            std::process::exit(128 + signal);
        }
        if oom > 0 && no_trim {
            println!("  the OOM killer ended it: that is what happens without a trim");
            return Ok(());
        }
        if oom > 0 {
            bail!("the OOM killer killed {oom} process(es) of the demo");
        }
        match status {
            Some(s) if finished && s.success() => Ok(()),
            Some(s) => bail!("the model's process ended early ({s}); its message is above"),
            None => Ok(()),
        }
    }
}

fn child(args: &Args, cgroup: &OwnedCgroup, role: &str) -> Result<Child> {
    let me = std::env::current_exe().context("cannot find my own binary")?;
    let mut c = Command::new(me);
    c.args(["demo", "--role", role]).kill_on_drop(true);
    for p in cgroup.procs() {
        c.arg("--join").arg(p);
    }
    if role == "worker" {
        use clap::ValueEnum;
        if let Some(m) = &args.model {
            c.arg("--model").arg(m);
        }
        if let Some(r) = &args.record {
            c.arg("--record").arg(r);
        }
        let name = args
            .signal
            .to_possible_value()
            .context("a signal without a name")?;
        c.args(["--signal", name.get_name()]);
        c.args([
            "--seed",
            &args.seed.to_string(),
            "-n",
            &args.tokens.to_string(),
        ]);
        if args.no_trim {
            c.arg("--no-trim");
        }
    }
    c.stdin(if role == "hog" {
        Stdio::piped()
    } else {
        Stdio::null()
    })
    .stdout(Stdio::piped());
    c.spawn()
        .with_context(|| format!("cannot start the {role}"))
}
