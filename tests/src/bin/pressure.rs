//! The children of the kernel tests.

use anyhow::{Context, bail};
use clap::ValueEnum;
use kvpsi::pressure::{self, Choice, SourceConfig};
use std::{env, fs, path::PathBuf, time::Duration};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["read", file, length, pause, procs @ ..] => {
            for p in procs {
                fs::write(p, "0").with_context(|| format!("cannot join {p}"))?;
            }
            kvpsi_tests::storm::read_mapped(
                &PathBuf::from(file),
                Duration::from_millis(length.parse()?),
                Duration::from_millis(pause.parse()?),
            )?;
        }
        ["thrash", file, length, procs @ ..] => {
            for p in procs {
                fs::write(p, "0").with_context(|| format!("cannot join {p}"))?;
            }
            let length = Duration::from_millis(length.parse()?);
            kvpsi_tests::storm::read_anywhere(&PathBuf::from(file), length)?;
        }
        ["grow", bytes, length, procs @ ..] => {
            for p in procs {
                fs::write(p, "0").with_context(|| format!("cannot join {p}"))?;
            }
            kvpsi_tests::storm::touch_anonymous(
                bytes.parse()?,
                Duration::from_millis(length.parse()?),
            );
        }
        ["exits", threads, procs @ ..] => {
            for p in procs {
                fs::write(p, "0").with_context(|| format!("cannot join {p}"))?;
            }
            kvpsi_tests::storm::exit_into_new_pages(threads.parse()?)?;
        }
        ["open", signal] => {
            let choice = Choice::from_str(signal, false).map_err(anyhow::Error::msg)?;
            let opened = pressure::open(choice, &SourceConfig::default())?;
            println!("{}", opened.source.name());
            for note in opened.notes {
                println!("{note}");
            }
        }
        _ => {
            bail!(
                "usage: pressure read FILE MS PAUSE_MS PROCS... | thrash FILE MS PROCS... | grow BYTES MS PROCS... | exits THREADS PROCS... | open SIGNAL"
            )
        }
    }
    Ok(())
}
