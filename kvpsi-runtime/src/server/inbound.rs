//! What requests hold outside the KV budget: bodies, the text that is made into
//! tokens, and answers that are made at once (tokens, texts, vectors).
//!
//! Owns the bounds that all requests share. Invariants: bodies of more than
//! [`SMALL`] bytes reserve their bytes of a common total before a byte is read,
//! in the order in which they came; who brings too little while others wait
//! loses its place; so many prompts at once are made into tokens, and no more;
//! an answer that is made at once is counted until its last byte is sent.
//! All of it is counted. Out of scope: what a body holds, and KV memory.

use super::{connections::Connection, error::ApiError};
use axum::body::Body;
use http_body_util::BodyExt;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bodies of up to so many bytes reserve nothing: all connections together may
/// hold that much.
const SMALL: usize = 16 << 10;
/// Bodies of the greatest size that are read at once.
const LARGE_AT_ONCE: usize = 4;
/// What a large body must bring while others wait for its place: from a second
/// on, so many bytes a second.
const LEAST_RATE: u64 = 64 << 10;
/// Bytes of answers that are made at once, and of the inputs that they wait for:
/// 2048 vectors of 4096 numbers and their texts.
const MOST_ANSWERS: usize = 48 << 20;
/// Between two looks whether others wait.
const LOOK: Duration = Duration::from_millis(250);

/// What all requests hold together.
#[derive(Debug)]
pub(super) struct Inbound {
    /// Bytes that may be reserved.
    bodies: Arc<Semaphore>,
    /// All of these.
    pub total: usize,
    /// Most bytes of a body.
    most: usize,
    held: AtomicUsize,
    waiting: AtomicUsize,
    turns: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    /// Places in `turns`.
    pub at_once: usize,
    /// Bytes of bodies since the start.
    pub taken: AtomicU64,
}

/// A body, and its share of the total until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    bytes: Vec<u8>,
    all: Arc<Inbound>,
    _place: Option<OwnedSemaphorePermit>,
}

