//! A manifest of Ollama's store, and a name in it: neither leads out of the store.

#![no_main]

use kvpsi::model::ollama::{blob, manifest};
use libfuzzer_sys::fuzz_target;
use std::path::{Component, Path};

fuzz_target!(|bytes: &[u8]| {
    let inside = |path: &Path, depth| {
        let usual = |part| matches!(part, Component::Normal(_));
        assert!(path.components().all(usual) && path.components().count() == depth);
    };
    if let Ok(found) = blob(bytes) {
        inside(Path::new(&found), 2);
    }
    if let Some(found) = str::from_utf8(bytes)
        .ok()
        .and_then(|name| manifest(name).ok())
    {
        inside(&found, 5);
    }
});
