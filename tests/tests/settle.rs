//! Two models in one limited cgroup: they settle, and do not take memory from
//! each other in turns.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi::units::Bytes;
use kvpsi_tests::{figure, kvpsi_binary, model, skip, storm::limited};
use rustix::process::geteuid;
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

/// A line of a worker, and when it was read.
struct Line {
    who: usize,
    at: Duration,
    line: Value,
}

/// The children, ended with the test.
struct Workers(Vec<Child>);

impl Drop for Workers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// KV bytes of each, second after second.
fn resident(all: &[Line], who: usize) -> Vec<(f64, f64)> {
    let of = |h: &Line| {
        let kv = h.line.pointer("/kv/resident")?.as_f64()?;
        (h.who == who).then(|| (h.at.as_secs_f64(), kv / f64::from(1 << 20)))
    };
    all.iter().filter_map(of).collect()
}

fn listen(rx: &Receiver<Line>, all: &mut Vec<Line>, until: &mut dyn FnMut(&[Line]) -> bool) {
    let limit = Instant::now() + Duration::from_secs(120);
    while !until(all) {
        assert!(Instant::now() < limit, "nothing for two minutes");
        match rx.recv_timeout(Duration::from_secs(60)) {
            Ok(line) => all.push(line),
            Err(e) => panic!("a worker went silent or ended: {e}"),
        }
    }
}

#[test]
fn two_models_under_one_limit_settle() {
    let name = "two_models_under_one_limit_settle";
    let Some(model) = model(name) else { return };
    if !geteuid().is_root() {
        return skip(name, "needs root for a memory cgroup");
    }
    let Some(cgroup) = limited("settle", 4 << 30) else {
        return;
    };
    // Out here: page cache is charged to who reads it first.
    std::fs::read(&model).unwrap();
    let (tx, rx) = channel();
    let begun = Instant::now();
    let mut workers = Workers(vec![]);
    for who in 0..2 {
        let mut c = Command::new(kvpsi_binary());
        c.args(["demo", "--role", "worker", "--quiet", "-n", "5000", "-m"]);
        c.arg(&model).args(["--seed", &who.to_string()]);
        for procs in cgroup.procs() {
            c.arg("--join").arg(procs);
        }
        c.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = c.stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        workers.0.push(child);
        let tx = tx.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Ok(line) = serde_json::from_str(&line) else {
                    continue;
                };
                let at = begun.elapsed();
                if tx.send(Line { who, at, line }).is_err() {
                    return;
                }
            }
        });
    }
    drop(tx);
    let mut all = vec![];
    let both_at = |all: &[Line], mib: f64| {
        let last = |who| resident(all, who).last().map_or(0.0, |s| s.1);
        last(0) > mib && last(1) > mib
    };
    listen(&rx, &mut all, &mut |all| both_at(all, 24.0));
    // A little more than they have, and much less than they would grow to.
    let usage = cgroup.memory().usage().unwrap();
    let limit = Bytes(usage.0 + (6 << 20));
    cgroup.set_limit(limit).unwrap();
    let pressed = begun.elapsed();
    let until = pressed + Duration::from_secs(24);
    listen(&rx, &mut all, &mut |_| begun.elapsed() > until);
    let kills = cgroup.memory().oom_kills();
    drop(workers);

    let settled = pressed.as_secs_f64() + 10.0;
    let trims = |from: f64| {
        let late = |h: &&Line| h.line.get("trim").is_some() && h.at.as_secs_f64() > from;
        all.iter().filter(late).count()
    };
    // What each has at the end, and the furthest it fell from where it had
    // been: growth is no oscillation, growth and falls in turns are.
    let late: Vec<(f64, f64)> = (0..2)
        .map(|who| {
            let (mut most, mut fell, mut last) = (0f64, 0f64, 0.0);
            for (_, mib) in resident(&all, who).into_iter().filter(|s| s.0 > settled) {
                most = most.max(mib);
                fell = fell.max(most - mib);
                last = mib;
            }
            (last, fell)
        })
        .collect();
    plot(&all, pressed.as_secs_f64());
    figure(&json!({
        "what": "settle", "limit": limit.0, "trims": trims(0.0), "trims_settled": trims(settled),
        "kv_mib": [late[0].0, late[1].0], "kv_mib_fell": [late[0].1, late[1].1],
        "oom_kills": kills,
    }));
    assert_eq!(kills, 0);
    assert!(trims(0.0) > 0, "no process returned memory");
    for (last, fell) in &late {
        assert!(*last > 1.0 && *fell < 0.35 * last, "{late:?}");
    }
    let (a, b) = (late[0].0, late[1].0);
    assert!(a.min(b) > 0.4 * a.max(b), "{late:?}");
}

/// Where `KVPSI_PLOTS` names a folder: KV of both over time, as SVG.
fn plot(all: &[Line], pressed: f64) {
    use plotters::prelude::*;
    let Some(folder) = std::env::var_os("KVPSI_PLOTS") else {
        return;
    };
    let file = std::path::Path::new(&folder).join("settle.svg");
    let area = SVGBackend::new(&file, (760, 360)).into_drawing_area();
    area.fill(&WHITE).unwrap();
    let curves = [resident(all, 0), resident(all, 1)];
    let end = curves.iter().flatten().map(|s| s.0).fold(0.0, f64::max);
    let most = curves.iter().flatten().map(|s| s.1).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(&area)
        .margin(10)
        .caption("Two models, one limit: resident KV", ("sans-serif", 18))
        .x_label_area_size(36)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..end, 0.0..most * 1.1)
        .unwrap();
    let mut mesh = chart.configure_mesh();
    mesh.x_desc("seconds").y_desc("MiB").draw().unwrap();
    for (curve, colour) in curves.into_iter().zip([BLUE, RED]) {
        chart.draw_series(LineSeries::new(curve, colour)).unwrap();
    }
    let wall = [(pressed, 0.0), (pressed, most * 1.1)];
    chart.draw_series(LineSeries::new(wall, BLACK)).unwrap();
    area.present().unwrap();
}
