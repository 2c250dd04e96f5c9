//! Request heads. Owns: which heads the door lets in, and the form in which a worker sees them.
//! Must not: read a socket, or know what a path means.
//!
//! Each byte is checked as it comes, and each line when it is complete. At the end the head is
//! checked against the rules of RFC 9112 that say where the request ends. Requests are smuggled
//! when two readers see two different requests in the same bytes. So an ambiguous head is refused.

use super::limits::{HEAD_BYTES_MAX, HEAD_FIELDS_MAX};
use crate::message::Headers;
use crate::oci::{self, ErrorCode, OciError};

/// Fields that end at the door: hop-by-hop (RFC 9110 §7.6.1), framing, and our own.
const DOOR_FIELDS: [&str; 11] = [
    "Connection",
    "Content-Length",
    "Expect",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
];
/// A checked head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The method.
    pub method: String,
    /// Origin form.
    pub target: String,
    /// End-to-end fields; `Host` is the target's authority where it had one.
    pub headers: Headers,
    /// HTTP/1.1; otherwise HTTP/1.0.
    pub http11: bool,
    /// The end of the body.
    pub framing: BodyFraming,
    /// The client would keep the connection.
    pub keep_alive: bool,
    /// The client waits for `100 Continue`.
    pub expects_continue: bool,
}

/// How a body's end is found (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFraming {
    /// `Transfer-Encoding: chunked`
    Chunked,
    /// `Content-Length`, or 0 without one.
    Length(u64),
}

/// Reads one head as its bytes come. Each byte is looked at once.
#[derive(Debug, Default)]
pub struct HeadParser {
    /// Bytes looked at so far.
    seen: usize,
    /// The position at which the current line begins.
    line_start: usize,
    request_line: Option<RequestLine>,
    headers: Headers,
}

impl HeadParser {
    /// Looks at the bytes that are new since the last call. `bytes` begins with the first byte of
    /// the head in every call. Returns the head and its length in bytes, or none when more bytes
    /// are needed.
    ///
    /// # Errors
    /// The answer that refuses the head. The connection has to be closed after it.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<Option<(Head, usize)>, OciError> {
        let readable = bytes.len().min(HEAD_BYTES_MAX);
        while self.seen < readable {
            let line = bytes.get(self.line_start..self.seen).unwrap_or_default();
            let byte = bytes.get(self.seen).copied().unwrap_or_default();
            check_byte(line, byte, self.seen)?;
            self.seen += 1;
            if byte != b'\n' {
                continue;
            }
            self.line_start = self.seen;
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if !self.end_line(line)? {
                continue;
            }
            let done = std::mem::take(self);
            let head = check_fields(done.request_line.unwrap_or_default(), done.headers)?;
            return Ok(Some((head, done.seen)));
        }
        if self.seen < HEAD_BYTES_MAX {
            return Ok(None);
        }
        let (status, what) = match &self.request_line {
            Some(_) => (431, "head"),
            None => (414, "request line"),
        };
        let why = format!("the {what} is longer than {HEAD_BYTES_MAX} bytes");
        Err(bad_request(why).with_status(status))
    }

    /// Takes a whole line, without its CRLF. True when it was the empty line that ends the head.
    fn end_line(&mut self, line: &[u8]) -> Result<bool, OciError> {
        // `check_byte` has let only ASCII pass.
        let line = std::str::from_utf8(line).unwrap_or_default();
        if self.request_line.is_none() {
            self.request_line = Some(RequestLine::parse(line)?);
            return Ok(false);
        }
        if line.is_empty() {
            return Ok(true);
        }
        if self.headers.len() == HEAD_FIELDS_MAX {
            return Err(
                bad_request(format!("more than {HEAD_FIELDS_MAX} header fields")).with_status(431),
            );
        }
        // A line that continues the one before (obs-fold) has a blank in front, which no name has.
        let field = line.split_once(':').filter(|(name, _)| is_token(name));
        let (name, value) =
            field.ok_or_else(|| bad_request("a header line is not `name: value`"))?;
        self.headers.add(name, value.trim_matches([' ', '\t']));
        Ok(false)
    }
}

