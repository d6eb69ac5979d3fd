//! The reactor's path allocates nothing: a counting allocator watches it.

#![cfg(feature = "trim")]

use bytemuck::Zeroable;
use kvpsi::{
    control::{
        Controller, Gave, Tuning,
        cgroup::MemoryCgroup,
        gauge::{Gauges, Levels},
        system::SystemGauge,
        wall::{CgroupLevel, Depth, Walls},
    },
    kv::{KvPool, KvShape, PoolConfig},
    pressure::{self, Choice, PressureSource, SourceConfig, vmstat::Vmstat, watchdog::Watched},
    units::Bytes,
};
use kvpsi_common::{Event, Kind, Phase};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    time::{Duration, Instant},
};

thread_local! { static COUNT: Cell<u64> = const { Cell::new(0) }; }

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|c| c.set(c.get() + 1));
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        COUNT.with(|c| c.set(c.get() + 1));
        // SAFETY: the caller's promise, handed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() -> u64 {
    COUNT.with(Cell::get)
}

#[test]
fn from_event_to_returned_pages_nothing_is_allocated() {
    let shape = KvShape {
        layers: 4,
        kv_heads: 2,
        head_dim: 64,
        block_tokens: 32,
        kind: kvpsi::kv::KvType::F16,
        row_mass: false,
    };
    let pool = KvPool::new(PoolConfig {
        shape,
        capacity_tokens: 4096,
        max_sequences: 4,
        sink_tokens: 4,
        recent_tokens: 64,
        floor_tokens: 0,
        may_drop: true,
    })
    .unwrap();
    let seq = pool.open().unwrap();
    let row = vec![1.0; shape.kv_heads * shape.head_dim];
    for _ in 0..128 {
        let range = pool.append(seq, 32).unwrap();
        let guard = pool.layer();
        let mut writer = guard.writer();
        writer.claim(seq).unwrap();
        for pos in range {
            (0..shape.layers).for_each(|l| writer.write(seq, l, pos, &row, &row));
        }
    }
    let mut gauges = Gauges {
        walls: MemoryCgroup::of_self().ok().map(|c| Walls::open(&c)),
        system: Some(SystemGauge::open().unwrap()),
    };
    let mut controller = Controller::new(Tuning::default(), kvpsi::kv::Profile::Latency, 4096);
    let before = count();
    let mut returned = 0;
    for t in 1..20u64 {
        controller.observe(&Event {
            kind: Kind::MemcgReclaim as u16,
            phase: Phase::Onset as u16,
            ts_ns: t * 20_000_000,
            stalled_now: 1,
            ..Event::zeroed()
        });
        // Of every wall, and then one that is short in any case.
        let levels = Levels {
            cgroup: Some(CgroupLevel {
                usage: Bytes::mib(100),
                limit: Bytes::mib(100),
                hits: Some(1),
                file: Some(Bytes::ZERO),
                ..CgroupLevel::default()
            }),
            ..gauges.levels(Depth::All)
        };
        while let Some(d) = controller.decide(t * 20_000_000, levels) {
            let trimmed = pool.trim(d.want, d.steps);
            let gave = Gave {
                bytes: trimmed.bytes,
                contended: trimmed.bytes == Bytes::ZERO,
                ..Gave::default()
            };
            controller.trimmed(t * 20_000_000, &d, gave);
            let budget = pool.budget();
            controller.grow(t * 20_000_000, budget, budget, pool.capacity(), levels);
            let account = pool.account();
            pool.set_budget(account.resident.max(account.floor));
            returned += trimmed.bytes.0;
            if trimmed.bytes == Bytes::ZERO || returned > 8 << 20 {
                break;
            }
        }
    }
    let allocated = count() - before;
    assert!(returned > 1 << 20, "{returned}");
    assert_eq!(allocated, 0);
    // The counter counts: this allocates.
    let v = std::hint::black_box(vec![0u8; 100]);
    assert!(count() > before, "{}", v.len());
}

#[test]
fn no_source_allocates_while_it_is_listened_to() {
    let config = SourceConfig::default();
    let open = |choice| pressure::open(choice, &config).ok().map(|o| o.source);
    // Whatever opens here: /proc/vmstat at least, and twice, one to watch the
    // other.
    let vmstat = || -> Box<dyn PressureSource> { Box::new(Vmstat::open(&config).unwrap()) };
    let mut sources = vec![Box::new(Watched::new(vmstat(), vmstat())) as Box<dyn PressureSource>];
    for choice in [Choice::Auto, Choice::PsiTrigger, Choice::PsiPoll] {
        sources.extend(open(choice));
    }
    let mut events = 0u64;
    // Longer than the watchdog waits before it looks.
    let begun = Instant::now();
    let before = count();
    while begun.elapsed() < Duration::from_millis(1300) {
        for source in &mut sources {
            let _ready = source.readiness().interval;
            source.drain(&mut |e| events += e.count).unwrap();
        }
    }
    assert_eq!(count() - before, 0, "{events} stalls and marks");
}
