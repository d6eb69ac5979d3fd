//! Rows and planes there and back.

use super::*;
use proptest::prelude::*;

const KINDS: [KvType; 3] = [KvType::F16, KvType::Q8_0, KvType::Q4_0];

/// Memory of a plane, aligned for f16.
#[derive(Clone, PartialEq)]
struct Memory(Vec<u16>);

impl Memory {
    fn new(kind: KvType, plane: Plane, fill: u16) -> Self {
        Self(vec![fill; kind.bytes(plane.values()) / 2])
    }

    fn encoded(kind: KvType, plane: Plane, values: &[f32]) -> Self {
        let mut memory = Self::new(kind, plane, 0xffff);
        for (i, row) in values.chunks_exact(plane.head_dim).enumerate() {
            // SAFETY: a plane of that shape.
            unsafe {
                encode_row(
                    kind,
                    memory.0.as_mut_ptr().cast(),
                    plane,
                    i * plane.head_dim,
                    row,
                )
            };
        }
        memory
    }

    fn recoded(&self, kind: KvType, to: KvType, plane: Plane, filled: usize) -> Self {
        let mut memory = Self::new(to, plane, 0);
        let from = bytemuck::cast_slice(&self.0);
        recode(
            kind,
            from,
            to,
            bytemuck::cast_slice_mut(&mut memory.0),
            plane,
            filled,
        );
        memory
    }

    fn row(&self, kind: KvType, plane: Plane, head: usize, token: usize) -> Vec<f32> {
        let mut row = vec![0.0; plane.head_dim];
        // SAFETY: a plane of that shape.
        unsafe {
            decode_row(
                kind,
                self.0.as_ptr().cast(),
                plane,
                plane.at(head, token),
                &mut row,
            )
        };
        row
    }

    fn all(&self, kind: KvType, plane: Plane) -> Vec<f32> {
        let rows = (0..plane.heads).flat_map(|h| (0..plane.tokens).map(move |t| (h, t)));
        rows.flat_map(|(h, t)| self.row(kind, plane, h, t))
            .collect()
    }
}

fn noise(seed: &mut u64) -> f32 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    (*seed >> 40) as f32 / (1 << 23) as f32 - 1.0
}

/// Values with a mean for each channel.
fn values(plane: Plane, mean: f32, size: f32, mut seed: u64) -> Vec<f32> {
    seed |= 1;
    let means: Vec<f32> = (0..plane.heads * plane.head_dim)
        .map(|_| mean * noise(&mut seed))
        .collect();
    (0..plane.values())
        .map(|i| {
            let head = i / (plane.tokens * plane.head_dim);
            means[head * plane.head_dim + i % plane.head_dim] + size * noise(&mut seed)
        })
        .collect()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    let squares: f32 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    (squares / a.len() as f32).sqrt()
}

