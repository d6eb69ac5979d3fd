//! Open connections: how many there are, what each is at, and which gives way.
//!
//! Owns the places for connections. Invariants: a new connection is never kept
//! waiting by clients that send nothing: beyond the limit the connection that
//! has been without a request for longest is closed, else the body that has
//! brought no byte for longest ends with an error; where every connection is
//! being answered, some more are served what says how the server is, and
//! nothing else. Out of scope: sockets, and what is asked.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::sync::{Notify, Semaphore};

/// Connections beyond the limit, for health and metrics.
pub(super) const RESERVED: usize = 32;
/// How long a connection without a request is never closed: its request may be
/// on the way.
const GRACE: Duration = Duration::from_millis(50);
/// A body that brought no byte for so long may give way.
const STALLED: Duration = Duration::from_secs(1);
/// How long a request of a reserved connection waits for a place of its own,
/// and how often it looks: until a body could have stalled.
const PATIENCE: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(50);

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    Tcp(SocketAddr),
    /// The Unix socket of `--admin-socket`.
    Admin,
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Admin => f.write_str("admin-socket"),
        }
    }
}

/// What a connection is at, and since when.
#[derive(Clone, Copy, Debug)]
enum At {
    /// No request, or a part of a request's head.
    Idle(Instant),
    /// A body is being read; its last byte came then.
    Body(Instant),
    Answer,
}

/// One open connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub client: Client,
    /// It is beyond the limit: only health and metrics are answered.
    reserved: AtomicBool,
    at: Mutex<At>,
    /// To be closed.
    pub close: Notify,
    /// The body that is being read is to end with an error.
    pub cut: Notify,
}

impl Connection {
    /// One that takes no place.
    pub fn new(client: Client, reserved: bool) -> Arc<Self> {
        Arc::new(Self {
            client,
            reserved: AtomicBool::new(reserved),
            at: Mutex::new(At::Idle(Instant::now())),
            close: Notify::new(),
            cut: Notify::new(),
        })
    }

    fn at(&self) -> MutexGuard<'_, At> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is beyond the limit.
    pub fn is_reserved(&self) -> bool {
        self.reserved.load(Relaxed)
    }

    /// A request's head came.
    pub fn answering(&self) {
        *self.at() = At::Answer;
    }

    /// A request's body begins, or bytes of it came.
    pub fn reading(&self) {
        *self.at() = At::Body(Instant::now());
    }

    /// A response is sent.
    pub fn idle(&self) {
        *self.at() = At::Idle(Instant::now());
    }
}

/// All open connections.
#[derive(Debug)]
pub(super) struct Connections {
    open: Mutex<Vec<Arc<Connection>>>,
    most: usize,
    /// Of the reserved ones, those that may wait for a place: the others are
    /// for looks.
    waiting: Semaphore,
    /// Closed to make room, without a request.
    pub closed_idle: AtomicU64,
    /// Bodies that ended with an error to make room.
    pub closed_stalled: AtomicU64,
}

impl Connections {
    pub fn new(most: usize) -> Self {
        Self {
            open: Mutex::default(),
            most: most.max(1),
            waiting: Semaphore::new(RESERVED / 2),
            closed_idle: AtomicU64::new(0),
            closed_stalled: AtomicU64::new(0),
        }
    }

    fn open(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.open().len()
    }

    /// A place for a new connection; none where all are being answered, the
    /// reserved ones too.
    pub fn place(self: &Arc<Self>, client: Client) -> Option<Place> {
        let mut open = self.open();
        let reserved = !self.has_room(&mut open);
        if reserved && open.len() - regular(&open) >= RESERVED {
            return None;
        }
        let connection = Connection::new(client, reserved);
        open.push(connection.clone());
        Some(Place {
            connection,
            all: self.clone(),
        })
    }

