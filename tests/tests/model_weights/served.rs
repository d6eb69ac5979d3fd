//! Servers that map the file: confined, and as another user.

use super::{Home, complaint};
use kvpsi_tests::{model, skip};
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Child, Stdio},
};

/// A server that is ready.
struct Server(Child);

impl Server {
    fn start(home: &Home, model: &Path, more: &[&str]) -> (Self, String) {
        let mut c = home.command(&["serve", "--port", "0", "--signal", "none"]);
        c.args(["--weights-cache", "on", "-m"])
            .arg(model)
            .args(more);
        let mut server = Self(c.stderr(Stdio::piped()).spawn().unwrap());
        let mut said = String::new();
        for line in BufReader::new(server.0.stderr.take().unwrap()).lines() {
            let line = line.unwrap();
            said += &format!("{line}\n");
            if line.contains("serving at") {
                return (server, said);
            }
        }
        panic!("{said}");
    }

    /// Resident bytes of the mapped weights, and of them its share.
    fn weights(&self) -> (u64, u64) {
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", self.0.id())).unwrap();
        let of = |part: &str, name: &str| -> u64 {
            let line = part.lines().find(|l| l.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let part = smaps.split_once(".weights\n").unwrap().1;
        (of(part, "Rss:"), of(part, "Pss:"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_confined_server_makes_the_file_and_two_processes_share_its_pages() {
    let test = "a_confined_server_makes_the_file_and_two_processes_share_its_pages";
    let Some(model) = model(test) else { return };
    let home = Home::new();
    let (first, said) = Server::start(&home, &model, &[]);
    assert!(said.contains("to write, once"), "{said}");
    let (rss, alone) = first.weights();
    assert!(rss > 50 << 10 && alone > rss * 9 / 10, "{rss} {alone}");
    let (second, said) = Server::start(&home, &model, &[]);
    assert!(said.contains("mapped from the weights cache\n"), "{said}");
    for server in [&first, &second] {
        let (rss, share) = server.weights();
        assert!(rss > 50 << 10 && share < rss * 11 / 20, "{rss} {share}");
    }
}

#[test]
fn a_server_that_becomes_another_user_makes_the_file_and_finds_it_again() {
    let test = "a_server_that_becomes_another_user_makes_the_file_and_finds_it_again";
    if !rustix::process::geteuid().is_root() {
        return skip(test, "run it as root");
    }
    let Some(model) = model(test) else { return };
    let home = Home::new();
    let other = ["--user", "65534:65534"];
    let (_first, said) = Server::start(&home, &model, &other);
    assert!(said.contains("to write, once"), "{said}");
    assert_eq!(fs::metadata(home.only_file()).unwrap().uid(), 65534);
    let (_second, said) = Server::start(&home, &model, &other);
    assert!(said.contains("mapped from the weights cache\n"), "{said}");
    // Root itself does not map what another user could have written.
    let (_third, said) = Server::start(&home, &model, &[]);
    assert!(complaint(&said).contains("belongs to user 65534"), "{said}");
}