/// Refuses a byte that no head has in this place: a CR or LF alone, a control character, anything
/// beyond ASCII. `line` is what came before it on its line.
fn check_byte(line: &[u8], byte: u8, offset: usize) -> Result<(), OciError> {
    match (line.last(), byte) {
        (Some(b'\r'), b'\n') => Ok(()),
        (_, b'\n') => Err(bad_request("a line ends in a bare LF; lines end in CRLF")),
        (Some(b'\r'), _) => Err(bad_request("a CR that no LF follows")),
        (_, b'\r' | b'\t' | 0x20..=0x7e) => Ok(()),
        _ => Err(bad_request(format!(
            "byte 0x{byte:02x} at offset {offset} of the head is not allowed there"
        ))),
    }
}

/// Checks the rules that need all fields of the head.
fn check_fields(line: RequestLine, mut headers: Headers) -> Result<Head, OciError> {
    let (authority, target) = split_target(line.target)?;
    let host = read_host(&headers, line.http11)?;
    let framing = read_framing(&headers, line.http11)?;
    let expects_continue = match headers.join_values("Expect") {
        None => false,
        Some(value) if value.eq_ignore_ascii_case("100-continue") => line.http11,
        Some(value) => {
            let why = format!("Expect {value:?} is not supported; use 100-continue");
            return Err(bad_request(why).with_status(417));
        }
    };
    let options = headers.connection_options();
    let has = |option: &str| options.iter().any(|other| other == option);
    let keep_alive = !has("close") && (line.http11 || has("keep-alive"));
    headers.retain(|name, _| {
        let nominated = options
            .iter()
            .any(|option| option.eq_ignore_ascii_case(name));
        let own = DOOR_FIELDS
            .iter()
            .any(|field| field.eq_ignore_ascii_case(name));
        // A client may not remove the field that names the host.
        !own && (!nominated || name.eq_ignore_ascii_case("Host"))
    });
    if let Some(authority) = authority.or(host) {
        headers.set("Host", authority);
    }
    Ok(Head {
        method: line.method,
        target,
        headers,
        http11: line.http11,
        framing,
        keep_alive,
        expects_continue,
    })
}

#[derive(Debug, Default)]
struct RequestLine {
    method: String,
    target: String,
    http11: bool,
}

impl RequestLine {
    /// `method SP request-target SP HTTP-version` (RFC 9112 §3), one space each.
    fn parse(line: &str) -> Result<Self, OciError> {
        let mut parts = line.split(' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad_request("request line is not `method target HTTP/1.1`"));
        };
        if !is_token(method) {
            return Err(bad_request("method is not a token"));
        }
        let is_visible = |b: u8| matches!(b, 0x21..=0x7e) && b != b'#';
        if target.is_empty() || !target.bytes().all(is_visible) {
            return Err(bad_request(
                "request target has characters that no target may have",
            ));
        }
        Ok(Self {
            method: method.to_owned(),
            target: target.to_owned(),
            http11: is_http11(version)?,
        })
    }
}

/// True for HTTP/1.1, false for HTTP/1.0; other versions are refused.
fn is_http11(version: &str) -> Result<bool, OciError> {
    match version {
        "HTTP/1.1" => Ok(true),
        "HTTP/1.0" => Ok(false),
        other => {
            let digits = other.strip_prefix("HTTP/").map(str::as_bytes);
            let is_version = matches!(digits, Some([b'0'..=b'9', b'.', b'0'..=b'9']));
            let status = if is_version { 505 } else { 400 };
            let why = format!("version {other:?} is not supported; use HTTP/1.1");
            Err(bad_request(why).with_status(status))
        }
    }
}

