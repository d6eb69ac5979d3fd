//! Who may have a block, a row, a budget: each fault that was found by reading,
//! as the behaviour that is right.

use super::{
    tests::{SHAPE, fill, pool},
    *,
};
use crate::units::Bytes;

const N: usize = SHAPE.block_tokens;

fn hashes(p: &KvPool, tokens: u32) -> Vec<BlockHash> {
    let (all, mut known): (Vec<u32>, _) = ((0..tokens).collect(), vec![]);
    p.hash_blocks(&all, &mut known);
    known
}

#[test]
fn the_id_of_a_closed_sequence_finds_nothing_of_the_one_in_its_place() {
    let p = pool(640, 1);
    let old = p.open().unwrap();
    p.append(old, 40).unwrap();
    p.close(old);
    let new = p.open().unwrap();
    p.append(new, 50).unwrap();
    fill(&p, 1, new, 0..50);
    assert_ne!(old, new);
    assert_eq!((p.len(old), p.live_tokens(old)), (0, 0));
    assert!(p.preempted(old));
    assert_eq!(p.append(old, 1), Err(KvError::Closed));
    assert_eq!(p.reopen(old), Err(KvError::Closed));
    let (guard, mut views) = (p.layer(), vec![]);
    guard.blocks(old, 0, &mut views);
    assert!(views.is_empty());
    // Closing it again is nothing.
    p.close(old);
    assert_eq!(p.live_tokens(new), 50);
}

#[test]
fn a_second_writer_of_a_sequence_is_refused() {
    let p = pool(640, 2);
    let [a, b] = [(); 2].map(|()| p.open().unwrap());
    let guard = p.layer();
    let (mut one, mut other) = (guard.writer(), guard.writer());
    assert_eq!(one.claim(a), Ok(()));
    assert_eq!(one.claim(a), Ok(()));
    assert_eq!(other.claim(a), Err(KvError::Busy));
    assert_eq!(other.claim(b), Ok(()));
    drop(one);
    assert_eq!(other.claim(a), Ok(()));
}

#[test]
#[should_panic(expected = "no block to write position 3 to")]
#[cfg(debug_assertions)]
fn a_row_that_was_written_is_not_written_again() {
    let p = pool(640, 1);
    let seq = p.open().unwrap();
    p.append(seq, N).unwrap();
    fill(&p, 0, seq, 0..N);
    p.written(seq);
    fill(&p, 0, seq, 3..4);
}

#[test]
fn rows_that_were_handed_out_and_never_written_are_not_shared() {
    let p = pool(640, 2);
    let known = hashes(&p, 64);
    let seq = p.open().unwrap();
    let range = p.append(seq, 2 * N).unwrap();
    fill(&p, 0, seq, range);
    // A step that is interrupted: positions, and no rows.
    p.append(seq, 2 * N).unwrap();
    let fork = p.open().unwrap();
    assert_eq!(p.fork(seq, fork, usize::MAX, true), 2 * N);
    p.close(fork);
    p.publish(seq, &known);
    p.close(seq);
    let next = p.open().unwrap();
    assert_eq!(p.adopt(next, &known, true), 2 * N);
}

#[test]
fn a_limit_holds_where_no_token_may_be_dropped() {
    for may_drop in [false, true] {
        let p = pool(1600, 2);
        p.set_may_drop(may_drop);
        let limit = Bytes(8 * SHAPE.block_bytes().0);
        p.set_limit(limit);
        let seq = p.open().unwrap();
        let (mut at, refused) = loop {
            match p.append(seq, N) {
                Ok(r) => fill(&p, 0, seq, r),
                Err(e) => break (p.len(seq), e),
            }
            assert!(p.account().resident <= limit, "{:?}", p.account());
            if p.len(seq) == 1600 {
                break (1600, KvError::Closed);
            }
        };
        if !may_drop {
            assert_eq!(refused, KvError::Exhausted(limit));
            assert_eq!(at, 8 * N);
            at = p.len(seq);
        }
        p.written(seq);
        p.publish(seq, &hashes(&p, u32::try_from(at).unwrap()));
        p.close(seq);
        assert!(p.account().resident <= limit);
        // What another leaves gives way to it.
        let next = p.open().unwrap();
        assert_eq!(p.append(next, 8 * N).unwrap(), 0..8 * N);
        assert!(p.account().resident <= limit);
    }
}

#[test]
fn a_closed_sequence_leaves_no_more_than_the_budget() {
    let p = pool(1600, 1);
    p.set_may_drop(false);
    let known = hashes(&p, 480);
    let seq = p.open().unwrap();
    let range = p.append(seq, 480).unwrap();
    fill(&p, 0, seq, range);
    p.written(seq);
    p.publish(seq, &known);
    let budget = Bytes(4 * SHAPE.block_bytes().0);
    p.set_budget(budget);
    p.close(seq);
    let a = p.account();
    assert_eq!((a.resident, a.cached), (budget, budget));
    // The beginning is what is left of it.
    assert_eq!(p.known(&known, true), 4 * N);
}

#[cfg(feature = "trim")]
mod with_trims {
    use super::{
        super::tests::{grow, smaps_rss},
        *,
    };

