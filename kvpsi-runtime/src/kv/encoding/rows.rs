//! Rows and planes as they lie in a block: written, read, recoded.
//!
//! Owns the places of codes, scales and offsets within a plane. Loops are
//! compiled twice on x86-64, for AVX2 and for what every processor has, with
//! the same bits as result; NEON is what every arm64 has. Out of scope:
//! where planes lie, and who else reads them.

use super::{GROUP, KvType, q4, q4::Passes, q8};
use half::{f16, slice::HalfFloatSliceExt};

/// Shape of K or V of one layer of one block: `[heads][tokens][head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    /// KV heads.
    pub heads: usize,
    /// Tokens there is room for.
    pub tokens: usize,
    /// Values of a head; whole groups of the encodings in question.
    pub head_dim: usize,
}

impl Plane {
    /// Values there is room for.
    #[must_use]
    pub const fn values(self) -> usize {
        self.heads * self.tokens * self.head_dim
    }

    /// First value of a row.
    #[must_use]
    pub const fn at(self, head: usize, token: usize) -> usize {
        (head * self.tokens + token) * self.head_dim
    }

    /// Where the offsets of the head that has value `at` begin in
    /// [`KvType::Q4_0`], in bytes.
    const fn offsets(self, at: usize) -> usize {
        let head = at / (self.tokens * self.head_dim);
        self.values() / 2 + self.values() / GROUP + head * self.head_dim
    }

    /// Whether an encoding can hold it.
    fn fits(self, kind: KvType) -> bool {
        self.head_dim.is_multiple_of(kind.group()) && self.tokens >= kind.least_tokens()
    }
}

/// Calls a function of this module that is always inlined, compiled for AVX2
/// where the processor has it. A closure would not do: a large one is compiled
/// on its own, without AVX2.
macro_rules! wide {
    ($f:ident($($arg:ident: $t:ty),*)) => {{
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
            #[target_feature(enable = "avx2,f16c")]
            unsafe fn with_avx2($($arg: $t),*) {
                // SAFETY: the caller's promises.
                unsafe { $f::<q4::Avx2>($($arg),*) }
            }
            with_avx2($($arg),*)
        } else {
            $f::<q4::Plain>($($arg),*)
        }
        #[cfg(not(target_arch = "x86_64"))]
        $f::<q4::Plain>($($arg),*)
    }};
}

/// Reads the group that begins at value `at`, without offsets.
///
/// # Safety
/// `from` is a readable plane of `values` values, `at` a whole number of
/// groups and a group lies behind it.
#[inline(always)]
unsafe fn read_group(
    kind: KvType,
    from: *const u8,
    values: usize,
    at: usize,
    out: &mut [f32; GROUP],
) {
    // SAFETY: codes of values `at..at + GROUP` and their scale lie within the
    // plane by the caller's promise; f16 is read unaligned.
    unsafe {
        match kind {
            KvType::F16 => {
                let halves: [f16; GROUP] = from.add(2 * at).cast::<[f16; GROUP]>().read_unaligned();
                halves.convert_to_f32_slice(out);
            }
            KvType::Q8_0 => {
                let codes = &*from.add(at).cast::<[i8; GROUP]>();
                let scale = from.add(values + 2 * (at / GROUP)).cast::<f16>();
                q8::decode_group(codes, scale.read_unaligned(), out);
            }
            KvType::Q4_0 => {
                let codes = &*from.add(at / 2).cast::<[u8; q4::CODES]>();
                q4::decode_group(codes, *from.add(values / 2 + at / GROUP), out);
            }
        }
    }
}

/// Writes the group that begins at value `at`, in an encoding without offsets.
///
/// # Safety
/// As [`read_group`], and no other thread touches the group.
#[inline(always)]
unsafe fn write_group(kind: KvType, to: *mut u8, values: usize, at: usize, group: &[f32; GROUP]) {
    // SAFETY: as in `read_group`; exclusive by the caller's promise.
    unsafe {
        if kind == KvType::F16 {
            let mut halves = [f16::ZERO; GROUP];
            halves.convert_from_f32_slice(group);
            let place = to.add(2 * at).cast::<[f16; GROUP]>();
            place.write_unaligned(halves);
        } else {
            let scale = q8::encode_group(group, &mut *to.add(at).cast::<[i8; GROUP]>());
            let place = to.add(values + 2 * (at / GROUP)).cast::<f16>();
            place.write_unaligned(scale);
        }
    }
}

/// Where [`KvType::Q4_0`] has the codes and the scale of the group at `at`.
///
/// # Safety
/// As [`write_group`].
#[inline(always)]
unsafe fn q4_places<'a>(
    to: *mut u8,
    values: usize,
    at: usize,
) -> (&'a mut [u8; q4::CODES], &'a mut u8) {
    // SAFETY: as in `write_group`; scales lie behind the codes.
    unsafe {
        let codes = &mut *to.add(at / 2).cast::<[u8; q4::CODES]>();
        (codes, &mut *to.add(values / 2 + at / GROUP))
    }
}