/// A token of RFC 9110 §5.6.2, as methods and field names are.
fn is_token(text: &str) -> bool {
    let is_tchar = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(is_tchar)
}

/// Origin form, and absolute form, whose authority is the host (RFC 9112 §3.2.2).
fn split_target(target: String) -> Result<(Option<String>, String), OciError> {
    if target.starts_with('/') {
        return Ok((None, target));
    }
    let rest = match target.split_once("://") {
        Some((scheme, rest))
            if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") =>
        {
            rest
        }
        _ => return Err(bad_request("target is neither a path nor an http URL")),
    };
    let split = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(split);
    if !oci::is_authority(authority) {
        return Err(refuse_authority("the target's host", authority));
    }
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    Ok((Some(authority.to_owned()), path))
}

fn read_host(headers: &Headers, http11: bool) -> Result<Option<String>, OciError> {
    let mut hosts = headers.all("Host");
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => Err(bad_request("two Host fields")),
        (None, _) if http11 => Err(bad_request("no Host field")),
        (None, _) => Ok(None),
        (Some(host), None) if oci::is_authority(host) => Ok(Some(host.to_owned())),
        (Some(host), None) => Err(refuse_authority("Host", host)),
    }
}

/// The error is logged, so a login in front of the host is left out.
fn refuse_authority(what: &str, authority: &str) -> OciError {
    let shown = match authority.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => authority.to_owned(),
    };
    bad_request(format!("{what} {shown:?} is not a host and port"))
}

/// RFC 9112 §6.1–6.3, and stricter: one length, in digits; one coding, `chunked`; never both.
fn read_framing(headers: &Headers, http11: bool) -> Result<BodyFraming, OciError> {
    let mut codings = headers.all("Transfer-Encoding");
    let mut lengths = headers.all("Content-Length");
    match (
        codings.next(),
        codings.next(),
        lengths.next(),
        lengths.next(),
    ) {
        (None, _, None, _) => Ok(BodyFraming::Length(0)),
        (Some(_), _, Some(_), _) => Err(bad_request("both Transfer-Encoding and Content-Length")),
        (Some(_), Some(_), None, _) => Err(bad_request("several Transfer-Encoding fields")),
        (None, _, Some(_), Some(_)) => Err(bad_request("several Content-Length fields")),
        (Some(_), None, None, _) if !http11 => Err(bad_request("Transfer-Encoding in HTTP/1.0")),
        (Some(coding), None, None, _) if coding.eq_ignore_ascii_case("chunked") => {
            Ok(BodyFraming::Chunked)
        }
        (Some(coding), None, None, _) => {
            let token = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            // An honest coding that we do not speak is 501 (RFC 9112 §6.1), a forged one is 400.
            let honest = !coding.is_empty() && coding.bytes().all(token);
            let list = coding
                .split(',')
                .map(str::trim)
                .filter(|c| c.eq_ignore_ascii_case("chunked"));
            let status = if honest || list.count() == 1 {
                501
            } else {
                400
            };
            Err(bad_request(format!(
                "transfer coding {coding:?} is not supported; use chunked"
            ))
            .with_status(status))
        }
        (None, _, Some(length), None) => {
            if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
                return Err(bad_request(format!(
                    "Content-Length {length:?} is not a number"
                )));
            }
            let over = |_| bad_request(format!("Content-Length {length} is over {}", u64::MAX));
            length.parse().map(BodyFraming::Length).map_err(over)
        }
    }
}

