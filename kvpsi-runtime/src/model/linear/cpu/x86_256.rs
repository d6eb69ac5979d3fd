//! The 256-bit operations that AVX2 and AVX-VNNI share.

/// Expands, within an `impl Simd`, what does not depend on the dot product.
macro_rules! operations_256 {
    () => {
        type I = __m256i;
        type F = __m256;
        type Parts<T: Copy> = [T; 2];
        const LANES: usize = 8;
        const AHEAD: usize = 1536;

        #[inline(always)]
        fn each<T: Copy>(v: T) -> [T; 2] {
            [v; 2]
        }
        ops! {
            fn prefetch(p: *const u8) { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
            fn load(p: *const u8) -> __m256i { _mm256_loadu_si256(p.cast()) }
            fn load_f16(p: *const u8) -> __m256 { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
            fn load_bf16(p: *const u8) -> __m256 {
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))))
            }
            fn load_f32(p: *const u8) -> __m256 { _mm256_loadu_ps(p.cast()) }
            fn load_u8(p: *const u8) -> __m256i { _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())) }
            fn load_i8(p: *const u8) -> __m256i { _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())) }
            fn splat4(p: *const i8) -> __m256i { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
            fn store_f(p: *mut f32, v: __m256) { _mm256_storeu_ps(p, v) }
            fn zero() -> __m256i { _mm256_setzero_si256() }
            fn zero_f() -> __m256 { _mm256_setzero_ps() }
            fn splat(v: i32) -> __m256i { _mm256_set1_epi32(v) }
            fn splat_pair(low: i16, high: i16) -> __m256i {
                _mm256_blend_epi16::<0b1010_1010>(_mm256_set1_epi16(low), _mm256_set1_epi16(high))
            }
            fn splat_f(v: f32) -> __m256 { _mm256_set1_ps(v) }
            fn and_bytes(v: __m256i, mask: u8) -> __m256i {
                _mm256_and_si256(v, _mm256_set1_epi8(mask.cast_signed()))
            }
            fn or(a: __m256i, b: __m256i) -> __m256i { _mm256_or_si256(a, b) }
            fn shr(v: __m256i, by: u8) -> __m256i { _mm256_srl_epi16(v, _mm_cvtsi32_si128(i32::from(by))) }
            fn shl(v: __m256i, by: u8) -> __m256i { _mm256_sll_epi16(v, _mm_cvtsi32_si128(i32::from(by))) }
            fn lookup(v: __m256i, table: &[i8; 16]) -> __m256i {
                _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), v)
            }
            fn add(a: __m256i, b: __m256i) -> __m256i { _mm256_add_epi32(a, b) }
            fn sub(a: __m256i, b: __m256i) -> __m256i { _mm256_sub_epi32(a, b) }
            fn mul32(a: __m256i, b: __m256i) -> __m256i { _mm256_mullo_epi32(a, b) }
            fn shl32(v: __m256i, by: u8) -> __m256i { _mm256_sll_epi32(v, _mm_cvtsi32_si128(i32::from(by))) }
            fn mul_pairs(a: __m256i, b: __m256i) -> __m256i { _mm256_madd_epi16(a, b) }
            fn pair(low: __m256i, high: __m256i) -> __m256i {
                _mm256_blend_epi16::<0b1010_1010>(low, _mm256_slli_epi32::<16>(high))
            }
            fn to_f32(v: __m256i) -> __m256 { _mm256_cvtepi32_ps(v) }
            fn as_f32(v: __m256i) -> __m256 { _mm256_castsi256_ps(v) }
            fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
            fn add_f(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
            fn fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
            fn fnma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fnmadd_ps(a, b, c) }
        }
    };
}
pub(super) use operations_256;