/// Writes the row that begins at value `at`. The offsets of a head are those
/// that a recoding left, or none: the row of its first token clears them, so
/// rows of a block are written from there on.
///
/// # Safety
/// `to` is a plane of that shape, aligned for f16, which [`Plane::fits`] the
/// encoding; `at` begins a row of it, and no other thread touches that row.
pub(in crate::kv) unsafe fn encode_row(
    kind: KvType,
    to: *mut u8,
    plane: Plane,
    at: usize,
    row: &[f32],
) {
    debug_assert!(plane.fits(kind) && row.len() == plane.head_dim);
    if kind == KvType::F16 {
        // SAFETY: the caller's promises.
        let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<f16>().add(at), row.len()) };
        return to.convert_from_f32_slice(row);
    }
    // SAFETY: the caller's promises.
    unsafe { wide!(encode_groups(kind: KvType, to: *mut u8, plane: Plane, at: usize, row: &[f32])) }
}

/// # Safety
/// As [`encode_row`].
#[inline(always)]
unsafe fn encode_groups<P: Passes>(
    kind: KvType,
    to: *mut u8,
    plane: Plane,
    at: usize,
    row: &[f32],
) {
    let (values, offsets) = (plane.values(), plane.offsets(at));
    for (i, group) in row.as_chunks::<GROUP>().0.iter().enumerate() {
        // SAFETY: the groups of the row, and the offsets of its channels, lie
        // within the plane by the caller's promise; rows of one head are
        // written by one thread after the other, or with offsets that none
        // changes.
        unsafe {
            if kind == KvType::Q4_0 {
                let offsets = &mut *to.add(offsets + i * GROUP).cast::<[u8; GROUP]>();
                if at.is_multiple_of(plane.tokens * plane.head_dim) {
                    offsets.fill(0);
                }
                let group = std::array::from_fn(|c| group[c] - q4::offset(offsets[c]));
                let (codes, scale) = q4_places(to, values, at + i * GROUP);
                *scale = P::encode(&group, codes);
            } else {
                write_group(KvType::Q8_0, to, values, at + i * GROUP, group);
            }
        }
    }
}

/// Reads the row that begins at value `at`.
///
/// # Safety
/// `from` is a readable plane of that shape, aligned for f16, which
/// [`Plane::fits`] the encoding; `at` begins a row of it that was written.
pub(in crate::kv) unsafe fn decode_row(
    kind: KvType,
    from: *const u8,
    plane: Plane,
    at: usize,
    out: &mut [f32],
) {
    debug_assert!(plane.fits(kind) && out.len() == plane.head_dim);
    if kind == KvType::F16 {
        // SAFETY: the caller's promises.
        let from = unsafe { std::slice::from_raw_parts(from.cast::<f16>().add(at), out.len()) };
        return from.convert_to_f32_slice(out);
    }
    let values = plane.values();
    for (i, group) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
        // SAFETY: groups and offsets of the row lie within the plane.
        unsafe {
            read_group(kind, from, values, at + i * GROUP, group);
            if kind == KvType::Q4_0 {
                let offsets = from.add(plane.offsets(at) + i * GROUP);
                for (c, v) in group.iter_mut().enumerate() {
                    *v += q4::offset(*offsets.add(c));
                }
            }
        }
    }
}

/// Writes a plane in another encoding. Offsets are the means of the first
/// `filled` tokens; what lies behind these may be anything, and is not read.
///
/// # Safety
/// `from` and `to` are planes of that shape, aligned for f16, which
/// [`Plane::fits`] both encodings and do not overlap; `from` is readable for
/// the first `filled <= plane.tokens` tokens of each head, and no other
/// touches `to`.
pub(in crate::kv) unsafe fn recode_plane(
    kind: KvType,
    from: *const u8,
    to_kind: KvType,
    to: *mut u8,
    plane: Plane,
    filled: usize,
) {
    debug_assert!(plane.fits(kind) && plane.fits(to_kind) && filled <= plane.tokens);
    let values = plane.values();
    if kind == to_kind {
        // SAFETY: both have so many bytes and do not overlap.
        return unsafe { to.copy_from_nonoverlapping(from, kind.bytes(values)) };
    }
    if kind == KvType::Q4_0 || !plane.head_dim.is_multiple_of(GROUP) {
        // Upwards, which is not urgent.
        let mut row = vec![0.0; plane.head_dim];
        for at in (0..plane.heads).flat_map(|h| (0..filled).map(move |t| plane.at(h, t))) {
            // SAFETY: rows of both planes.
            unsafe {
                decode_row(kind, from, plane, at, &mut row);
                encode_row(to_kind, to, plane, at, &row);
            }
        }
        return;
    }
    // SAFETY: the caller's promises.
    unsafe {
        wide!(recode_all(
            kind: KvType, from: *const u8, to_kind: KvType, to: *mut u8, plane: Plane, filled: usize
        ));
    }
}

