//! One row from one block to another.

use super::encoding::{GROUP, KvType, decode_row, encode_row};

/// Longest head there is a buffer for; longer ones go in parts.
const PART: usize = 256;

/// Where a row is in a plane.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    /// How the plane is written.
    pub kind: KvType,
    /// First value of the row.
    pub value: usize,
}

/// Copies a row of `len` values between planes of `values` values: its codes
/// as they are where both are written alike, so that nothing is rounded twice.
///
/// # Safety
/// `src` and `dst` are two planes of that size; the rows lie within and are
/// whole groups; nobody writes the one or reads the other meanwhile.
pub(super) unsafe fn copy_row(
    (src, from): (*const u8, At),
    (dst, to): (*mut u8, At),
    values: usize,
    len: usize,
) {
    if from.kind == to.kind {
        let kind = from.kind;
        let scale_bytes = |values: usize| {
            if kind.group() == 1 {
                0
            } else {
                2 * (values / GROUP)
            }
        };
        let code_bytes = |values: usize| kind.bytes(values) - scale_bytes(values);
        // SAFETY: whole groups of both planes, as the caller says: first the
        // codes, then the scales that follow all codes.
        unsafe {
            src.add(code_bytes(from.value))
                .copy_to_nonoverlapping(dst.add(code_bytes(to.value)), code_bytes(len));
            src.add(code_bytes(values) + scale_bytes(from.value))
                .copy_to_nonoverlapping(
                    dst.add(code_bytes(values) + scale_bytes(to.value)),
                    scale_bytes(len),
                );
        }
        return;
    }
    let mut part = [0f32; PART];
    for at in (0..len).step_by(PART) {
        let part = &mut part[..PART.min(len - at)];
        // SAFETY: a part of the row, in whole groups: `PART` is one of them.
        unsafe {
            decode_row(from.kind, src, values, from.value + at, part);
            encode_row(to.kind, dst, values, to.value + at, part);
        }
    }
}
