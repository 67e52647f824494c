//! A plain HTTP request, for health endpoints and etcd; works in the calling thread's namespace.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Status and body. HTTP/1.0, so that the body ends with the connection and never comes in chunks.
pub fn request(
    server: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
    timeout: Duration,
) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&server, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: {server}\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer)).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP: {:?}", String::from_utf8_lossy(&answer)))
    })
}

/// [`request`] without a body.
pub fn get(server: SocketAddr, path: &str, timeout: Duration) -> io::Result<(u16, String)> {
    request(server, "GET", path, "", timeout)
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_body_are_taken_apart() {
        let answer = "HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\nnot yet\n";
        assert_eq!(parse(answer), Some((503, "not yet\n".to_string())));
        assert_eq!(parse("SSH-2.0-x\r\n\r\n"), None);
    }
}
