//! Tables that say what cannot be, behind right checksums; writers beside
//! each other.

use super::{
    Folder, Key,
    file::{HEAD_BYTES, Matrix, Table, framed, parse},
};
use crate::{model::linear::Format, units::Bytes};

/// A table of one matrix of `Q8_0`, `[16, 32]`, whose tiles have 544 bytes, so
/// nine lines.
fn one(change: impl FnOnce(&mut Matrix)) -> Vec<u8> {
    let q8 = Format::all().find(|f| f.name == "Q8_0").map_or(0, |f| f.id);
    let mut matrix = Matrix {
        tensor: "w".into(),
        format: q8,
        shape: (16, 32),
        at: HEAD_BYTES as u64,
        crc: 0,
    };
    change(&mut matrix);
    let table = Table {
        matrices: vec![matrix],
        ..Table::default()
    };
    framed(9 * 64, &postcard::to_stdvec(&table).unwrap_or_default())
}

#[test]
fn a_matrix_that_does_not_lie_in_its_file_is_refused() {
    assert!(parse(&one(|_| ())).is_ok());
    let wrong: [fn(&mut Matrix); 10] = [
        |m| m.shape.0 = 17,
        |m| m.shape.0 = 0,
        |m| m.shape.0 = u64::MAX,
        |m| m.shape.1 = 64,
        |m| m.shape.1 = 31,
        |m| m.shape = (1 << 31, 1 << 31),
        |m| m.at = 0,
        |m| m.at += 64,
        |m| m.at += 1,
        |m| m.format = 9999,
    ];
    for (i, change) in wrong.into_iter().enumerate() {
        let error = parse(&one(change)).err();
        let error = error.unwrap_or_else(|| panic!("{i}"));
        assert!(error.contains("does not lie in it"), "{i}: {error}");
    }
    let far = parse(&one(|m| m.at = u64::MAX - 63));
    assert!(far.is_err());
}

#[test]
fn the_seed_of_the_fuzz_target_is_a_table() {
    let seed = include_bytes!("../../../../fuzz/seeds/weights/one");
    let (tiles, table) = seed.split_first().unwrap();
    let (_, table) = parse(&framed(usize::from(*tiles) * 64, table)).unwrap();
    assert_eq!(table.matrices[0].tensor, "w");
}

#[test]
fn a_table_that_is_none_is_refused() {
    assert!(parse(&framed(64, b"")).is_err());
    // A list that says it is long, and is not.
    assert!(parse(&framed(64, &[0, 0xff, 0xff, 0xff, 0xff, 0x0f])).is_err());
}

#[test]
fn nobody_takes_a_file_that_was_just_begun_for_one_that_a_crash_left() {
    let dir = tempfile::tempdir().unwrap();
    let write = || {
        let folder = Folder::open(dir.path()).unwrap();
        for _ in 0..500 {
            folder.clean_temporary();
            let (_file, name) = folder.temporary(&Key([0; 32])).unwrap();
            folder.rename(&name, "done").unwrap();
        }
    };
    // Threads stand for containers that share a cache: of one process number.
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(write);
        }
    });
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn what_cannot_be_removed_makes_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let [stays, goes] = ["stays.weights", "goes.weights"].map(|n| dir.path().join(n));
    // Not removed as a file is. On some file systems a folder takes no bytes.
    std::fs::create_dir(&stays).unwrap();
    (0..200).for_each(|i| {
        std::fs::write(stays.join(format!("a name of some length {i}")), "").unwrap();
    });
    let old = std::fs::File::open(&stays).unwrap();
    old.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    std::fs::write(&goes, vec![1; 1 << 16]).unwrap();
    let folder = Folder::make(dir.path(), None).unwrap();
    let bytes = |name: &str| {
        let all = folder.entries();
        all.iter().find(|e| e.name == name).unwrap().bytes
    };
    if bytes("stays.weights") == Bytes::ZERO {
        return;
    }
    folder
        .make_room(Bytes::ZERO, bytes("goes.weights"))
        .unwrap();
    assert!(stays.exists() && !goes.exists());
}
