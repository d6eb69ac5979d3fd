//! The pool against a model of it: any order of allocate, append, fork,
//! adopt, trim, pack, thin, preempt, recompute and finish, on one thread and on
//! several.

use super::{
    tests::{SHAPE, fill, key, pool},
    *,
};
use crate::units::Bytes;
use half::f16;
use proptest::prelude::*;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

const N: usize = SHAPE.block_tokens;

/// Every block is in one place, every page is counted once.
pub(super) fn exact(p: &KvPool) {
    let a = p.account();
    assert_eq!(a.resident.0 + a.returned.0, a.reserved.0);
    assert_eq!(a.in_use.0 + a.cached.0 + a.slack.0, a.resident.0);
    assert_eq!((a.retired.0, a.writes_lost), (0, 0));
    let mut refs = HashMap::new();
    for table in p.tables.iter() {
        for b in (0..table.entries()).filter_map(|i| table.entry(i)) {
            *refs.entry(b).or_insert(0u32) += 1;
        }
    }
    let blocks = p.alloc.blocks();
    let (mut in_use, mut cached, mut free) = (0, 0, 0);
    for i in 0..blocks.count() {
        let id = blocks.id_of(i);
        assert_eq!(blocks.refs(i).unwrap_or(0), refs.remove(&id).unwrap_or(0));
        match blocks.refs(i) {
            None => free += 1,
            Some(0) => cached += blocks.held(id),
            Some(_) => in_use += blocks.held(id),
        }
        if blocks.refs(i).is_some() {
            assert_eq!(blocks.held(id), p.alloc.pages(blocks.kind(id)));
        }
    }
    assert!(
        refs.is_empty(),
        "entries of blocks that were reused: {refs:?}"
    );
    assert_eq!(p.bytes(in_use), a.in_use);
    assert_eq!(p.bytes(cached), a.cached);
    assert_eq!(p.alloc.free_blocks(), free);
}

/// Reads all rows: positions of whole blocks are those written, gathered ones
/// are among them and in order, heads apart.
fn read(p: &KvPool, tag: usize, seq: SeqId) -> usize {
    let mut live = 0;
    for layer in 0..SHAPE.layers {
        let (guard, mut views) = (p.layer(), vec![]);
        guard.blocks(seq, layer, &mut views);
        live = views.iter().map(|b| b.tokens).sum();
        for b in &views {
            let table = p.tables.get(seq).unwrap();
            let block = table.entry(b.index as usize).unwrap();
            let gathered = p.alloc.blocks().rows(block).is_some();
            for h in 0..SHAPE.kv_heads {
                for t in 0..b.tokens {
                    let plane = SHAPE.plane();
                    let mut row = [0f32; SHAPE.head_dim];
                    let at = plane.at(h, t);
                    // SAFETY: a row of the block, which the guard keeps.
                    unsafe { encoding::rows::decode_row(b.kind, b.k, plane, at, &mut row) };
                    if gathered {
                        assert!(row[0] != 0.0);
                    } else {
                        let want = key(tag, b.first_pos + t, layer);
                        let near = (row[0] - want).abs() <= want * 0.02;
                        assert!(near, "pos {}: {} for {want}", b.first_pos + t, row[0]);
                    }
                }
            }
        }
    }
    live
}

#[derive(Clone, Debug)]
enum Op {
    Open,
    Append(usize, usize),
    Draft(usize, usize, usize, usize),
    Fork(usize),
    Adopt(usize),
    Publish(usize),
    Trim(u64, bool),
    Pack,
    Thin(u64, bool),
    Preempt,
    Recompute(usize),
    Budget(u64),
    Close(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let seq = 0usize..4;
    let op = prop_oneof![
        2 => Just(Op::Open),
        6 => (seq.clone(), 1usize..120).prop_map(|(s, n)| Op::Append(s, n)),
        4 => (seq.clone(), 1usize..20, 0usize..40, 0usize..40)
            .prop_map(|(s, n, drafts, kept)| Op::Draft(s, n, drafts, kept)),
        1 => seq.clone().prop_map(Op::Fork),
        1 => seq.clone().prop_map(Op::Adopt),
        2 => seq.clone().prop_map(Op::Publish),
        2 => (0u64..200_000, any::<bool>()).prop_map(|(b, all)| Op::Trim(b, all)),
        3 => Just(Op::Pack),
        2 => (0u64..60_000, any::<bool>()).prop_map(|(b, few)| Op::Thin(b, few)),
        1 => Just(Op::Preempt),
        1 => seq.clone().prop_map(Op::Recompute),
        1 => (0u64..400_000).prop_map(Op::Budget),
        2 => seq.prop_map(Op::Close),
    ];
    prop::collection::vec(op, 1..80)
}

/// A sequence as the model has it. Sequences of one tag have the same tokens.
#[derive(Clone, Copy)]
struct Known {
    tag: usize,
    seq: SeqId,
}

fn tokens(tag: usize, len: usize) -> Vec<u32> {
    let first = u32::try_from(tag * 1000).unwrap();
    (first..).take(len).collect()
}

struct Model {
    p: Arc<KvPool>,
    seqs: [Option<Known>; 4],
    tags: usize,
    policies: Vec<Box<dyn evict::Policy>>,
    memory: ThinMemory,
}

impl Model {
    fn new() -> Self {
        Self {
            p: pool(640, 4),
            seqs: [None; 4],
            tags: 0,
            policies: vec![Box::new(evict::Window), Box::new(evict::KeyDiff)],
            memory: ThinMemory::default(),
        }
    }

