//! Which instruction set the kernels use.
//!
//! Decided once per process from what the processor reports and from what the
//! kernels then compute ([`super::agrees`]), or forced by `KVPSI_ISA` for tests
//! and comparisons. A forced set that is missing is an error, never a silent
//! fallback: a figure must say what it was made with.

use super::{agrees::agrees, error::LinearError};
use candle_core::quantized::GgmlDType;
use std::sync::OnceLock;

/// A family of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Portable Rust: the reference for all others.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// AVX2 with the 256-bit VNNI dot product (AVX-VNNI).
    AvxVnni,
    /// AVX-512 F, BW, VL with VNNI.
    Avx512Vnni,
    /// NEON as every aarch64 processor has it.
    Neon,
    /// NEON with the dot product of ARMv8.2.
    NeonDot,
}

impl Isa {
    /// Every family, slowest first.
    pub const ALL: [Isa; 6] = [
        Isa::Scalar,
        Isa::Avx2,
        Isa::AvxVnni,
        Isa::Avx512Vnni,
        Isa::Neon,
        Isa::NeonDot,
    ];

    /// The name that `KVPSI_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512Vnni => "avx512",
            Isa::Neon => "neon",
            Isa::NeonDot => "neondot",
        }
    }

    /// Whether this processor can run the family.
    pub fn available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let base = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            match self {
                Isa::Scalar => true,
                Isa::Avx2 => base,
                Isa::AvxVnni => base && is_x86_feature_detected!("avxvnni"),
                Isa::Avx512Vnni => {
                    base && is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512vl")
                        && is_x86_feature_detected!("avx512vnni")
                }
                Isa::Neon | Isa::NeonDot => false,
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            match self {
                Isa::Scalar | Isa::Neon => true,
                Isa::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
                Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni => false,
            }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            self == Isa::Scalar
        }
    }

    /// The fastest family that this processor can run.
    pub fn best() -> Isa {
        Isa::ALL
            .into_iter()
            .rev()
            .find(|isa| isa.available())
            .unwrap_or(Isa::Scalar)
    }

    /// The family that a value of `KVPSI_ISA` asks for; `None` is `auto`.
    ///
    /// # Errors
    /// No such name, or this processor lacks it.
    pub fn from_choice(choice: Option<&str>) -> Result<Isa, LinearError> {
        let Some(name) = choice.filter(|c| !c.is_empty() && *c != "auto") else {
            return Ok(Isa::best());
        };
        let isa = Isa::ALL
            .into_iter()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| LinearError::UnknownIsa(name.to_owned()))?;
        if isa.available() {
            Ok(isa)
        } else {
            Err(LinearError::IsaMissing(isa))
        }
    }

    /// The family of this process: `KVPSI_ISA` if set, else the fastest one
    /// that computes what the reference does. The environment is read once.
    ///
    /// # Errors
    /// As [`Isa::from_choice`]; or the family that `KVPSI_ISA` names computes
    /// something else here.
    pub fn active() -> Result<Isa, LinearError> {
        static ACTIVE: OnceLock<Isa> = OnceLock::new();
        if let Some(isa) = ACTIVE.get() {
            return Ok(*isa);
        }
        let choice = std::env::var("KVPSI_ISA").ok();
        let mut isa = Isa::from_choice(choice.as_deref())?;
        let forced = choice.is_some_and(|c| c == isa.name());
        while !agrees(isa) {
            if forced {
                return Err(LinearError::IsaWrong(isa));
            }
            tracing::error!("{}", LinearError::IsaWrong(isa));
            isa = isa.slower();
        }
        Ok(*ACTIVE.get_or_init(|| isa))
    }

    /// The next family down that this processor has.
    fn slower(self) -> Isa {
        let slower = Isa::ALL.into_iter().take_while(|isa| *isa != self);
        slower
            .filter(|isa| isa.available())
            .last()
            .unwrap_or(Isa::Scalar)
    }
}

/// Whether candle's product of this type runs here: on arm64 those of some K
/// quantizations are written in `sdot` without asking for it (0.11.1,
/// `quantized/neon.rs`).
pub(super) fn candle_can_multiply(dtype: GgmlDType) -> bool {
    use GgmlDType::{Q2K, Q3K, Q5K, Q8K};
    !cfg!(target_arch = "aarch64")
        || Isa::NeonDot.available()
        || !matches!(dtype, Q2K | Q3K | Q5K | Q8K)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_the_fastest_family_that_is_there() {
        let isa = Isa::from_choice(Some("auto")).unwrap();
        assert!(isa.available());
        assert_eq!(isa, Isa::from_choice(None).unwrap());
    }

    #[test]
    fn below_a_family_comes_the_next_that_is_there_and_scalar_last() {
        let best = Isa::best();
        let slower = best.slower();
        assert!(slower.available());
        assert!(slower != best || best == Isa::Scalar);
        assert_eq!(Isa::Scalar.slower(), Isa::Scalar);
        assert!(Isa::active().is_ok_and(agrees));
    }

    #[test]
    fn a_forced_family_is_taken_or_refused_but_never_replaced() {
        for isa in Isa::ALL {
            match Isa::from_choice(Some(isa.name())) {
                Ok(got) => assert_eq!(got, isa),
                Err(e) => {
                    assert!(!isa.available());
                    assert!(e.to_string().contains(isa.name()));
                }
            }
        }
    }

    #[test]
    fn without_the_dot_product_candles_k_quantizations_are_refused() {
        let refused = cfg!(target_arch = "aarch64") && !Isa::NeonDot.available();
        for dtype in [GgmlDType::Q2K, GgmlDType::Q3K, GgmlDType::Q5K] {
            assert_eq!(candle_can_multiply(dtype), !refused);
            let w = super::super::tests::weight(dtype, 4, 256, 1);
            let linear = super::super::Linear::with_isa(Isa::best(), "blk.0.ffn_up.weight", w);
            let error = linear.err().map(|e| e.to_string()).unwrap_or_default();
            assert_eq!(error.contains("blk.0.ffn_up.weight"), refused, "{error}");
        }
        assert!(candle_can_multiply(GgmlDType::Q5_0) && candle_can_multiply(GgmlDType::F16));
    }

    #[test]
    fn an_unknown_family_is_named_in_the_error() {
        let e = Isa::from_choice(Some("mmx")).unwrap_err().to_string();
        assert!(e.contains("mmx") && e.contains("avx2"), "{e}");
    }
}
