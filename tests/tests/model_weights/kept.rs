//! Files that are there: stale ones, how far the check of one is, and whose
//! folders they lie in.

use super::{Home, PLENTY};
use kvpsi::{
    model::{
        decoder::Decoder,
        gguf::Gguf,
        linear::{Format, Packed},
        weights::{Folder, Place, Weights, file::parse},
    },
    units::Bytes,
};
use kvpsi_tests::{skip, tiny::Tiny};
use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt, PermissionsExt},
};

#[test]
fn a_file_of_another_version_model_or_layout_is_refused_and_made_anew() {
    let home = Home::new();
    home.load(&home.model, PLENTY);
    let file = home.only_file();
    let whole = fs::read(&file).unwrap();
    // The version stands behind the magic number.
    let mut newer = whole.clone();
    newer[8] += 1;
    let error = parse(&newer).unwrap_err();
    assert!(error.contains("has version 2, not 1"), "{error}");
    // What another model's or layout's key has under this name.
    let other = Home::new();
    let mut tiny = Tiny::open(&other.model).unwrap();
    tiny.metadata.remove("general.dtype");
    tiny.write(&other.model).unwrap();
    other.load(&other.model, PLENTY);
    let others = fs::read(other.only_file()).unwrap();
    for stale in [newer, others] {
        fs::write(&file, &stale).unwrap();
        let place = home.load(&home.model, PLENTY);
        assert!(matches!(place, Place::Made(_)), "{place:?}");
        assert_eq!(fs::read(home.only_file()).unwrap(), whole);
    }
    // Another layout has another name, and goes when the next file is made.
    let name = format!("{}.weights", "5a".repeat(16));
    fs::rename(&file, file.with_file_name(name)).unwrap();
    assert!(matches!(home.load(&home.model, PLENTY), Place::Made(_)));
    assert_eq!(home.only_file(), file);
}

#[test]
fn the_check_of_a_file_tells_how_far_it_is() {
    let home = Home::new();
    home.load(&home.model, PLENTY);
    let (_, table) = parse(&fs::read(home.only_file()).unwrap()).unwrap();
    let bytes = table.matrices.iter().map(|m| {
        let format = Format::by_id(m.format).unwrap();
        let [n, k] = [m.shape.0, m.shape.1].map(|n| usize::try_from(n).unwrap());
        Packed::bytes_of(format, n, k).unwrap() as u64
    });
    let all = Bytes(bytes.sum());
    let folder = Folder::make(&home.folder(), None).unwrap();
    let files = vec![File::open(&home.model).unwrap()];
    let weights = Weights::hold(folder, PLENTY, &home.model, files).unwrap();
    let gguf = Gguf::open(&home.model).unwrap();
    let mut told = Vec::new();
    let decoder = Decoder::load_kept(&gguf, &weights, &mut |done, of| told.push((done, of)));
    assert_eq!(decoder.unwrap().place(), Place::Mapped);
    assert!(told.iter().all(|(_, of)| *of == all), "{told:?} of {all}");
    assert!(told.is_sorted() && told[0].0 > Bytes::ZERO, "{told:?}");
    assert_eq!(told.last().unwrap().0, all);
}

#[test]
fn every_folder_that_is_made_for_another_user_is_that_users() {
    let test = "every_folder_that_is_made_for_another_user_is_that_users";
    if !rustix::process::geteuid().is_root() {
        return skip(test, "run it as root");
    }
    let dir = tempfile::tempdir().unwrap();
    let weights = dir.path().join(".cache/kvpsi/weights");
    for _ in 0..2 {
        Folder::make(&weights, Some(65534)).unwrap();
        let owner = |path| fs::metadata(path).unwrap();
        for made in weights.ancestors().take(3) {
            let meta = owner(made);
            assert_eq!(meta.uid(), 65534, "{}", made.display());
            assert_eq!(meta.permissions().mode() & 0o7777, 0o700);
        }
        assert_eq!(owner(dir.path()).uid(), 0);
    }
}