fn bad_request(why: impl Into<String>) -> OciError {
    OciError::new(ErrorCode::BadRequest, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a head that is whole, and nothing after it.
    fn head(text: &str) -> Result<Head, OciError> {
        let parsed = HeadParser::default().advance(text.as_bytes())?;
        let (head, length) = parsed.expect("a whole head");
        assert_eq!(length, text.len());
        Ok(head)
    }

    fn get(fields: &str) -> Result<Head, OciError> {
        head(&format!("GET /v2/ HTTP/1.1\r\n{fields}\r\n"))
    }

    fn status(text: &str) -> u16 {
        head(text).unwrap_err().status
    }

    #[test]
    fn a_plain_head() {
        let head = get("Host: a:80\r\nAccept: x\r\naccept:\ty \r\n").unwrap();
        assert_eq!(
            (head.method.as_str(), head.target.as_str()),
            ("GET", "/v2/")
        );
        assert_eq!(head.headers.join_values("Accept").as_deref(), Some("x, y"));
        assert!(head.http11 && head.keep_alive && !head.expects_continue);
        assert_eq!(head.framing, BodyFraming::Length(0));
    }

    #[test]
    fn bug_a_login_in_front_of_the_host_was_quoted() {
        for text in [
            "GET http://ann:hunter2@b/v2/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nHost: ann:hunter2@b\r\n\r\n",
        ] {
            let told = head(text).unwrap_err().to_string();
            assert!(told.contains("\"…@b\" is not a host and port"), "{told}");
            assert!(!told.contains("hunter2"), "{told}");
        }
    }

    #[test]
    fn absolute_form_names_the_host() {
        let head = head("GET http://b:81/v2/?n=1 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!(head.target, "/v2/?n=1");
        assert_eq!(head.headers.first("Host"), Some("b:81"));
        let bare = self::head("GET http://b?x HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(bare.unwrap().target, "/?x");
    }

    #[test]
    fn other_targets_are_refused() {
        for target in [
            "*",
            "a:80",
            "ftp://a/",
            "http://u@a/",
            "http:///x",
            "x",
            "/a#b",
        ] {
            assert_eq!(
                status(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")),
                400,
                "{target}"
            );
        }
    }

    #[test]
    fn request_lines() {
        for (line, expected) in [
            ("GET /", 400),
            ("GET", 400),
            ("", 400),
            ("GET  / HTTP/1.1", 400),
            ("GET / HTTP/1.1 ", 400),
            (" GET / HTTP/1.1", 400),
            ("G(T / HTTP/1.1", 400),
            ("GET / HTTP/2.0", 505),
            ("GET / HTTP/0.9", 505),
            ("GET / HTTP/1.2", 505),
            ("GET / http/1.1", 400),
            ("GET / HTTP/11", 400),
            ("PRI * HTTP/2.0", 505),
        ] {
            assert_eq!(
                status(&format!("{line}\r\nHost: a\r\n\r\n")),
                expected,
                "{line}"
            );
        }
    }

    #[test]
    fn bytes_that_no_head_has() {
        for text in [
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: é\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\n folded\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost\r\n\r\n",
            "GET / HTTP/1.1\r\n: a\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(status(text), 400, "{text:?}");
        }
    }

    #[test]
    fn hosts() {
        assert_eq!(get("").unwrap_err().status, 400);
        assert_eq!(get("Host: a\r\nHost: a\r\n").unwrap_err().status, 400);
        for host in ["", "a b", "a/b", "u@a", "a:0", "a:b", "a,b"] {
            assert_eq!(
                get(&format!("Host: {host}\r\n")).unwrap_err().status,
                400,
                "{host:?}"
            );
        }
        let old = head("GET / HTTP/1.0\r\n\r\n").unwrap();
        assert!(!old.keep_alive && !old.http11);
        assert!(
            head("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
                .unwrap()
                .keep_alive
        );
    }

    #[test]
    fn lengths() {
        let length = |value: &str| get(&format!("Host: a\r\nContent-Length: {value}\r\n"));
        assert_eq!(length("5").unwrap().framing, BodyFraming::Length(5));
        assert_eq!(
            length("18446744073709551615").unwrap().framing,
            BodyFraming::Length(u64::MAX)
        );
        for bad in [
            "",
            "-1",
            "+1",
            "1 1",
            "1,1",
            "0x1",
            "1.0",
            "18446744073709551616",
        ] {
            assert_eq!(length(bad).unwrap_err().status, 400, "{bad:?}");
        }
        let twice = get("Host: a\r\nContent-Length: 5\r\ncontent-length: 5\r\n");
        assert_eq!(twice.unwrap_err().status, 400);
    }

    #[test]
    fn transfer_codings() {
        let coding = |value: &str| get(&format!("Host: a\r\nTransfer-Encoding: {value}\r\n"));
        assert_eq!(coding("Chunked").unwrap().framing, BodyFraming::Chunked);
        for (value, expected) in [
            ("gzip", 501),
            ("gzip, chunked", 501),
            ("identity", 501),
            ("chunked, chunked", 400),
            ("\u{b}chunked", 400),
            ("", 400),
            ("chunked;a", 400),
            ("\"chunked\"", 400),
        ] {
            assert_eq!(coding(value).unwrap_err().status, expected, "{value:?}");
        }
        let both = get("Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n");
        assert_eq!(both.unwrap_err().status, 400);
        let twice = get("Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n");
        assert_eq!(twice.unwrap_err().status, 400);
        assert_eq!(
            status("GET / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
            400
        );
    }

    #[test]
    fn limits() {
        let long = format!("Host: a\r\nX: {}\r\n", "x".repeat(HEAD_BYTES_MAX));
        assert_eq!(get(&long).unwrap_err().status, 431);
        let near = format!("Host: a\r\nX: {}\r\n", "x".repeat(HEAD_BYTES_MAX - 64));
        assert!(get(&near).is_ok());
        assert!(get(&long).unwrap_err().message.len() < 100);
        assert_eq!(
            status(&format!("GET /{} ", "x".repeat(HEAD_BYTES_MAX))),
            414
        );
        let fields = |n| {
            (1..n).fold("Host: a\r\n".to_owned(), |all, i| {
                all + &format!("X{i}: 1\r\n")
            })
        };
        assert!(get(&fields(HEAD_FIELDS_MAX)).is_ok());
        assert_eq!(get(&fields(HEAD_FIELDS_MAX + 1)).unwrap_err().status, 431);
    }

    #[test]
    fn expectations() {
        assert!(
            get("Host: a\r\nExpect: 100-Continue\r\n")
                .unwrap()
                .expects_continue
        );
        assert_eq!(get("Host: a\r\nExpect: tea\r\n").unwrap_err().status, 417);
    }

    #[test]
    fn hop_by_hop_fields_stay_at_the_door() {
        let head = get(
            "Host: a\r\nConnection: close, X-Mine, host\r\nX-Mine: 1\r\nTE: x\r\n\
             Upgrade: h2c\r\nKeep-Alive: 5\r\nContent-Length: 3\r\nX-Other: 2\r\n",
        )
        .unwrap();
        assert!(!head.keep_alive);
        let names: Vec<&str> = head.headers.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["X-Other", "Host"]);
    }

    #[test]
    fn a_head_in_pieces_is_the_same_as_at_once() {
        let text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
        let whole = HeadParser::default().advance(text).unwrap().unwrap();
        assert_eq!(whole.1, text.len() - 4);
        for cut in 0..whole.1 {
            let mut parser = HeadParser::default();
            assert_eq!(parser.advance(&text[..cut]).unwrap(), None, "{cut}");
            assert_eq!(
                parser.advance(text).unwrap().as_ref(),
                Some(&whole),
                "{cut}"
            );
        }
    }

    #[test]
    fn a_bad_head_is_refused_at_its_first_bad_byte_or_line() {
        for begun in [
            "GET /\r\n",
            "GET / HTTP/1.1\r\nHost\r\n",
            "GET /\0",
            "\x16",
            "\r\r",
        ] {
            let refused = HeadParser::default().advance(begun.as_bytes());
            assert_eq!(refused.unwrap_err().status, 400, "{begun:?}");
        }
    }
}
