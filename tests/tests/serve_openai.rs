//! The clients that people have: OpenAI's own, from PyPI.

use kvpsi_tests::{model, openai_client, served::Served};
use std::process::Command;

#[test]
fn openais_python_client_is_at_home_here() {
    let test = "openais_python_client_is_at_home_here";
    let (Some(file), Some(client)) = (model(test), openai_client(test)) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "k-123").unwrap();
    let key = key.to_str().unwrap();
    let mut s = Served::start(&file, &["--alias", "smol", "--api-key-file", key], None);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/data/openai_client.py");
    let out = Command::new("python3")
        .arg(script)
        .env("PYTHONPATH", client)
        .env("OPENAI_BASE_URL", format!("http://127.0.0.1:{}/v1", s.port))
        .env("OPENAI_API_KEY", "k-123")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.trim_end().ends_with("all is well"), "{text}\n{said}");
    let (status, said) = s.stop();
    assert!(status.success(), "{said}");
}
