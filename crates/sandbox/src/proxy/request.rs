//! What a client of the proxy asks for. Foreign input: anything unusual is refused, and only what was understood is sent on.

use super::policy::split_port;

/// Of the headers that concern one connection only, or a body that is never sent.
const NOT_PASSED: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) asked: Asked,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// `CONNECT`: bytes both ways, which nobody here can read.
    Tunnel,
    /// A plain read, with the head that goes to the server.
    Fetch { head: Vec<u8> },
}

impl Request {
    /// The error is a sentence for the client.
    pub(super) fn parse(head: &[u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(head).map_err(|_| "the head is not text")?;
        let text = text.strip_suffix("\r\n\r\n").ok_or("the head has no end")?;
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default();
        if text.bytes().any(|b| b == 0) || text.replace("\r\n", "").contains(['\r', '\n']) {
            return Err("the head contains stray control characters");
        }
        let [method, target, "HTTP/1.1" | "HTTP/1.0"] = first.split(' ').collect::<Vec<_>>()[..] else {
            return Err("the request line is not understood");
        };
        match method {
            "CONNECT" => {
                let (host, port) = split_port(target).ok_or("the host and port to connect to are not understood")?;
                Ok(Self { host: plain(host)?, port, asked: Asked::Tunnel })
            }
            "GET" | "HEAD" => Self::fetch(method, target, lines),
            _ => Err("without encryption only GET and HEAD are allowed"),
        }
    }

    fn fetch<'a>(method: &str, target: &str, headers: impl Iterator<Item = &'a str>) -> Result<Self, &'static str> {
        let rest = target.strip_prefix("http://").ok_or("only http:// addresses can be fetched without a tunnel")?;
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, "/"),
        };
        let (host, port) = split_port(authority).unwrap_or((authority, 80));
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {authority}\r\n");
        for line in headers {
            let (name, _) = line.split_once(':').ok_or("a header line has no name")?;
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
                return Err("the name of a header is not understood");
            }
            if !NOT_PASSED.contains(&name.to_ascii_lowercase().as_str()) {
                head.push_str(line);
                head.push_str("\r\n");
            }
        }
        head.push_str("Connection: close\r\n\r\n");
        Ok(Self { host: plain(host)?, port, asked: Asked::Fetch { head: head.into_bytes() } })
    }
}

/// The host without brackets; user names, blanks and the like have no place in it.
fn plain(host: &str) -> Result<String, &'static str> {
    const LONGEST_NAME: usize = 253; // of a DNS name
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let usual = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    if host.is_empty() || host.len() > LONGEST_NAME || !host.bytes().all(usual) {
        return Err("the host name is not understood");
    }
    Ok(host.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_names_host_and_port() {
        let request = Request::parse(b"CONNECT Index.Crates.io:443 HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(request, Ok(Request { host: "index.crates.io".to_owned(), port: 443, asked: Asked::Tunnel }));
    }

    #[test]
    fn a_fetch_is_rewritten_from_what_was_understood() {
        let request = Request::parse(
            b"GET http://example.org/a?b HTTP/1.1\r\nHost: other.example\r\nAccept: */*\r\nContent-Length: 5\r\nProxy-Authorization: x\r\n\r\n",
        );
        let head = b"GET /a?b HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\nConnection: close\r\n\r\n".to_vec();
        assert_eq!(request, Ok(Request { host: "example.org".to_owned(), port: 80, asked: Asked::Fetch { head } }));
    }

    #[test]
    fn what_could_mean_two_things_is_refused() {
        let heads: [&[u8]; 7] = [
            b"POST http://example.org/ HTTP/1.1\r\n\r\n",
            b"GET http://user@example.org/ HTTP/1.1\r\n\r\n",
            b"GET http://example.org/ HTTP/1.1\r\nA: b\nEvil: c\r\n\r\n",
            b"GET http://example.org/ HTTP/1.1\r\n folded: c\r\n\r\n",
            b"GET /relative HTTP/1.1\r\n\r\n",
            b"CONNECT example.org HTTP/1.1\r\n\r\n",
            b"GET http://example.org/ x HTTP/1.1\r\n\r\n",
        ];
        for head in heads {
            assert!(Request::parse(head).is_err(), "{}", String::from_utf8_lossy(head));
        }
    }
}
