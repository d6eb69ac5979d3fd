//! The bodies of the vector kernels, one for every instruction set.
//!
//! [`tile_kernels!`] is expanded in each family's module, which supplies the
//! primitives: `LANES` rows to a vector, loads, the 4-input dot product of
//! unsigned codes with signed activations, and how its sums become i32. The
//! arithmetic and its order are those of the scalar reference.
//!
//! Each kernel multiplies one tile (16 rows) with `MT` rows of activations, so
//! that codes are unpacked once for `MT` rows.

/// Expands the kernels for one family; see the module's first lines.
macro_rules! tile_kernels {
    ($features:literal) => {
        /// Vectors to a tile.
        const PARTS: usize = TILE_ROWS / LANES;
        /// Bytes of codes in one vector: 4 inputs of `LANES` rows.
        const VECTOR: usize = 4 * LANES;

        /// Asks for the cache lines of as many bytes as are at hand, further on. The
        /// processor's own prefetch stops at pages, and a tile's row is soon
        /// through one.
        #[inline]
        #[target_feature(enable = $features)]
        fn fetch_ahead(p: *const u8, bytes: usize) {
            for line in (0..bytes).step_by(64) {
                prefetch(p.wrapping_add(AHEAD + line));
            }
        }

        /// Products of the tile's 16 rows with `MT` rows of activations.
        ///
        /// # Safety
        /// The processor has the family's features. `tile` holds whole blocks
        /// of `format`, and `acts` `MT` rows with as many inputs as the tile.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn tile_rows<const MT: usize>(
            format: Format,
            tile: &[u8],
            acts: &[ActBlock],
            out: &mut [[f32; TILE_ROWS]; MT],
        ) {
            let blocks = tile.len() / format.tile_block_bytes();
            debug_assert_eq!(tile.len() % format.tile_block_bytes(), 0);
            debug_assert_eq!(acts.len() * QUANT, MT * blocks * format.block_weights());
            let (tile, acts) = (tile.as_ptr(), acts.as_ptr());
            // SAFETY: the caller's promises are the kernels'.
            unsafe {
                match format {
                    Format::Q4_0 => q4::<MT, false>(tile, blocks, acts, out),
                    Format::Q4_1 => q4::<MT, true>(tile, blocks, acts, out),
                    Format::Q8_0 => q8::<MT>(tile, blocks, acts, out),
                    Format::Q4K => q4k::<MT>(tile, blocks, acts, out),
                    Format::Q6K => q6k::<MT>(tile, blocks, acts, out),
                }
            }
        }

        /// Adds the products of one group of nibbles.
        ///
        /// # Safety
        /// The processor has the family's features. `NIBBLES` bytes at `codes`; at `acts + r * stride` a block for each
        /// r < MT.
        // Without `target_feature`, which `inline(always)` excludes: it becomes
        // part of a kernel that has it. Left to itself the compiler calls it
        // and the sums go through memory, at half the speed.
        #[inline(always)]
        unsafe fn nibbles<const MT: usize>(
            codes: *const u8,
            acts: *const ActBlock,
            stride: usize,
        ) -> [[I; PARTS]; MT] {
            // SAFETY: the caller's promises.
            unsafe {
                let mut sums = [[zero(); PARTS]; MT];
                // Written out: the compiler rolls it up otherwise.
                eight_codes::<MT>(0, codes, acts, stride, &mut sums);
                eight_codes::<MT>(1, codes, acts, stride, &mut sums);
                eight_codes::<MT>(2, codes, acts, stride, &mut sums);
                eight_codes::<MT>(3, codes, acts, stride, &mut sums);
                sums
            }
        }

        /// Adds the products of inputs `4 g` to `4 g + 3`, and 16 after them.
        ///
        /// # Safety
        /// As [`nibbles`]; `g < 4`.
        #[inline(always)]
        unsafe fn eight_codes<const MT: usize>(
            g: usize,
            codes: *const u8,
            acts: *const ActBlock,
            stride: usize,
            sums: &mut [[I; PARTS]; MT],
        ) {
            // SAFETY: the features are there; g * 64 + 64 bytes are within the
            // group, and 4 * g + 20 codes within each block.
            unsafe {
                let mut low = [zero(); PARTS];
                let mut high = [zero(); PARTS];
                for p in 0..PARTS {
                    let v = load(codes.add(g * 64 + p * VECTOR));
                    low[p] = low_nibbles(v);
                    high[p] = high_nibbles(v);
                }
                for r in 0..MT {
                    let (a, b) = {
                        let q = (*acts.add(r * stride)).q.as_ptr();
                        (splat4(q.add(4 * g)), splat4(q.add(16 + 4 * g)))
                    };
                    for p in 0..PARTS {
                        sums[r][p] = dot(sums[r][p], low[p], a);
                        sums[r][p] = dot(sums[r][p], high[p], b);
                    }
                }
            }
        }

        /// Q4_0 and, with `MIN`, Q4_1.
        ///
        /// # Safety
        /// As [`tile_rows`].
        #[target_feature(enable = $features)]
        unsafe fn q4<const MT: usize, const MIN: bool>(
            tile: *const u8,
            blocks: usize,
            acts: *const ActBlock,
            out: &mut [[f32; TILE_ROWS]; MT],
        ) {
            let bytes = NIBBLES + if MIN { 2 * HALVES } else { HALVES };
            let mut acc = [[zero_f(); PARTS]; MT];
            for b in 0..blocks {
                // SAFETY: b is a block of the tile and of each row.
                unsafe {
                    let (t, a) = (tile.add(b * bytes), acts.add(b));
                    fetch_ahead(t, bytes);
                    let sums = nibbles::<MT>(t, a, blocks);
                    for p in 0..PARTS {
                        let d = load_f16(t.add(NIBBLES + p * 2 * LANES));
                        let m = if MIN {
                            load_f16(t.add(NIBBLES + HALVES + p * 2 * LANES))
                        } else {
                            zero_f()
                        };
                        for r in 0..MT {
                            let a = &*a.add(r * blocks);
                            let mut sum = fold(sums[r][p]);
                            if !MIN {
                                sum = sub(sum, splat(8 * a.sum));
                            }
                            acc[r][p] = fma(to_f32(sum), mul(d, splat_f(a.d)), acc[r][p]);
                            if MIN {
                                acc[r][p] = fma(m, splat_f(a.s), acc[r][p]);
                            }
                        }
                    }
                }
            }
            write::<MT>(&acc, out);
        }

        /// Q8_0.
        ///
        /// # Safety
        /// As [`tile_rows`].
        #[target_feature(enable = $features)]
        unsafe fn q8<const MT: usize>(
            tile: *const u8,
            blocks: usize,
            acts: *const ActBlock,
            out: &mut [[f32; TILE_ROWS]; MT],
        ) {
            let bytes = BYTES + HALVES;
            let mut acc = [[zero_f(); PARTS]; MT];
            for b in 0..blocks {
                // SAFETY: b is a block of the tile and of each row.
                unsafe {
                    let (t, a) = (tile.add(b * bytes), acts.add(b));
                    fetch_ahead(t, bytes);
                    let mut sums = [[zero(); PARTS]; MT];
                    for g in 0..8 {
                        let mut w = [prepare8(zero()); PARTS];
                        for p in 0..PARTS {
                            w[p] = prepare8(load(t.add(g * 64 + p * VECTOR)));
                        }
                        for r in 0..MT {
                            let q = splat4((*a.add(r * blocks)).q.as_ptr().add(4 * g));
                            for p in 0..PARTS {
                                sums[r][p] = dot8(sums[r][p], w[p], q);
                            }
                        }
                    }
                    for p in 0..PARTS {
                        let d = load_f16(t.add(BYTES + p * 2 * LANES));
                        for r in 0..MT {
                            let a = &*a.add(r * blocks);
                            let sum = sub(sums[r][p], splat(Q8_OFFSET * a.sum));
                            acc[r][p] = fma(to_f32(sum), mul(d, splat_f(a.d)), acc[r][p]);
                        }
                    }
                }
            }
            write::<MT>(&acc, out);
        }

        /// Q4_K.
        ///
        /// # Safety
        /// As [`tile_rows`].
        #[target_feature(enable = $features)]
        unsafe fn q4k<const MT: usize>(
            tile: *const u8,
            blocks: usize,
            acts: *const ActBlock,
            out: &mut [[f32; TILE_ROWS]; MT],
        ) {
            let (bytes, stride) = (Q4K_D + 2 * HALVES, 8 * blocks);
            let mut acc = [[zero_f(); PARTS]; MT];
            for b in 0..blocks {
                // SAFETY: b is a block of the tile and of each row.
                unsafe {
                    let (t, a) = (tile.add(b * bytes), acts.add(8 * b));
                    let mut dots = [[zero(); PARTS]; MT];
                    let mut mins = [[zero(); PARTS]; MT];
                    for group in 0..8 {
                        fetch_ahead(t.wrapping_add(group * NIBBLES), NIBBLES);
                        let a = a.add(group);
                        let sums = nibbles::<MT>(t.add(group * NIBBLES), a, stride);
                        for p in 0..PARTS {
                            let at = group * TILE_ROWS + p * LANES;
                            let scale = load_u8(t.add(Q4K_SCALES + at));
                            let min = load_u8(t.add(Q4K_MINS + at));
                            for r in 0..MT {
                                let sum = (*a.add(r * stride)).sum;
                                dots[r][p] = add(dots[r][p], fold_scaled(sums[r][p], scale));
                                mins[r][p] = add(mins[r][p], mul_pairs(min, splat(sum)));
                            }
                        }
                    }
                    for p in 0..PARTS {
                        let d = load_f16(t.add(Q4K_D + p * 2 * LANES));
                        let dmin = load_f16(t.add(Q4K_D + HALVES + p * 2 * LANES));
                        for r in 0..MT {
                            let step = splat_f((*a.add(r * stride)).d);
                            acc[r][p] = fma(to_f32(dots[r][p]), mul(d, step), acc[r][p]);
                            acc[r][p] = fnma(to_f32(mins[r][p]), mul(dmin, step), acc[r][p]);
                        }
                    }
                }
            }
            write::<MT>(&acc, out);
        }

        /// Q6_K.
        ///
        /// # Safety
        /// As [`tile_rows`].
        #[target_feature(enable = $features)]
        unsafe fn q6k<const MT: usize>(
            tile: *const u8,
            blocks: usize,
            acts: *const ActBlock,
            out: &mut [[f32; TILE_ROWS]; MT],
        ) {
            let (bytes, stride) = (Q6K_D + HALVES, 8 * blocks);
            let mut acc = [[zero_f(); PARTS]; MT];
            for b in 0..blocks {
                // SAFETY: b is a block of the tile and of each row.
                unsafe {
                    let (t, a) = (tile.add(b * bytes), acts.add(8 * b));
                    let mut dots = [[zero(); PARTS]; MT];
                    for group in 0..8 {
                        let (t_group, a) = (t.add(group * Q6K_GROUP), a.add(group));
                        fetch_ahead(t_group, Q6K_GROUP);
                        for p in 0..PARTS {
                            let at = Q6K_SCALES + 2 * group * TILE_ROWS + p * LANES;
                            let scales = [load_i8(t.add(at)), load_i8(t.add(at + TILE_ROWS))];
                            let codes = t_group.add(p * VECTOR);
                            for (h, scale) in scales.into_iter().enumerate() {
                                let mut high = load(codes.add(NIBBLES + h * 64));
                                let mut sums = [zero(); MT];
                                for g in 0..4 {
                                    let v = load(codes.add(g * 64));
                                    let low = if h == 0 {
                                        low_nibbles(v)
                                    } else {
                                        high_nibbles(v)
                                    };
                                    let w = with_high_bits(low, high);
                                    high = shift_right_2(high);
                                    for r in 0..MT {
                                        let q = (*a.add(r * stride)).q.as_ptr();
                                        sums[r] = dot(sums[r], w, splat4(q.add(16 * h + 4 * g)));
                                        if g % U6_RUN == U6_RUN - 1 {
                                            dots[r][p] =
                                                add(dots[r][p], fold_scaled(sums[r], scale));
                                            sums[r] = zero();
                                        }
                                    }
                                }
                            }
                            // The codes' offset of 32, taken off both halves.
                            let pair = pair(scales[0], scales[1]);
                            for r in 0..MT {
                                let [first, last] = (*a.add(r * stride)).halves;
                                let off = mul_pairs(pair, splat_pair(first, last));
                                dots[r][p] = sub(dots[r][p], times_32(off));
                            }
                        }
                    }
                    for p in 0..PARTS {
                        let d = load_f16(t.add(Q6K_D + p * 2 * LANES));
                        for r in 0..MT {
                            let step = splat_f((*a.add(r * stride)).d);
                            acc[r][p] = fma(to_f32(dots[r][p]), mul(d, step), acc[r][p]);
                        }
                    }
                }
            }
            write::<MT>(&acc, out);
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn write<const MT: usize>(acc: &[[F; PARTS]; MT], out: &mut [[f32; TILE_ROWS]; MT]) {
            for (acc, out) in acc.iter().zip(out) {
                for (p, &v) in acc.iter().enumerate() {
                    // SAFETY: PARTS * LANES is TILE_ROWS.
                    unsafe { store_f(out.as_mut_ptr().add(p * LANES), v) };
                }
            }
        }
    };
}
pub(super) use tile_kernels;