    #[test]
    fn a_trim_beside_a_locked_table_takes_what_others_have_and_says_so() {
        let p = pool(1600, 2);
        let [a, b] = [(); 2].map(|()| p.open().unwrap());
        grow(&p, 0, a, 320);
        grow(&p, 1, b, 320);
        let held = p.tables.lock(a).unwrap();
        let t = p.trim(Bytes(u64::MAX), Steps::WINDOW);
        assert!(t.contended && t.bytes > Bytes::ZERO, "{t:?}");
        assert_eq!((p.lost_tokens(a), p.lost_tokens(b)), (0, t.tokens));
        drop(held);
        let t = p.trim(Bytes(u64::MAX), Steps::WINDOW);
        assert!(!t.contended || t.bytes > Bytes::ZERO);
        assert_eq!(p.lost_tokens(a), t.tokens);
        let t = p.trim(Bytes(1), Steps::SLACK);
        assert!(!t.contended, "nothing is left, and no lock is held");
    }

    #[test]
    fn trims_beside_each_other_are_both_served() {
        let p = pool(3200, 1);
        let seq = p.open().unwrap();
        grow(&p, 0, seq, 3200);
        p.publish(seq, &hashes(&p, 3200));
        p.close(seq);
        let block = SHAPE.block_bytes().0;
        let took = std::thread::scope(|s| {
            let trims: Vec<_> = (0..4)
                .map(|_| s.spawn(|| p.trim(Bytes(20 * block), Steps::FREE)))
                .collect();
            let took = trims.into_iter().map(|t| t.join().unwrap().given().0);
            took.collect::<Vec<_>>()
        });
        assert!(took.iter().all(|t| *t >= 20 * block), "{took:?}");
    }

    #[test]
    fn pages_under_an_open_guard_return_when_it_is_closed_and_no_trim_waits() {
        let p = pool(1600, 2);
        let seq = p.open().unwrap();
        grow(&p, 0, seq, 640);
        let before = p.account();
        let guard = p.layer();
        let want = Bytes(10 * SHAPE.block_bytes().0);
        let t = p.trim(want, Steps::WINDOW);
        assert_eq!((t.bytes, t.deferred, t.given()), (Bytes::ZERO, want, want));
        let a = p.account();
        assert_eq!((a.retired, a.resident), (want, before.resident));
        assert_eq!(a.deferred_returned, Bytes::ZERO);
        // Slack was in no table under the guard: it goes at once.
        let later = p.layer();
        drop(guard);
        let a = p.account();
        assert_eq!((a.retired, a.deferred_returned), (Bytes::ZERO, want));
        assert_eq!(a.resident.0, before.resident.0 - want.0);
        drop(later);
    }

    /// The kernel is about to kill, and who holds the guard is descheduled.
    #[test]
    fn pages_under_a_guard_go_at_once_where_no_sequence_is_left_to_read_them() {
        let p = pool(1600, 3);
        let [a, b] = [(); 2].map(|()| p.open().unwrap());
        grow(&p, 0, a, 640);
        grow(&p, 1, b, 320);
        let (guard, before) = (p.layer(), p.account().resident);
        let mut views = vec![];
        guard.blocks(a, 0, &mut views);
        let some = p.trim(Bytes(4 * SHAPE.block_bytes().0), Steps::WINDOW);
        assert_eq!(some.bytes, Bytes::ZERO);
        // One goes on: what it reads stays.
        let preempt = Steps::NONE.with(Step::Preempt);
        let t = p.trim(Bytes(u64::MAX), preempt);
        assert_eq!((t.preempted, t.bytes), (1, Bytes::ZERO));
        let t = p.trim(Bytes(1), preempt.to_the_last());
        assert_eq!((t.preempted, t.bytes, t.deferred), (1, before, Bytes::ZERO));
        let gone = p.account();
        assert_eq!((gone.resident, gone.retired), (Bytes::ZERO, Bytes::ZERO));
        // A row that is still being computed may be written to: into nobody's block.
        for view in &views {
            // SAFETY: the guard is open; its pages are there as zeros.
            unsafe { view.k.cast_mut().write_volatile(1) };
        }
        let c = p.open().unwrap();
        p.append(c, 320).unwrap();
        let mut others = vec![];
        guard.blocks(c, 0, &mut others);
        assert!(others.iter().all(|v| views.iter().all(|w| w.k != v.k)));
        p.close(c);
        drop((views, others));
        drop(guard);
        p.trim(Bytes(u64::MAX), Steps::FREE);
        assert_eq!(p.account().resident, Bytes::ZERO);
        assert_eq!(smaps_rss(&p.alloc.range()), 0);
    }

    #[test]
    fn cached_blocks_that_left_their_table_before_a_guard_go_beside_it() {
        let p = pool(1600, 2);
        let seq = p.open().unwrap();
        grow(&p, 0, seq, 320);
        p.written(seq);
        p.publish(seq, &hashes(&p, 320));
        p.close(seq);
        let all = p.account().cached;
        let _guard = p.layer();
        let t = p.trim(Bytes(u64::MAX), Steps::FREE);
        assert_eq!((t.bytes, t.deferred), (all, Bytes::ZERO));
    }

    #[test]
    fn a_block_under_a_guard_is_not_handed_out_again() {
        let p = pool(1600, 2);
        let seq = p.open().unwrap();
        grow(&p, 0, seq, 320);
        let (guard, mut views) = (p.layer(), vec![]);
        guard.blocks(seq, 0, &mut views);
        let seen: Vec<_> = views.iter().map(|v| v.k).collect();
        p.close(seq);
        let next = p.open().unwrap();
        p.append(next, 320).unwrap();
        let mut views = vec![];
        guard.blocks(next, 0, &mut views);
        assert!(views.iter().all(|v| !seen.contains(&v.k)));
    }
}
