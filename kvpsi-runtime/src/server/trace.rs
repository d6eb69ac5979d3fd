//! What the reactor sees and does, for those who watch from outside.
//!
//! Owns the way to them: JSON lines in chunks through a broadcast channel of
//! fixed size. A slow reader misses chunks and is told how many. Without a
//! reader nothing is written. Out of scope: HTTP.

use crate::trace::{recorder::Sink, recording::Entry};
use std::{io, sync::Arc};
use tokio::sync::broadcast;

/// Chunks that a watcher may be late by: one every 20 ms.
const ROOM: usize = 256;

/// All who watch.
#[derive(Clone, Debug)]
pub struct Watchers {
    chunks: broadcast::Sender<Arc<str>>,
}

impl Default for Watchers {
    fn default() -> Self {
        Self {
            chunks: broadcast::channel(ROOM).0,
        }
    }
}

impl Watchers {
    /// One more.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Arc<str>> {
        self.chunks.subscribe()
    }

    /// What a recorder's thread hands its entries to.
    #[must_use]
    pub fn sink(&self) -> Box<dyn Sink> {
        Box::new(Chunk {
            to: self.clone(),
            lines: String::new(),
        })
    }
}

struct Chunk {
    to: Watchers,
    lines: String,
}

impl Sink for Chunk {
    fn put(&mut self, entry: &Entry) {
        if self.to.chunks.receiver_count() == 0 {
            return;
        }
        match serde_json::to_string(entry) {
            Ok(line) => {
                self.lines.push_str(&line);
                self.lines.push('\n');
            }
            Err(e) => tracing::warn!("an entry of the trace cannot be written: {e}"),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.lines.is_empty() {
            // The reader may be gone by now.
            let _ = self.to.chunks.send(std::mem::take(&mut self.lines).into());
        }
        Ok(())
    }
}
