//! TCP and SCTP: one thread for each connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use socket2::Socket;

use super::{Shared, is_tick};

pub(super) fn accept(listener: &Socket, shared: &Arc<Shared>) {
    let mut threads = Vec::new();
    while !shared.stopping() {
        match listener.accept() {
            Ok((socket, client)) => {
                let Some(client) = client.as_socket() else { continue };
                let shared = shared.clone();
                threads.push(std::thread::spawn(move || {
                    if let Ok(copy) = socket.try_clone() {
                        let id = copy.as_raw_fd();
                        shared.open().push(copy);
                        converse(&socket, client, &shared);
                        shared.open().retain(|open| open.as_raw_fd() != id);
                    }
                }));
            }
            Err(error) if is_tick(&error) => threads.retain(|thread| !thread.is_finished()),
            Err(_) => return,
        }
    }
    for thread in threads {
        let _ = thread.join();
    }
}

/// Until either side closes; errors are the client's business.
fn converse(socket: &Socket, client: SocketAddr, shared: &Shared) {
    let mut keep = false;
    let mut lines = BufReader::new(Patient { socket, shared });
    let mut line = String::new();
    loop {
        line.clear();
        match lines.read_line(&mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let mut out = socket;
        if line.starts_with("GET ") {
            // The head ends with an empty line.
            while !matches!(line.trim_end(), "") {
                line.clear();
                if !lines.read_line(&mut line).is_ok_and(|length| length > 0) {
                    return;
                }
            }
            let body = shared.line(client);
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n";
            let _ = write!(out, "{head}Content-Length: {}\r\n\r\n{body}", body.len());
            let _ = socket.shutdown(std::net::Shutdown::Write);
            return;
        }
        keep |= line.trim_end() == "keep";
        let answer = if keep { line.clone() } else { shared.line(client) };
        if out.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Reads with the socket's short time-out, as long as the server runs.
struct Patient<'a> {
    socket: &'a Socket,
    shared: &'a Shared,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.socket.set_read_timeout(Some(super::TICK))?;
        loop {
            let mut socket = self.socket;
            match socket.read(buffer) {
                Err(error) if is_tick(&error) && !self.shared.stopping() => {}
                other => return other,
            }
        }
    }
}
