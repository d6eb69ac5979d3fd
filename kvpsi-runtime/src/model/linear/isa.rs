//! Instruction sets that this processor has.
//!
//! Owns [`Isa`]: a value of it is the proof that the processor can run the
//! family, for none can be made but by detection. Out of scope: which one is
//! used (`choose`), what its kernels are (`table`).

/// A family of kernels that this processor can run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Isa(Family);

/// A family of kernels, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
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

impl Family {
    pub(super) const ALL: [Family; 6] = [
        Family::Scalar,
        Family::Avx2,
        Family::AvxVnni,
        Family::Avx512Vnni,
        Family::Neon,
        Family::NeonDot,
    ];

    /// The name that `KVPSI_ISA` takes.
    pub(super) fn name(self) -> &'static str {
        match self {
            Family::Scalar => "scalar",
            Family::Avx2 => "avx2",
            Family::AvxVnni => "avxvnni",
            Family::Avx512Vnni => "avx512",
            Family::Neon => "neon",
            Family::NeonDot => "neondot",
        }
    }

    /// The family, if this processor has it.
    pub(super) fn detect(self) -> Option<Isa> {
        self.available().then_some(Isa(self))
    }

    #[cfg(target_arch = "x86_64")]
    fn available(self) -> bool {
        let base = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        match self {
            Family::Scalar => true,
            Family::Avx2 => base,
            Family::AvxVnni => base && is_x86_feature_detected!("avxvnni"),
            Family::Avx512Vnni => {
                base && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Family::Neon | Family::NeonDot => false,
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn available(self) -> bool {
        match self {
            Family::Scalar | Family::Neon => true,
            Family::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
            Family::Avx2 | Family::AvxVnni | Family::Avx512Vnni => false,
        }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn available(self) -> bool {
        self == Family::Scalar
    }
}

impl Isa {
    /// The reference, which every processor can run.
    pub const SCALAR: Isa = Isa(Family::Scalar);

    /// Every family that this processor has, slowest first.
    pub fn all() -> impl DoubleEndedIterator<Item = Isa> {
        Family::ALL.into_iter().filter_map(Family::detect)
    }

    /// The fastest family that this processor has.
    pub fn best() -> Isa {
        Isa::all().next_back().unwrap_or(Isa::SCALAR)
    }

    /// The next family down that this processor has.
    pub(super) fn slower(self) -> Isa {
        let slower = Isa::all().take_while(|isa| *isa != self);
        slower.last().unwrap_or(Isa::SCALAR)
    }

    /// The name that `KVPSI_ISA` takes.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    pub(super) fn family(self) -> Family {
        self.0
    }
}

impl std::fmt::Debug for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_a_family_comes_the_next_that_is_there_and_scalar_last() {
        let best = Isa::best();
        assert!(best.slower() != best || best == Isa::SCALAR);
        assert_eq!(Isa::SCALAR.slower(), Isa::SCALAR);
    }
}