fn plane() -> impl Strategy<Value = Plane> {
    (1usize..4, 32usize..41, 1usize..5).prop_map(|(heads, tokens, groups)| Plane {
        heads,
        tokens,
        head_dim: groups * GROUP,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn rows_are_read_back_within_a_step(plane in plane(), size in 0.01f32..100.0, seed in any::<u64>()) {
        let values = values(plane, size, size, seed);
        for (kind, step) in KINDS.into_iter().zip([1e-3, 1.0 / 127.0, 1.0 / 7.5]) {
            let got = Memory::encoded(kind, plane, &values).all(kind, plane);
            let most = values.iter().fold(0f32, |m, v| m.max(v.abs()));
            prop_assert!(distance(&got, &values) <= step * most / 2.0 * 1.1, "{kind}");
        }
    }

    #[test]
    fn recoded_planes_are_as_far_off_as_a_step(
        plane in plane(), mean in 0f32..50.0, size in 0.1f32..10.0, seed in any::<u64>(),
    ) {
        let values = values(plane, mean, size, seed);
        for from in KINDS {
            let coded = Memory::encoded(from, plane, &values);
            let was = coded.all(from, plane);
            for (to, step) in KINDS.into_iter().zip([1e-3, 1.0 / 127.0, 0.0]) {
                let recoded = coded.recoded(from, to, plane, plane.tokens);
                let got = recoded.all(to, plane);
                let step = if to == KvType::Q4_0 && from != to {
                    // Means are taken off, to a sixteenth of them.
                    (size * 1.3 + mean / 16.0) / 7.5
                } else if to == from {
                    0.0
                } else {
                    step * (mean + size)
                };
                prop_assert!(distance(&got, &was) <= step * 0.6, "{from} to {to}");
                // As decoding and encoding, where there are no offsets.
                if to != KvType::Q4_0 {
                    prop_assert!(recoded == Memory::encoded(to, plane, &was) || to == from);
                }
            }
        }
    }

    #[test]
    fn what_lies_behind_the_filled_tokens_changes_nothing(
        plane in plane(), filled in 0usize..33, junk in any::<u16>(), seed in any::<u64>(),
    ) {
        let mut values = values(plane, 3.0, 1.0, seed);
        for (from, to) in [(0, 1), (0, 2), (1, 2), (2, 0)].map(|(a, b)| (KINDS[a], KINDS[b])) {
            let rows = |m: &Memory| -> Vec<Vec<u32>> {
                let rows = (0..plane.heads).flat_map(|h| (0..filled).map(move |t| (h, t)));
                rows.map(|(h, t)| m.row(to, plane, h, t).iter().map(|v| v.to_bits()).collect()).collect()
            };
            let want = rows(&Memory::encoded(from, plane, &values).recoded(from, to, plane, filled));
            let fill = half::f16::from_bits(junk).to_f32();
            for (h, t) in (0..plane.heads).flat_map(|h| (filled..plane.tokens).map(move |t| (h, t))) {
                values[plane.at(h, t)..][..plane.head_dim].fill(fill);
            }
            let got = rows(&Memory::encoded(from, plane, &values).recoded(from, to, plane, filled));
            prop_assert!(got == want);
        }
    }

    #[test]
    fn every_processor_writes_the_same_bits(
        plane in plane(), filled in 0usize..33, size in 1e-6f32..1e4, seed in any::<u64>(),
    ) {
        let values = values(plane, size, size, seed);
        for (from, to) in [(0, 1), (0, 2), (1, 2)].map(|(a, b)| (KINDS[a], KINDS[b])) {
            let coded = Memory::encoded(from, plane, &values);
            let vector = coded.recoded(from, to, plane, filled);
            let mut plain = Memory::new(to, plane, 0);
            // SAFETY: planes of that shape.
            unsafe {
                let (from_at, to_at) = (coded.0.as_ptr().cast(), plain.0.as_mut_ptr().cast());
                recode_all::<q4::Plain>(from, from_at, to, to_at, plane, filled);
            }
            prop_assert!(vector == plain, "{from} to {to}");
        }
        let mut plain = Memory::new(KvType::Q4_0, plane, 0xffff);
        for (i, row) in values.chunks_exact(plane.head_dim).enumerate() {
            // SAFETY: a plane of that shape.
            unsafe { encode_groups::<q4::Plain>(KvType::Q4_0, plain.0.as_mut_ptr().cast(), plane, i * plane.head_dim, row) };
        }
        prop_assert!(plain == Memory::encoded(KvType::Q4_0, plane, &values));
    }
}

#[test]
fn what_is_no_number_is_not_hidden_and_spoils_no_other_row() {
    let plane = Plane {
        heads: 2,
        tokens: 32,
        head_dim: 64,
    };
    let mut values = values(plane, 1.0, 1.0, 9);
    values[plane.at(1, 5) + 40] = f32::NAN;
    for (from, to) in KINDS.into_iter().flat_map(|a| KINDS.map(|b| (a, b))) {
        let recoded = Memory::encoded(from, plane, &values).recoded(from, to, plane, 32);
        for (h, t) in (0..2).flat_map(|h| (0..32).map(move |t| (h, t))) {
            let row = recoded.row(to, plane, h, t);
            let spoiled = row.iter().any(|v| v.is_nan());
            assert_eq!(spoiled, (h, t) == (1, 5), "{from} to {to}: {h} {t}");
        }
    }
}

#[test]
fn a_row_after_a_recoding_uses_the_offsets_that_it_left() {
    let plane = Plane {
        heads: 1,
        tokens: 32,
        head_dim: 64,
    };
    let values = values(plane, 20.0, 0.5, 4);
    let mut recoded =
        Memory::encoded(KvType::F16, plane, &values).recoded(KvType::F16, KvType::Q4_0, plane, 20);
    let row = &values[plane.at(0, 20)..][..64];
    // SAFETY: a plane of that shape.
    unsafe {
        encode_row(
            KvType::Q4_0,
            recoded.0.as_mut_ptr().cast(),
            plane,
            plane.at(0, 20),
            row,
        )
    };
    assert!(distance(&recoded.row(KvType::Q4_0, plane, 0, 20), row) < 0.3);
    let alone = Memory::encoded(KvType::Q4_0, plane, &values);
    assert!(distance(&alone.row(KvType::Q4_0, plane, 0, 20), row) > 0.5);
}
