//! The 256-bit primitives that AVX2 and AVX-VNNI share.

/// Expands the primitives that do not depend on the dot product.
macro_rules! primitives_256 {
    ($features:literal) => {
        type I = __m256i;
        type F = __m256;
        /// Rows in a vector.
        const LANES: usize = 8;
        /// Bytes ahead of the block in hand that are fetched.
        const AHEAD: usize = 1536;

        #[inline]
        #[target_feature(enable = $features)]
        fn prefetch(p: *const u8) {
            _mm_prefetch::<_MM_HINT_T0>(p.cast())
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn zero() -> I {
            _mm256_setzero_si256()
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn zero_f() -> F {
            _mm256_setzero_ps()
        }
        /// # Safety
        /// 32 bytes are readable.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn load(p: *const u8) -> I {
            // SAFETY: the caller's promise.
            unsafe { _mm256_loadu_si256(p.cast()) }
        }
        /// 8 f16 values.
        ///
        /// # Safety
        /// 16 bytes are readable.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn load_f16(p: *const u8) -> F {
            // SAFETY: the caller's promise.
            _mm256_cvtph_ps(unsafe { _mm_loadu_si128(p.cast()) })
        }
        /// 8 bytes to i32.
        ///
        /// # Safety
        /// 8 bytes are readable.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn load_u8(p: *const u8) -> I {
            // SAFETY: the caller's promise.
            _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(p.cast()) })
        }
        /// 8 signed bytes to i32.
        ///
        /// # Safety
        /// 8 bytes are readable.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn load_i8(p: *const u8) -> I {
            // SAFETY: the caller's promise.
            _mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(p.cast()) })
        }
        /// 4 codes in every row's place.
        ///
        /// # Safety
        /// 4 bytes are readable.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn splat4(p: *const i8) -> I {
            // SAFETY: the caller's promise.
            _mm256_set1_epi32(unsafe { p.cast::<i32>().read_unaligned() })
        }
        /// # Safety
        /// 8 floats are writable.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn store_f(p: *mut f32, v: F) {
            // SAFETY: the caller's promise.
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn splat(v: i32) -> I {
            _mm256_set1_epi32(v)
        }
        /// Two i16 in every i32.
        #[inline]
        #[target_feature(enable = $features)]
        fn splat_pair(low: i16, high: i16) -> I {
            let [a, b] = low.to_ne_bytes();
            let [c, d] = high.to_ne_bytes();
            splat(i32::from_ne_bytes([a, b, c, d]))
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn splat_f(v: f32) -> F {
            _mm256_set1_ps(v)
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn low_nibbles(v: I) -> I {
            _mm256_and_si256(v, _mm256_set1_epi8(15))
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn high_nibbles(v: I) -> I {
            low_nibbles(_mm256_srli_epi16::<4>(v))
        }
        /// The low nibbles with bits 0 and 1 of `high` above them.
        #[inline]
        #[target_feature(enable = $features)]
        fn with_high_bits(low: I, high: I) -> I {
            let two = _mm256_and_si256(high, _mm256_set1_epi8(3));
            _mm256_or_si256(low, _mm256_slli_epi16::<4>(two))
        }
        /// Shifts bits between bytes: only a byte's lower bits are used after.
        #[inline]
        #[target_feature(enable = $features)]
        fn shift_right_2(v: I) -> I {
            _mm256_srli_epi16::<2>(v)
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn add(a: I, b: I) -> I {
            _mm256_add_epi32(a, b)
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn sub(a: I, b: I) -> I {
            _mm256_sub_epi32(a, b)
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn times_32(v: I) -> I {
            _mm256_slli_epi32::<5>(v)
        }
        /// Sum of the products of the two i16 in each i32.
        #[inline]
        #[target_feature(enable = $features)]
        fn mul_pairs(a: I, b: I) -> I {
            _mm256_madd_epi16(a, b)
        }
        /// i32 values that fit i16, `low` and `high` side by side.
        #[inline]
        #[target_feature(enable = $features)]
        fn pair(low: I, high: I) -> I {
            _mm256_blend_epi16::<0b1010_1010>(low, _mm256_slli_epi32::<16>(high))
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn to_f32(v: I) -> F {
            _mm256_cvtepi32_ps(v)
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn mul(a: F, b: F) -> F {
            _mm256_mul_ps(a, b)
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn fma(a: F, b: F, c: F) -> F {
            _mm256_fmadd_ps(a, b, c)
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn fnma(a: F, b: F, c: F) -> F {
            _mm256_fnmadd_ps(a, b, c)
        }
    };
}
pub(super) use primitives_256;
