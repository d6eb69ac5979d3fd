//! Where the server listens.
//!
//! Out of scope: Unix sockets.

use std::net::{IpAddr, SocketAddr};

/// Listens there.
///
/// # Errors
/// It cannot; what to do is said.
pub(super) fn bind(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let socket = std::net::TcpListener::bind(address).map_err(|e| {
        let what = match e.kind() {
            std::io::ErrorKind::AddrInUse => "another program has that port: choose another --port",
            std::io::ErrorKind::PermissionDenied => {
                "ports below 1024 want a privilege that kvpsi has dropped: choose a higher --port"
            }
            std::io::ErrorKind::AddrNotAvailable => "this machine has no such address",
            _ => "choose another --host or --port",
        };
        anyhow::anyhow!("cannot listen at {address}: {e}; {what}")
    })?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// An address; localhost is the one that every machine has.
pub(super) fn host(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
        text => text
            .parse()
            .map_err(|e| format!("{e}: an address, as 127.0.0.1, 0.0.0.0 or ::, or localhost")),
    }
}
