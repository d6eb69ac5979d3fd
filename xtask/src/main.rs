//! kvpsi's build tasks.
fn main() {}
