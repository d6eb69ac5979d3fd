//! Which family of kernels this process uses.
//!
//! Decided once per process from what the processor reports and from what the
//! kernels then compute, or forced by `KVPSI_ISA` for tests and comparisons. A
//! forced family that is missing is an error, never a silent fallback: a figure
//! must say what it was made with.
//!
//! Owns the trial: a few tiles and rows of no meaning, and the comparison with
//! the reference, which takes some milliseconds. Not every processor that has
//! AVX-512 or AVX-VNNI was there when its kernels were written: a family that
//! computes something else is not used, and said to be so.

use super::acts::ActKind;
use super::error::LinearError;
use super::isa::{Family, Isa};
use super::rows::QuantizedRows;
use super::simd::TILE_ROWS;
use super::table::{Acts, Format, STEPS, most_rows};
use std::sync::OnceLock;

/// The family that a value of `KVPSI_ISA` asks for; `None` is `auto`.
///
/// # Errors
/// No such name, or this processor lacks it.
pub fn from_choice(choice: Option<&str>) -> Result<Isa, LinearError> {
    let Some(name) = choice.filter(|c| !c.is_empty() && *c != "auto") else {
        return Ok(Isa::best());
    };
    let mut all = Family::ALL.into_iter();
    let family = all
        .find(|family| family.name() == name)
        .ok_or_else(|| LinearError::UnknownIsa(name.to_owned()))?;
    let missing = || LinearError::IsaMissing(family.name());
    family.detect().ok_or_else(missing)
}

/// The family of this process: `KVPSI_ISA` if set, else the fastest one
/// that computes what the reference does. The environment is read once.
///
/// # Errors
/// As [`from_choice`]; or the family that `KVPSI_ISA` names computes
/// something else here.
pub fn active() -> Result<Isa, LinearError> {
    static ACTIVE: OnceLock<Isa> = OnceLock::new();
    if let Some(isa) = ACTIVE.get() {
        return Ok(*isa);
    }
    let choice = std::env::var("KVPSI_ISA").ok();
    let mut isa = from_choice(choice.as_deref())?;
    let forced = choice.is_some_and(|c| c == isa.name());
    while !agrees(isa) {
        let wrong = LinearError::IsaWrong(isa.name());
        if forced {
            return Err(wrong);
        }
        tracing::error!("{wrong}");
        isa = isa.slower();
    }
    Ok(*ACTIVE.get_or_init(|| isa))
}

/// Why [`active`] gives what it does, for people.
pub fn reason(isa: Isa) -> &'static str {
    if std::env::var("KVPSI_ISA").is_ok_and(|name| name == isa.name()) {
        "KVPSI_ISA asks for it"
    } else if isa == Isa::best() {
        "the fastest that this processor has; it agrees with the reference"
    } else {
        "a faster one does not agree with the reference on this processor"
    }
}

/// Inputs of a row: two of the larger blocks.
const K: usize = 512;

/// Numbers in no order, the same each time (Knuth's MMIX generator).
pub(super) struct Noise(u64);

impl Noise {
    pub(super) fn new() -> Self {
        Self(1)
    }

    fn byte(&mut self) -> u8 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0.to_be_bytes()[0]
    }

    /// Codes of all values; every float among them is a number below 2.
    pub(super) fn tile(&mut self, format: &Format) -> Vec<u8> {
        let blocks = K / format.block;
        let mut rows: Vec<u8> = std::iter::repeat_with(|| self.byte())
            .take(TILE_ROWS * blocks * format.file_bytes)
            .collect();
        for block in rows.chunks_exact_mut(format.file_bytes) {
            format.high_bytes.iter().for_each(|&at| block[at] &= 0xbf);
        }
        let mut tile = vec![0; blocks * format.tile_bytes];
        format.pack(&rows, blocks, &mut tile);
        tile
    }

    fn rows(&mut self) -> Vec<f32> {
        let mut value = || f32::from(self.byte()) / 16.0 - 8.0;
        (0..8 * K).map(|_| value()).collect()
    }
}

/// The family computes what the scalar reference does.
fn agrees(isa: Isa) -> bool {
    let mut noise = Noise::new();
    let x = noise.rows();
    Format::all().all(|format| {
        let tile = noise.tile(format);
        STEPS
            .iter()
            .take_while(|rows| **rows <= most_rows(isa))
            .enumerate()
            .all(|(step, _)| {
                products(isa, format, step, &tile, &x)
                    == products(Isa::SCALAR, format, step, &tile, &x)
            })
    })
}

/// The bits of the products of a tile with the first rows of `x`.
fn products(isa: Isa, format: &Format, step: usize, tile: &[u8], x: &[f32]) -> Vec<u32> {
    let x = &x[..STEPS[step] * K];
    let mut out = vec![[0.0f32; TILE_ROWS]; STEPS[step]];
    let kernel = format.kernel(isa, step);
    if format.acts == ActKind::Floats {
        kernel.run(tile, Acts::Floats(x), &mut out);
    } else {
        let acts = QuantizedRows::new(isa, format.acts, x, K);
        kernel.run(tile, Acts::Quantized(acts.blocks(0, STEPS[step])), &mut out);
    }
    out.as_flattened().iter().map(|v| v.to_bits()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_the_fastest_family_that_is_there() {
        assert_eq!(from_choice(Some("auto")).unwrap(), Isa::best());
        assert_eq!(from_choice(None).unwrap(), Isa::best());
        assert!(active().is_ok_and(agrees));
    }

    #[test]
    fn a_forced_family_is_taken_or_refused_but_never_replaced() {
        for family in Family::ALL {
            match from_choice(Some(family.name())) {
                Ok(got) => assert_eq!(got.family(), family),
                Err(e) => {
                    assert!(family.detect().is_none());
                    assert!(e.to_string().contains(family.name()));
                }
            }
        }
    }

    #[test]
    fn an_unknown_family_is_named_in_the_error() {
        let e = from_choice(Some("mmx")).unwrap_err().to_string();
        assert!(e.contains("mmx") && e.contains("neondot"), "{e}");
    }

    #[test]
    fn every_family_that_this_processor_has_agrees_with_the_reference() {
        for isa in Isa::all() {
            assert!(agrees(isa), "{isa:?}");
        }
    }

    #[test]
    fn products_of_other_activations_are_not_the_same() {
        let mut noise = Noise::new();
        let (x, y) = (noise.rows(), noise.rows());
        for format in Format::all() {
            let tile = noise.tile(format);
            let a = products(Isa::SCALAR, format, 0, &tile, &x);
            let b = products(Isa::SCALAR, format, 0, &tile, &y);
            assert!(a.iter().all(|v| f32::from_bits(*v).is_finite()));
            assert_ne!(a, b, "{format:?}");
        }
    }
}
