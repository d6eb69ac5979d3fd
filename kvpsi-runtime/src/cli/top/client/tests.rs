//! Against real sockets on loopback.

use super::super::sample::{answer, status};
use super::*;
use crate::{kv::Profile, units::Bytes};
use axum::{
    Json, Router,
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode, header::LOCATION},
    response::IntoResponse,
    routing::{get, post},
};
use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver},
    },
};

/// Serves until the tests end; returns its address.
fn serve(router: Router) -> String {
    let (sender, address) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            sender.send(listener.local_addr().unwrap()).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
    });
    format!("http://{}", address.recv().unwrap())
}

fn looker(url: &str) -> Looker {
    Looker::new(Client::new(url.to_owned(), None))
}

/// An instance that can be told its next answer and tells what it was asked.
#[derive(Clone)]
struct Instance {
    now: Arc<Mutex<(Status, History)>>,
    asked: mpsc::Sender<Option<String>>,
}

impl Instance {
    fn start() -> (Self, String, Receiver<Option<String>>) {
        let (asked, questions) = mpsc::channel();
        let a = answer();
        let instance = Self {
            now: Arc::new(Mutex::new((a.status, a.history))),
            asked,
        };
        let history = |State(i): State<Self>, RawQuery(q): RawQuery| async move {
            i.asked.send(q).unwrap();
            Json(i.now.lock().unwrap().1.clone())
        };
        let status = |State(i): State<Self>| async move { Json(i.now.lock().unwrap().0.clone()) };
        let router = Router::new()
            .route("/kvpsi/status", get(status))
            .route("/kvpsi/history", get(history))
            .with_state(instance.clone());
        (instance, serve(router), questions)
    }
}

#[test]
fn an_address_may_leave_out_what_is_plain() {
    assert_eq!(
        address("127.0.0.1:8080"),
        Ok("http://127.0.0.1:8080".into())
    );
    assert_eq!(address(" http://robot:80/ "), Ok("http://robot:80".into()));
    assert_eq!(address("[::1]:8080"), Ok("http://[::1]:8080".into()));
    for wrong in [
        "",
        "https://robot",
        "ftp://x",
        "http://",
        "http://a b",
        "http://x/?y",
    ] {
        assert!(address(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_key_is_what_a_header_can_carry() {
    assert_eq!(key(" sk-1_2\n"), Ok("sk-1_2".into()));
    for wrong in ["", "  ", "a b", "a\nb", "schlüssel"] {
        assert!(key(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn looks_after_the_first_ask_for_what_is_new_and_one_more() {
    let (_instance, url, questions) = Instance::start();
    let mut looker = looker(&url);
    let first = looker.look().unwrap();
    assert!(first.anew);
    assert_eq!(first.status, status());
    assert_eq!(first.history, answer().history);
    assert!(!looker.look().unwrap().anew);
    let asked: Vec<_> = questions.try_iter().collect();
    assert_eq!(asked, [None, Some("since=2399".into())]);
}

#[test]
fn an_instance_that_started_anew_is_asked_for_all_of_its_history() {
    let (instance, url, questions) = Instance::start();
    let mut looker = looker(&url);
    looker.look().unwrap();
    {
        let mut now = instance.now.lock().unwrap();
        now.0.uptime_s = 1.0;
        now.1.next = 5000;
    }
    assert!(looker.look().unwrap().anew);
    // And one whose clock tells nothing, but whose count does.
    instance.now.lock().unwrap().1.next = 7;
    assert!(looker.look().unwrap().anew);
    let asked: Vec<_> = questions.try_iter().collect();
    assert_eq!(asked, [None, None, Some("since=4999".into()), None]);
}

#[test]
fn orders_arrive_as_they_were_given_and_with_the_key() {
    let control = |headers: HeaderMap, Json(c): Json<Control>| async move {
        assert_eq!(headers["authorization"], "Bearer sk-1");
        let mut s = status();
        s.profile = c.profile.unwrap();
        assert_eq!(c.trimming, None);
        Json(s)
    };
    let trim = |Json(order): Json<TrimOrder>| async move {
        Json(TrimDone {
            bytes: order.bytes,
            tokens: 9,
        })
    };
    let url = serve(
        Router::new()
            .route("/kvpsi/control", post(control))
            .route("/kvpsi/trim", post(trim)),
    );
    let client = Client::new(url, Some("sk-1".into()));
    let order = Order::Control(Control {
        profile: Some(Profile::Latency),
        trimming: None,
    });
    let Ok(Outcome::Status(now)) = client.order(order) else {
        panic!("no status");
    };
    assert_eq!(now.profile, Profile::Latency);
    let order = Order::Trim(TrimOrder {
        bytes: Bytes::mib(4),
    });
    let Ok(Outcome::Trim(done)) = client.order(order) else {
        panic!("no trim");
    };
    assert_eq!((done.bytes, done.tokens), (Bytes::mib(4), 9));
}

#[test]
fn each_way_of_failing_says_what_to_do() {
    let error = |status: StatusCode| async move {
        let body =
            r#"{"error":{"message":"the model is loading","type":"x","param":null,"code":null}}"#;
        (status, body).into_response()
    };
    let says = |url: &str| looker(url).look().unwrap_err();

    let wants = serve(Router::new().fallback(move || error(StatusCode::UNAUTHORIZED)));
    assert!(says(&wants).to_string().contains("KVPSI_API_KEY"));

    let loading = serve(Router::new().fallback(move || error(StatusCode::SERVICE_UNAVAILABLE)));
    assert_eq!(says(&loading).brief(), "it says 503: the model is loading");

    let other = serve(Router::new().fallback(|| async { "<html>hello</html>" }));
    assert!(matches!(says(&other), ClientError::Strange { .. }));

    let none = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", none.local_addr().unwrap());
    drop(none);
    let gone = says(&url);
    assert_eq!(gone.brief(), "no answer: Connection refused");
    assert!(gone.to_string().contains("kvpsi serve"), "{gone}");
}

#[test]
fn the_key_is_not_taken_along_to_another_place() {
    let (sender, visits) = mpsc::channel();
    let there = serve(
        Router::new().fallback(move |headers: HeaderMap| async move {
            sender.send(headers.contains_key("authorization")).unwrap();
            ""
        }),
    );
    let here =
        serve(Router::new().fallback(move || async move {
            (StatusCode::FOUND, [(LOCATION, there)]).into_response()
        }));
    let client = Client::new(here, Some("sk-1".into()));
    let refused = Looker::new(client).look().unwrap_err();
    assert!(matches!(refused, ClientError::Refused { status: 302, .. }));
    assert_eq!(visits.try_iter().count(), 0);
}

#[test]
fn a_kept_connection_that_was_closed_meanwhile_is_no_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let status = serde_json::to_string(&status()).unwrap();
        let history = serde_json::to_string(&answer().history).unwrap();
        // One answer a connection, which says nothing of its end.
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut first = String::new();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            lines.read_line(&mut first).unwrap();
            while lines.read_line(&mut String::new()).unwrap() > 2 {}
            let body = if first.contains("status") {
                &status
            } else {
                &history
            };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all((head + body).as_bytes()).unwrap();
        }
    });
    let mut looker = looker(&url);
    for _ in 0..3 {
        looker.look().unwrap();
    }
}
