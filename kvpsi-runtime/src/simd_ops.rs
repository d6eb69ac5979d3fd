//! Vector operations of a processor family, a line each.

/// Expands one-line operations of an `impl` for a family.
macro_rules! ops {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $body:expr })*) => {$(
        #[inline(always)]
        unsafe fn $name($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the processor has the family's features, and what is
            // read or written is there: the caller's promises.
            unsafe { $body }
        }
    )*};
}
pub(crate) use ops;