/// Between encodings of which `kind` has no offsets, by whole groups.
///
/// # Safety
/// As [`recode_plane`].
#[inline(always)]
unsafe fn recode_all<P: Passes>(
    kind: KvType,
    from: *const u8,
    to_kind: KvType,
    to: *mut u8,
    plane: Plane,
    filled: usize,
) {
    let values = plane.values();
    let groups =
        (0..plane.heads).flat_map(|h| (0..plane.head_dim).step_by(GROUP).map(move |c| (h, c)));
    for (head, channel) in groups {
        let at = |token| plane.at(head, token) + channel;
        let offsets = plane.offsets(at(0)) + channel;
        // One loop for each pair, which knows its encodings.
        // SAFETY: groups of filled tokens, and offsets of their channels, lie
        // within both planes by the caller's promise.
        unsafe {
            match (kind, to_kind) {
                (KvType::F16, KvType::Q8_0) => {
                    recode_groups(KvType::F16, from, KvType::Q8_0, to, values, at, filled);
                }
                (KvType::F16, _) => lower::<P>(KvType::F16, from, to, values, at, filled, offsets),
                (_, KvType::Q4_0) => {
                    lower::<P>(KvType::Q8_0, from, to, values, at, filled, offsets)
                }
                _ => recode_groups(KvType::Q8_0, from, KvType::F16, to, values, at, filled),
            }
        }
    }
}

/// # Safety
/// As [`read_group`] and [`write_group`] for the first `filled` tokens.
#[inline(always)]
unsafe fn recode_groups(
    kind: KvType,
    from: *const u8,
    to_kind: KvType,
    to: *mut u8,
    values: usize,
    at: impl Fn(usize) -> usize,
    filled: usize,
) {
    let mut group = [0.0; GROUP];
    for token in 0..filled {
        // SAFETY: the caller's promise.
        unsafe {
            read_group(kind, from, values, at(token), &mut group);
            write_group(to_kind, to, values, at(token), &group);
        }
    }
}

/// To [`KvType::Q4_0`], with offsets.
///
/// # Safety
/// As [`recode_groups`]; a group of offsets begins at byte `offsets` of `to`.
#[inline(always)]
unsafe fn lower<P: Passes>(
    kind: KvType,
    from: *const u8,
    to: *mut u8,
    values: usize,
    at: impl Fn(usize) -> usize,
    filled: usize,
    offsets: usize,
) {
    /// Tokens that take a pass together; a longer block is read twice.
    const KEPT: usize = 64;
    let mut kept = [[0f32; GROUP]; KEPT];
    let mut scales = [0; KEPT];
    let mut sums = [0f32; GROUP];
    let mut bytes = [0; GROUP];
    // SAFETY: the caller's promise.
    unsafe {
        for token in 0..filled {
            let group = &mut kept[token % KEPT];
            read_group(kind, from, values, at(token), group);
            sums.iter_mut().zip(&*group).for_each(|(s, v)| *s += v);
        }
        q4::offsets(&sums, filled, &mut bytes);
        let means = bytes.map(q4::offset);
        for first in (0..filled).step_by(KEPT) {
            let kept = &mut kept[..KEPT.min(filled - first)];
            if filled > KEPT {
                for (i, group) in kept.iter_mut().enumerate() {
                    read_group(kind, from, values, at(first + i), group);
                }
            }
            for (group, scale) in kept.iter_mut().zip(&mut scales) {
                group.iter_mut().zip(&means).for_each(|(v, m)| *v -= m);
                *scale = P::top(group);
            }
            for (group, scale) in kept.iter().zip(&mut scales) {
                *scale = P::choose(group, *scale);
            }
            for (i, (group, scale)) in kept.iter().zip(&scales).enumerate() {
                let (codes, place) = q4_places(to, values, at(first + i));
                P::write(group, *scale, codes);
                *place = *scale;
            }
        }
        to.add(offsets)
            .copy_from_nonoverlapping(bytes.as_ptr(), GROUP);
    }
}

/// A plane in another encoding, in memory of one's own: for measurements.
///
/// # Panics
/// The slices are not of a plane's bytes or not aligned for f16, or the shape
/// is none for the encodings.
pub fn recode(
    kind: KvType,
    from: &[u8],
    to_kind: KvType,
    to: &mut [u8],
    plane: Plane,
    filled: usize,
) {
    assert!(plane.fits(kind) && plane.fits(to_kind) && filled <= plane.tokens);
    assert_eq!(from.len(), kind.bytes(plane.values()));
    assert_eq!(to.len(), to_kind.bytes(plane.values()));
    assert!(from.as_ptr().cast::<f16>().is_aligned() && to.as_ptr().cast::<f16>().is_aligned());
    // SAFETY: lengths, shape and alignment were checked; slices do not overlap.
    unsafe { recode_plane(kind, from.as_ptr(), to_kind, to.as_mut_ptr(), plane, filled) };
}

#[cfg(test)]
mod tests;
