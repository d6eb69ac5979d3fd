//! Processor families: the vector operations of each, one file a family.
//!
//! Owns [`super::simd::Simd`] for each family, the kernels' entries with the
//! features enabled, and the quantization of activations. Out of scope: formats.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(super) mod avxvnni;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_128;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon_dot;
#[cfg(target_arch = "x86_64")]
pub(super) mod quantize_avx2;
#[cfg(target_arch = "aarch64")]
pub(super) mod quantize_neon;
pub(super) mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86_256;