    fn place(&self) -> Option<usize> {
        self.seqs.iter().position(Option::is_none)
    }

    fn hashes(&self, tag: usize, len: usize) -> Vec<BlockHash> {
        let mut hashes = vec![];
        self.p.hash_blocks(&tokens(tag, len), &mut hashes);
        hashes
    }

    fn append(&mut self, s: usize, n: usize) {
        let Some(Known { tag, seq }) = self.seqs[s] else {
            return;
        };
        let before = self.p.account();
        match self.p.append(seq, n) {
            Ok(r) => {
                assert_eq!(r.len(), n);
                fill(&self.p, tag, seq, r);
            }
            Err(KvError::Context { .. }) => assert_eq!(before, self.p.account()),
            Err(KvError::Preempted) => assert!(self.p.preempted(seq)),
            Err(e) => assert!(matches!(e, KvError::Exhausted(_)), "{e}"),
        }
    }

    /// Drafts are written like all rows, and those that are not kept are as if
    /// they had never been appended: neither there nor lost.
    fn draft(&mut self, s: usize, n: usize, drafts: usize, kept: usize) {
        let Some(Known { tag, seq }) = self.seqs[s] else {
            return;
        };
        let Ok(r) = self.p.append_drafts(seq, n, drafts) else {
            return;
        };
        assert_eq!(r.len(), n + drafts);
        let (live, lost) = (self.p.live_tokens(seq), self.p.lost_tokens(seq));
        fill(&self.p, tag, seq, r.clone());
        let len = r.start + n + kept.min(drafts);
        self.p.take_back(seq, len);
        assert_eq!(self.p.len(seq), len);
        assert_eq!(self.p.live_tokens(seq), live - (r.end - len));
        assert_eq!(self.p.lost_tokens(seq), lost);
        // What is written stays.
        self.p.written(seq);
        self.p.take_back(seq, r.start);
        assert_eq!(self.p.len(seq), len);
    }

    /// What recomputing does: a fork up to the loss, the rest anew, the old one
    /// goes.
    fn recompute(&mut self, s: usize) {
        let Some(old) = self.seqs[s] else { return };
        let Ok(seq) = self.p.open() else { return };
        let len = self.p.len(old.seq);
        let from = self.p.fork(old.seq, seq, len, true);
        if let Ok(r) = self.p.append(seq, len - from) {
            fill(&self.p, old.tag, seq, r);
            assert_eq!(self.p.len(seq), len);
            self.p.close(old.seq);
            self.seqs[s] = Some(Known { seq, ..old });
        } else {
            self.p.close(seq);
        }
    }

    fn trim(&mut self, want: u64, all: bool) {
        let p = &self.p;
        let before = p.account();
        let steps = if all { Steps::WINDOW } else { Steps::SLACK };
        let t = p.trim(Bytes(want), steps);
        let after = p.account();
        assert_eq!(before.resident.0 - after.resident.0, t.bytes.0);
        assert_eq!(t.kv_tokens_before - t.kv_tokens_after, t.tokens);
        assert_eq!(t.by_step.iter().map(|b| b.0).sum::<u64>(), t.bytes.0);
        let could = if all {
            before.resident.0 - before.floor.0
        } else {
            before.slack.0
        };
        let enough = !cfg!(feature = "trim") || t.bytes.0 >= want.min(could);
        assert!(enough, "{t:?} of {could}");
    }

