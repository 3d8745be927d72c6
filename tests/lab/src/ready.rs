//! Waiting until everything answers, and asking Envoy's admin interface.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::bootstrap::{ADMIN_PORT, AUTHZ_PORT};
use crate::clock::MonotonicNs;
use crate::error::LabError;
use crate::netns;
use crate::topology::ServicePort;

/// How long everything together may take.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Asks again and again until the answer is yes.
///
/// # Errors
/// [`LabError::NotReady`] with the last reason when `deadline` passes.
pub fn until(what: &str, deadline: MonotonicNs, mut ask: impl FnMut() -> Result<(), String>) -> Result<(), LabError> {
    loop {
        let why = match ask() {
            Ok(()) => return Ok(()),
            Err(why) => why,
        };
        if MonotonicNs::now() >= deadline {
            return Err(LabError::NotReady { what: what.to_owned(), seconds: DEADLINE.as_secs(), why });
        }
        std::thread::sleep(Duration::from_millis(25));
    }
}

/// Asks Envoy's admin interface within a pod; status and body.
///
/// # Errors
/// When nobody answers.
pub fn admin(namespace: &str, method: &str, path: &str) -> Result<(u16, String), LabError> {
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let exchange = || -> io::Result<Vec<u8>> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = netns::within(namespace, exchange)?
        .map_err(LabError::io(format!("Envoy's admin interface in {namespace} does not answer")))?;
    parse_admin(&answer).ok_or_else(|| LabError::Io {
        what: format!("Envoy's admin interface in {namespace} answered something else than HTTP"),
        why: io::ErrorKind::InvalidData.into(),
    })
}

/// Splits an answer that ends with the connection. Envoy's admin interface sends chunks.
fn parse_admin(answer: &[u8]) -> Option<(u16, String)> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(head) = response.parse(answer).ok()? else { return None };
    let chunked = response.headers.iter().any(|field| field.name.eq_ignore_ascii_case("transfer-encoding"));
    let mut rest = &answer[head..];
    let mut body = Vec::new();
    if chunked {
        while let Ok(httparse::Status::Complete((begin, size))) = httparse::parse_chunk_size(rest) {
            let end = begin.checked_add(usize::try_from(size).ok()?)?;
            body.extend_from_slice(rest.get(begin..end)?);
            rest = rest.get(end + 2..).unwrap_or_default();
            if size == 0 {
                break;
            }
        }
    } else {
        body.extend_from_slice(rest);
    }
    Some((response.code?, String::from_utf8_lossy(&body).into_owned()))
}

/// Waits for a pod's Envoy to be LIVE.
///
/// # Errors
/// When it is not in time.
pub fn envoy(namespace: &str, deadline: MonotonicNs) -> Result<(), LabError> {
    until(&format!("the Envoy in {namespace}"), deadline, || match admin(namespace, "GET", "/ready") {
        Ok((200, _)) => Ok(()),
        Ok((status, body)) => Err(format!("{status} {}", body.trim())),
        Err(error) => Err(error.to_string()),
    })
}

/// Waits for a listener within a pod.
///
/// # Errors
/// When there is none in time.
pub fn listener(namespace: &str, ip: Ipv4Addr, port: u16, deadline: MonotonicNs) -> Result<(), LabError> {
    let address = SocketAddr::from((ip, port));
    until(&format!("the listener {address} in {namespace}"), deadline, || {
        let connected = netns::within(namespace, || TcpStream::connect_timeout(&address, Duration::from_secs(1)));
        connected.map_err(|error| error.to_string())?.map(drop).map_err(|error| error.to_string())
    })
}

/// Waits for a pod's application.
///
/// # Errors
/// When it does not listen in time.
pub fn application(
    namespace: &str,
    ip: Ipv4Addr,
    ports: &[ServicePort],
    deadline: MonotonicNs,
) -> Result<(), LabError> {
    ports.iter().try_for_each(|port| listener(namespace, ip, port.number, deadline))
}

/// Waits for a pod's waiting server.
///
/// # Errors
/// When it does not listen in time.
pub fn authz(namespace: &str, deadline: MonotonicNs) -> Result<(), LabError> {
    listener(namespace, Ipv4Addr::LOCALHOST, AUTHZ_PORT, deadline)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_put_together() {
        let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nLIVE\n\r\n3\r\nabc\r\n0\r\n\r\n";
        assert_eq!(parse_admin(answer), Some((200, "LIVE\nabc".into())));
        assert_eq!(parse_admin(b"HTTP/1.1 503 No\r\n\r\nINIT"), Some((503, "INIT".into())));
        assert_eq!(parse_admin(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffff\r\nx"), None);
        assert_eq!(parse_admin(b"nonsense"), None);
    }

    #[test]
    fn a_deadline_tells_the_last_reason() {
        let mut asked = 0;
        let failed = until("it", MonotonicNs::now(), || {
            asked += 1;
            Err(format!("no {asked}"))
        });
        assert!(failed.unwrap_err().to_string().contains("no 1"));
    }
}