impl std::ops::Deref for Held {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Held {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.all.held.fetch_add(bytes.len(), Relaxed);
        self.all.taken.fetch_add(bytes.len() as u64, Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.held.fetch_sub(self.bytes.len(), Relaxed);
    }
}

/// One of those who wait.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(all: &'a AtomicUsize) -> Self {
        all.fetch_add(1, Relaxed);
        Self(all)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Inbound {
    /// Bodies of up to `most` bytes, and prompts made into tokens by up to
    /// `at_once` threads.
    pub fn new(most: usize, at_once: usize) -> Arc<Self> {
        // As many as a semaphore counts.
        let most = most.min(u32::MAX as usize / LARGE_AT_ONCE);
        let total = most * LARGE_AT_ONCE;
        Arc::new(Self {
            bodies: Arc::new(Semaphore::new(total)),
            total,
            most,
            held: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            turns: Arc::new(Semaphore::new(at_once.max(1))),
            answers: Arc::new(Semaphore::new(MOST_ANSWERS)),
            at_once: at_once.max(1),
            taken: AtomicU64::new(0),
        })
    }

    /// Bytes of bodies that are held now.
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// Bytes of answers that are held now.
    pub fn answers(&self) -> usize {
        MOST_ANSWERS - self.answers.available_permits()
    }

    /// Room for an answer of so many bytes until it is dropped; `what` of the
    /// request asks for them.
    pub fn keep(&self, bytes: usize, what: &str) -> Result<OwnedSemaphorePermit, ApiError> {
        let many = u32::try_from(bytes).unwrap_or(u32::MAX);
        if bytes > MOST_ANSWERS {
            return Err(ApiError::param(
                what,
                format!(
                    "`{what}` asks for {bytes} bytes at once, and {MOST_ANSWERS} are given: send it in parts"
                ),
            ));
        }
        let place = self.answers.clone().try_acquire_many_owned(many);
        place.map_err(|_| {
            ApiError::unavailable(
                "answers",
                format!("other answers hold {} of the {MOST_ANSWERS} bytes that they may take together; try again later", self.answers()),
            )
        })
    }

    /// Bodies that wait for others to be done with.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// Prompts that are made into tokens now.
    pub fn preparing(&self) -> usize {
        self.at_once - self.turns.available_permits()
    }

    /// Reads a body of `said` bytes, where its length was said, within `time`.
    pub async fn read(
        self: &Arc<Self>,
        mut body: Body,
        said: Option<u64>,
        time: Duration,
        connection: Option<&Connection>,
    ) -> Result<Held, ApiError> {
        if said.is_some_and(|l| l > self.most as u64) {
            return Err(ApiError::too_large(self.most));
        }
        let end = tokio::time::sleep(time);
        tokio::pin!(end);
        let wanted = said.map_or(self.most, |l| usize::try_from(l).unwrap_or(self.most));
        let place = match wanted {
            0..=SMALL => None,
            _ => {
                let _waiting = Waiting::new(&self.waiting);
                // A client that waits for its place is not one that stalls.
                tokio::select! {
                    place = self.place(wanted) => Some(place?),
                    () = &mut end => {
                        return Err(ApiError::unavailable("bodies", format!(
                            "other requests hold all of the {} bytes that bodies may take together; try again later",
                            self.total
                        )));
                    }
                }
            }
        };
        let reserved = place.is_some();
        let mut held = Held {
            bytes: Vec::new(),
            all: self.clone(),
            _place: place,
        };
        let reading = Instant::now();
        let mut look = tokio::time::interval(LOOK);
        let cut = async {
            match connection {
                Some(c) => c.cut.notified().await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(cut);
        if let Some(c) = connection {
            c.reading();
        }
        let read = loop {
            tokio::select! {
                frame = body.frame() => match frame {
                    None => break Ok(()),
                    Some(Err(e)) => break Err(ApiError::bad(format!("the body could not be read: {e}"))),
                    Some(Ok(frame)) => if let Some(data) = frame.data_ref() {
                        if held.bytes.len() + data.len() > self.most {
                            break Err(ApiError::too_large(self.most));
                        }
                        held.push(data);
                        if let Some(c) = connection {
                            c.reading();
                        }
                    }
                },
                () = &mut end => break Err(ApiError::slow()),
                () = &mut cut => break Err(ApiError::unavailable(
                    "connections",
                    "this request sent nothing for a while, and others want its connection; try again",
                )),
                _ = look.tick() => {
                    let seconds = reading.elapsed().as_secs();
                    let late = (held.bytes.len() as u64) < seconds * LEAST_RATE;
                    if reserved && late && self.waiting() > 0 {
                        break Err(ApiError::slow());
                    }
                }
            }
        };
        if let Some(c) = connection {
            c.answering();
        }
        read?;
        Ok(held)
    }

    async fn place(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let many = u32::try_from(bytes).unwrap_or(u32::MAX);
        let place = self.bodies.clone().acquire_many_owned(many).await;
        place.map_err(|e| ApiError::internal(e.to_string()))
    }

    /// The turn to parse a body and make its prompt into tokens, until it is
    /// dropped; those who came first have it first.
    pub async fn turn(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let turn = self.turns.clone().acquire_owned().await;
        turn.map_err(|e| ApiError::internal(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;
    use std::convert::Infallible;

    /// A body that sends one piece and then nothing.
    fn stalled(first: usize) -> Body {
        let piece = tokio_stream::once(Ok::<_, Infallible>(vec![b'x'; first]));
        Body::from_stream(tokio_stream::StreamExt::chain(
            piece,
            tokio_stream::pending(),
        ))
    }

    #[tokio::test]
    async fn bodies_wait_for_bytes_that_others_hold_and_give_them_back() {
        let all = Inbound::new(1 << 20, 1);
        let whole = || Body::from(vec![b'x'; 1 << 20]);
        let time = Duration::from_millis(200);
        let mut held = Vec::new();
        for _ in 0..LARGE_AT_ONCE {
            held.push(all.read(whole(), Some(1 << 20), time, None).await.unwrap());
        }
        assert_eq!(all.held(), LARGE_AT_ONCE << 20);
        // Small ones need no place.
        let small = all
            .read(Body::from("{}"), Some(2), time, None)
            .await
            .unwrap();
        assert_eq!(&*small, b"{}");
        let e = all
            .read(whole(), Some(1 << 20), time, None)
            .await
            .unwrap_err();
        assert_eq!(
            (e.status, e.code),
            (StatusCode::SERVICE_UNAVAILABLE, Some("bodies"))
        );
        assert_eq!(all.waiting(), 0);
        held.pop();
        assert!(all.read(whole(), None, time, None).await.is_ok());
        drop(held);
        drop(small);
        assert_eq!((all.held(), all.bodies.available_permits()), (0, all.total));
    }

    #[tokio::test]
    async fn a_body_that_stalls_keeps_its_place_only_while_no_other_waits() {
        let all = Inbound::new(1 << 20, 1);
        let time = Duration::from_secs(60);
        let read = |body: Body| {
            let all = all.clone();
            tokio::spawn(async move { all.read(body, Some(1 << 20), time, None).await })
        };
        let slow: Vec<_> = (0..LARGE_AT_ONCE).map(|_| read(stalled(100))).collect();
        tokio::time::sleep(Duration::from_millis(1600)).await;
        assert!(slow.iter().all(|s| !s.is_finished()));
        let good = read(Body::from(vec![b'x'; 1 << 20]));
        let began = Instant::now();
        assert_eq!(good.await.unwrap().unwrap().len(), 1 << 20);
        assert!(began.elapsed() < Duration::from_secs(1));
        let ended: Vec<_> = slow.iter().filter(|s| s.is_finished()).collect();
        assert!(!ended.is_empty());
    }

    #[test]
    fn answers_that_are_made_at_once_share_their_bytes() {
        let all = Inbound::new(1 << 20, 1);
        let kept = all.keep(MOST_ANSWERS - 10, "input").unwrap();
        assert_eq!(all.answers(), MOST_ANSWERS - 10);
        let e = all.keep(11, "input").unwrap_err();
        assert_eq!(
            (e.status, e.code),
            (StatusCode::SERVICE_UNAVAILABLE, Some("answers"))
        );
        assert!(all.keep(10, "input").is_ok());
        let e = all.keep(MOST_ANSWERS + 1, "input").unwrap_err();
        assert_eq!(
            (e.status, e.param.as_deref()),
            (StatusCode::BAD_REQUEST, Some("input"))
        );
        drop(kept);
        assert_eq!(all.answers(), 0);
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_or_too_late_is_refused() {
        let all = Inbound::new(1 << 20, 1);
        let time = Duration::from_millis(300);
        for (body, said, status) in [
            (Body::empty(), Some(1 << 21), StatusCode::PAYLOAD_TOO_LARGE),
            (
                Body::from(vec![0; (1 << 20) + 1]),
                None,
                StatusCode::PAYLOAD_TOO_LARGE,
            ),
            (stalled(5), Some(500), StatusCode::REQUEST_TIMEOUT),
        ] {
            let e = all.read(body, said, time, None).await.unwrap_err();
            assert_eq!(e.status, status);
        }
        assert_eq!(all.held(), 0);
    }
}