    fn thin(&mut self, want: u64, first: bool) {
        let before = self.p.account();
        let policy = &self.policies[usize::from(first)];
        let order = ThinOrder {
            group: if first { 4 } else { 16 },
            window: 0,
        };
        let done = self
            .p
            .thin_one(&**policy, order, Bytes(want), &mut self.memory);
        let after = self.p.account();
        let tokens = done.map_or(0, |d| d.tokens);
        assert_eq!(before.live_tokens - after.live_tokens, tokens);
        if let Some(d) = done {
            assert!((0.0..=1.0).contains(&d.mass_dropped), "{d:?}");
        }
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Open => {
                if let Some(s) = self.place() {
                    let (tag, seq) = (self.tags % 3, self.p.open().unwrap());
                    self.tags += 1;
                    self.seqs[s] = Some(Known { tag, seq });
                }
            }
            Op::Append(s, n) => self.append(s, n),
            Op::Draft(s, n, drafts, kept) => self.draft(s, n, drafts, kept),
            Op::Fork(s) => {
                if let (Some(to), Some(from)) = (self.place(), self.seqs[s]) {
                    let seq = self.p.open().unwrap();
                    let got = self.p.fork(from.seq, seq, usize::MAX, false);
                    assert!(got <= self.p.len(from.seq) && got == self.p.live_tokens(seq));
                    self.seqs[to] = Some(Known { seq, ..from });
                }
            }
            Op::Adopt(tag) => {
                if let Some(s) = self.place() {
                    let seq = self.p.open().unwrap();
                    let tag = tag % 3;
                    let got = self.p.adopt(seq, &self.hashes(tag, 640), false);
                    assert_eq!(got, self.p.live_tokens(seq));
                    self.seqs[s] = Some(Known { tag, seq });
                }
            }
            Op::Publish(s) => {
                if let Some(k) = self.seqs[s] {
                    self.p
                        .publish(k.seq, &self.hashes(k.tag, self.p.len(k.seq)));
                }
            }
            Op::Trim(want, all) => self.trim(want, all),
            Op::Pack => {
                let before = self.p.account();
                if let Some(done) = self.p.pack_one(KvType::Q8_0) {
                    let after = self.p.account();
                    // Written into a slack block it gives back more than that.
                    assert_eq!(before.in_use.0 - after.in_use.0, done.bytes.0);
                    assert!(before.resident.0 - after.resident.0 >= done.bytes.0);
                }
            }
            Op::Thin(want, first) => self.thin(want, first),
            Op::Preempt => {
                let t = self
                    .p
                    .trim(Bytes(u64::MAX), Steps::NONE.with(Step::Preempt));
                let left = |k: &&Known| !self.p.preempted(k.seq);
                let running = self.seqs.iter().flatten().filter(left).count();
                assert!(t.preempted == 0 || running >= 1);
            }
            Op::Recompute(s) => self.recompute(s),
            Op::Budget(b) => self.p.set_budget(Bytes(b)),
            Op::Close(s) => {
                if let Some(k) = self.seqs[s].take() {
                    self.p.close(k.seq);
                    self.p.close(k.seq);
                }
            }
        }
    }