    /// Waits a little for a place of its own for a reserved connection that has
    /// a request; false where there is none.
    pub async fn settle(&self, connection: &Connection) -> bool {
        let Ok(_waiting) = self.waiting.try_acquire() else {
            return false;
        };
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if self.has_room(&mut self.open()) {
                connection.reserved.store(false, Relaxed);
                return true;
            }
            tokio::time::sleep(LOOK).await;
        }
        false
    }

    /// Whether there is a place within the limit, now or made.
    fn has_room(&self, open: &mut Vec<Arc<Connection>>) -> bool {
        while regular(open) >= self.most {
            if !self.make_room(open) {
                return false;
            }
        }
        true
    }

    /// Takes a place from a client that sends nothing, if there is one.
    fn make_room(&self, open: &mut Vec<Arc<Connection>>) -> bool {
        let now = Instant::now();
        let longest = |since: &dyn Fn(At) -> Option<Instant>| {
            let waiting = open.iter().enumerate();
            let waiting = waiting.filter_map(|(i, c)| Some((since(*c.at())?, i)));
            waiting.min()
        };
        let idle = longest(&|at| match at {
            At::Idle(since) if now - since >= GRACE => Some(since),
            _ => None,
        });
        if let Some((_, i)) = idle {
            open.swap_remove(i).close.notify_one();
            self.closed_idle.fetch_add(1, Relaxed);
            return true;
        }
        let stalled = longest(&|at| match at {
            At::Body(since) if now - since >= STALLED => Some(since),
            _ => None,
        });
        let Some((_, i)) = stalled else {
            return false;
        };
        open.swap_remove(i).cut.notify_one();
        self.closed_stalled.fetch_add(1, Relaxed);
        true
    }
}

/// Connections within the limit.
fn regular(open: &[Arc<Connection>]) -> usize {
    open.iter().filter(|c| !c.is_reserved()).count()
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    pub connection: Arc<Connection>,
    all: Arc<Connections>,
}

impl Drop for Place {
    fn drop(&mut self) {
        // One that gave way is not there any more.
        (self.all.open()).retain(|c| !Arc::ptr_eq(c, &self.connection));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> Client {
        Client::Tcp(([127, 0, 0, 1], 1).into())
    }

    fn ago(connection: &Connection, at: fn(Instant) -> At, time: Duration) {
        *connection.at() = at(Instant::now() - time);
    }

    fn told(notify: &Notify) -> bool {
        let mut waiting = std::pin::pin!(notify.notified());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        waiting.as_mut().poll(&mut context).is_ready()
    }

    #[test]
    fn the_longest_idle_connection_gives_way_then_the_longest_stalled_body() {
        let all = Arc::new(Connections::new(3));
        let places: Vec<_> = (0..3).map(|_| all.place(client()).unwrap()).collect();
        ago(&places[0].connection, At::Idle, GRACE);
        ago(&places[1].connection, At::Idle, 2 * GRACE);
        ago(&places[2].connection, At::Body, 2 * STALLED);
        let fourth = all.place(client()).unwrap();
        fourth.connection.answering();
        assert!(told(&places[1].connection.close) && !fourth.connection.is_reserved());
        let fifth = all.place(client()).unwrap();
        fifth.connection.answering();
        assert!(told(&places[0].connection.close));
        assert!(!told(&places[2].connection.cut));
        assert!(!all.place(client()).unwrap().connection.is_reserved());
        assert!(told(&places[2].connection.cut));
        assert_eq!(
            (
                all.closed_idle.load(Relaxed),
                all.closed_stalled.load(Relaxed)
            ),
            (2, 1)
        );
    }

    #[test]
    fn where_all_are_answered_some_more_are_reserved_and_no_more() {
        let all = Arc::new(Connections::new(2));
        let mut places = Vec::new();
        for i in 0..2 + RESERVED {
            let place = all.place(client()).unwrap();
            place.connection.answering();
            assert_eq!(place.connection.is_reserved(), i >= 2);
            places.push(place);
        }
        assert!(all.place(client()).is_none());
        drop(places);
        assert_eq!(all.count(), 0);
        assert!(!all.place(client()).unwrap().connection.is_reserved());
    }

    #[tokio::test]
    async fn a_request_of_a_reserved_connection_waits_for_a_place() {
        let all = Arc::new(Connections::new(1));
        let first = all.place(client()).unwrap();
        first.connection.answering();
        let second = all.place(client()).unwrap();
        assert!(second.connection.is_reserved());
        let waits = all.settle(&second.connection);
        let ends = async {
            tokio::time::sleep(2 * LOOK).await;
            drop(first);
        };
        assert!(tokio::join!(waits, ends).0);
        assert!(!second.connection.is_reserved());
    }

    #[test]
    fn a_connection_whose_request_may_be_on_the_way_is_left_alone() {
        let all = Arc::new(Connections::new(1));
        let first = all.place(client()).unwrap();
        assert!(all.place(client()).unwrap().connection.is_reserved());
        first.connection.reading();
        assert!(all.place(client()).unwrap().connection.is_reserved());
    }
}