    fn check(&self) {
        exact(&self.p);
        let live = |k: &Known| {
            let live = read(&self.p, k.tag, k.seq);
            assert_eq!(live, self.p.live_tokens(k.seq));
            live
        };
        let all: usize = self.seqs.iter().flatten().map(live).sum();
        assert_eq!(self.p.account().live_tokens, all as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn no_block_is_lost_or_owned_twice_and_live_keys_are_the_ones_written(ops in ops()) {
        let mut model = Model::new();
        for op in &ops {
            model.run(op);
            model.check();
        }
        for known in model.seqs.into_iter().flatten() {
            model.p.close(known.seq);
        }
        model.p.trim(Bytes(u64::MAX), Steps::FREE);
        exact(&model.p);
        if cfg!(feature = "trim") {
            prop_assert_eq!(model.p.account().resident, Bytes(0));
        }
    }
}

#[test]
fn trims_beside_requantizing_evicting_sharing_and_recomputing_keep_every_page_counted() {
    let p = pool(1600, 8);
    let stop = AtomicBool::new(false);
    let end = Instant::now() + Duration::from_secs(3);
    let (trims, packs, thins) = std::thread::scope(|s| {
        let trimmer = s.spawn(|| {
            let mut n = 0;
            while !stop.load(SeqCst) {
                n += u64::from(p.trim(Bytes(20_000), Steps::WINDOW).blocks > 0);
                std::thread::sleep(Duration::from_micros(300));
            }
            n
        });
        let slow = s.spawn(|| {
            let (mut packs, mut thins, mut memory) = (0u64, 0u64, ThinMemory::default());
            let order = ThinOrder {
                group: 8,
                window: 0,
            };
            while !stop.load(SeqCst) {
                packs += u64::from(p.pack_one(KvType::Q8_0).is_some());
                let done = p.thin_one(&evict::KeyDiff, order, Bytes(1), &mut memory);
                thins += u64::from(done.is_some());
                std::thread::yield_now();
            }
            (packs, thins)
        });
        let workers: Vec<_> = (0..2)
            .map(|tag| {
                let p = &p;
                s.spawn(move || {
                    let mut hashes = vec![];
                    p.hash_blocks(&tokens(tag, 800), &mut hashes);
                    while Instant::now() < end {
                        let seq = p.open().unwrap();
                        let mut at = p.adopt(seq, &hashes[..20], false);
                        while at < 800 {
                            let rows = (800 - at).min(33);
                            let Ok(r) = p.append_drafts(seq, 1, rows - 1) else {
                                break;
                            };
                            at = r.end - rows / 5;
                            fill(p, tag, seq, r);
                            sound(p, tag, seq);
                            p.take_back(seq, at);
                            sound(p, tag, seq);
                        }
                        p.publish(seq, &hashes);
                        let other = p.open().unwrap();
                        p.fork(seq, other, 400, false);
                        sound(p, tag, other);
                        p.close(seq);
                        p.close(other);
                    }
                })
            })
            .collect();
        let panicked = workers.into_iter().any(|w| w.join().is_err());
        stop.store(true, SeqCst);
        assert!(!panicked);
        let (packs, thins) = slow.join().unwrap();
        (trimmer.join().unwrap(), packs, thins)
    });
    exact(&p);
    let enough = trims > 10 && packs > 10 && thins > 10;
    assert!(!cfg!(feature = "trim") || enough, "{trims} {packs} {thins}");
}

/// Every row that is seen is one of the sequence's: none of a page that was
/// given back (which is zero, or unreadable), none of another sequence.
fn sound(p: &KvPool, tag: usize, seq: SeqId) {
    for layer in 0..SHAPE.layers {
        let (guard, mut views) = (p.layer(), vec![]);
        guard.blocks(seq, layer, &mut views);
        let least = key(tag, 0, layer) * 0.98;
        for b in &views {
            for at in (0..SHAPE.kv_heads).flat_map(|h| (0..b.tokens).map(move |t| h * N + t)) {
                let mut row = [0f32; SHAPE.head_dim];
                let (plane, at) = (SHAPE.plane(), at * SHAPE.head_dim);
                // SAFETY: a row of the block, which the guard keeps.
                unsafe { encoding::rows::decode_row(b.kind, b.k, plane, at, &mut row) };
                let range = least..=(key(tag, 96, layer) * 1.02);
                assert!(range.contains(&row[0]), "{} of {range:?}", row[0]);
            }
        }
    }
}

/// The process that the test below starts: it reads a block whose pages were
/// given back, as no code of ours does.
#[test]
fn reads_a_returned_page_when_told_to() {
    if std::env::var_os("KVPSI_TEST_READ_RETURNED").is_none() {
        return;
    }
    let p = pool(640, 1);
    let seq = p.open().unwrap();
    let range = p.append(seq, 64).unwrap();
    fill(&p, 0, seq, range);
    let address = {
        let (guard, mut views) = (p.layer(), vec![]);
        guard.blocks(seq, 0, &mut views);
        views[0].k
    };
    p.close(seq);
    p.trim(Bytes(u64::MAX), Steps::SLACK);
    // SAFETY: there is none: the page is gone, and this is to be caught.
    let read = unsafe { *address.cast::<f16>() };
    eprintln!("read {read} from a returned page");
}

#[test]
#[cfg(all(feature = "trim", debug_assertions))]
fn a_read_of_a_returned_page_is_caught_in_debug_builds() {
    use std::os::unix::process::ExitStatusExt;
    let me = std::env::current_exe().unwrap();
    let done = std::process::Command::new(me)
        .args([
            "--exact",
            "kv::model_tests::reads_a_returned_page_when_told_to",
        ])
        .env("KVPSI_TEST_READ_RETURNED", "1")
        .output()
        .unwrap();
    let by = rustix::process::Signal::SEGV.as_raw();
    assert_eq!(done.status.signal(), Some(by), "{done:?}");
}
