//! The settings of outbound connections. Owns: their values and how they are written. Must not: act
//! on them.

use std::net::{IpAddr, SocketAddr};

use super::fault::mask;
use crate::oci::{self, Scheme};
use crate::secret::Secret;
use crate::uri;

/// Most DNS servers: after a look-up has asked them all twice, nobody waits for it any more. (The C
/// library takes 3.)
const RESOLVERS_MAX: usize = 4;
/// The port of DNS servers (RFC 1035 §4.2).
const DNS_PORT: u16 = 53;
/// Most entries of `NO_PROXY`: every new connection is compared with each of them.
const NO_PROXY_MAX: usize = 256;
/// Longest user and password of a proxy, decoded; they travel in one header field.
const LOGIN_BYTES_MAX: usize = 1024;

/// How registries and AWS are reached.
#[derive(Debug, Clone, Default)]
pub struct OutboundSettings {
    /// `RESOLVER`; empty: the system's way of looking names up.
    pub resolvers: Vec<SocketAddr>,
    /// `HTTPS_PROXY`
    pub https_proxy: Option<ProxyUrl>,
    /// `HTTP_PROXY`
    pub http_proxy: Option<ProxyUrl>,
    /// `NO_PROXY`
    pub no_proxy: Vec<ProxyException>,
    /// `BLOB_REDIRECT`
    pub blob_redirect: BlobRedirect,
}

/// `BLOB_REDIRECT`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BlobRedirect {
    /// The proxy follows a registry's redirect itself.
    #[default]
    Follow,
    /// The client gets it.
    Pass,
}

impl BlobRedirect {
    pub(super) const WORDS: &[(&str, Self)] = &[("follow", Self::Follow), ("pass", Self::Pass)];
}

/// `HTTPS_PROXY` or `HTTP_PROXY`, taken apart.
#[derive(Debug, Clone)]
pub struct ProxyUrl {
    /// How the proxy itself is spoken to.
    pub scheme: Scheme,
    /// A name or an address; IPv6 in brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// `user:password`, percent-decoded.
    pub login: Option<Secret<String>>,
}

impl ProxyUrl {
    /// The URL without user and password.
    pub fn shown(&self) -> String {
        format!("{}://{}:{}", self.scheme.as_str(), self.host, self.port)
    }
}

/// An entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyException {
    /// `*`: everything.
    All,
    /// This name and all below it; lower case, without a dot at either end.
    Name(String, Option<u16>),
    /// Addresses that share the first bits with this one.
    Net(IpAddr, u8, Option<u16>),
}

/// `RESOLVER`
pub(super) fn resolvers(text: &str) -> Result<Vec<SocketAddr>, String> {
    let mut servers: Vec<SocketAddr> = Vec::new();
    for entry in entries(text) {
        let server =
            read_server(entry).ok_or_else(|| format!("{} is none of these", mask(entry)))?;
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    if servers.is_empty() || servers.len() > RESOLVERS_MAX {
        return Err(format!("these are {}", servers.len()));
    }
    Ok(servers)
}

fn read_server(text: &str) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse().ok();
    let server = match address {
        Some(address) => SocketAddr::new(address, DNS_PORT),
        None => text.parse().ok()?,
    };
    (server.port() != 0).then_some(server)
}

/// Reads a proxy's URL; without a scheme it is http, as in curl and Go. No error repeats a part of
/// it, as it may hold a password.
pub(super) fn proxy_url(text: &str) -> Result<ProxyUrl, String> {
    let (scheme, rest) = match text.split_once("://") {
        None => (Scheme::Http, text),
        Some((name, rest)) if name.eq_ignore_ascii_case("http") => (Scheme::Http, rest),
        Some((name, rest)) if name.eq_ignore_ascii_case("https") => (Scheme::Https, rest),
        Some(_) => return Err("only proxies that speak HTTP are possible".to_owned()),
    };
    let (login, authority) = match rest.rsplit_once('@') {
        Some((login, authority)) => (Some(self::login(login)?), authority),
        None => (None, rest),
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if !oci::is_authority(authority) {
        return Err("this is no host with an optional port".to_owned());
    }
    let (host, port) = oci::split_port(authority);
    let port = match (port, scheme) {
        (Some(port), _) => port.parse().map_err(|_| "this is no port".to_owned())?,
        (None, Scheme::Http) => 80,
        (None, Scheme::Https) => 443,
    };
    Ok(ProxyUrl {
        scheme,
        host: host.to_ascii_lowercase(),
        port,
        login,
    })
}

/// `user:password`, each percent-decoded (RFC 3986 §3.2.1).
fn login(text: &str) -> Result<Secret<String>, String> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    let decoded = |text| uri::decode(text).ok_or("user or password has a bad % sequence");
    let (user, password) = (decoded(user)?, decoded(password)?);
    if user.contains(':') {
        // RFC 7617 §2: the first colon ends the user.
        return Err("a user has no colon in it".to_owned());
    }
    let login = format!("{user}:{password}");
    if login.len() > LOGIN_BYTES_MAX || login.chars().any(char::is_control) {
        let why = format!("user and password are at most {LOGIN_BYTES_MAX} printable characters");
        return Err(why);
    }
    Ok(Secret::new(login))
}

/// `NO_PROXY`
pub(super) fn no_proxy(text: &str) -> Result<Vec<ProxyException>, String> {
    let mut exceptions = Vec::new();
    let mut count = 0;
    for entry in entries(text) {
        exceptions.extend(read_exception(entry)?);
        count += 1;
    }
    if count > NO_PROXY_MAX {
        return Err(format!("these are {count}"));
    }
    Ok(exceptions)
}

/// Reads one entry. Other programs read the variable, too, so an entry of another form (a socket's
/// path, `<local>`) is no fault: it matches nothing, as in curl. A number of bits that no address
/// has is a fault.
fn read_exception(text: &str) -> Result<Option<ProxyException>, String> {
    if text == "*" {
        return Ok(Some(ProxyException::All));
    }
    let address = |text: &str| {
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        bare.unwrap_or(text).parse::<IpAddr>().ok()
    };
    let bits_max = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
    if let Some(address) = address(text) {
        let bits = bits_max(address);
        return Ok(Some(ProxyException::Net(address, bits, None)));
    }
    if let Some((net, bits)) = text.split_once('/') {
        let Some(net) = address(net) else {
            return Ok(None);
        };
        let (bits, port) = oci::split_port(bits);
        let bits = bits.parse().ok().filter(|bits| *bits <= bits_max(net));
        let fault = || format!("{text} is no address/bits");
        let port = port.map(|port| port.parse().map_err(|_| fault()));
        let (bits, port) = (bits.ok_or_else(fault)?, port.transpose()?);
        return Ok(Some(ProxyException::Net(net, bits, port)));
    }
    let (host, port) = oci::split_port(text);
    let port = match port.map(str::parse) {
        None => None,
        Some(Ok(port)) => Some(port),
        Some(Err(_)) => return Ok(None),
    };
    if let Some(address) = address(host) {
        let bits = bits_max(address);
        return Ok(Some(ProxyException::Net(address, bits, port)));
    }
    let name = host.strip_prefix('*').unwrap_or(host);
    let name = name.strip_prefix('.').unwrap_or(name);
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let fits = oci::is_authority(&name) && !name.starts_with('[');
    Ok(fits.then_some(ProxyException::Name(name, port)))
}

/// A list with commas, or with blanks as nginx and curl take them too.
fn entries(text: &str) -> impl Iterator<Item = &str> {
    let apart = |c: char| c == ',' || c.is_ascii_whitespace();
    text.split(apart).filter(|entry| !entry.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse::one_of;

    #[test]
    fn resolvers_are_addresses_with_or_without_a_port() {
        let text = "10.0.0.2, 10.0.0.3:5353 [::1]:54,fd00::1, 10.0.0.2:53";
        let servers = resolvers(text).unwrap();
        let shown: Vec<String> = servers.iter().map(ToString::to_string).collect();
        let expected = ["10.0.0.2:53", "10.0.0.3:5353", "[::1]:54", "[fd00::1]:53"];
        assert_eq!(shown, expected);
        let bare = resolvers("[fd00::2]").unwrap();
        assert_eq!(bare, ["[fd00::2]:53".parse().unwrap()]);
        for bad in ["dns.example", "10.0.0.2:0", "10.0.0.2 valid=30s", "1.1.1"] {
            let why = resolvers(bad).unwrap_err();
            assert!(why.ends_with(" is none of these"), "{bad}: {why}");
        }
        let why = resolvers("1.1.1.1,1.1.1.2,1.1.1.3,1.1.1.4,1.1.1.5").unwrap_err();
        assert_eq!(why, "these are 5");
        assert_eq!(resolvers(",").unwrap_err(), "these are 0");
    }

    #[test]
    fn proxies_have_a_host_and_may_have_a_login() {
        for (text, shown, login) in [
            ("http://proxy:3128", "http://proxy:3128", None),
            ("http://Proxy/", "http://proxy:80", None),
            ("proxy.example:8080", "http://proxy.example:8080", None),
            ("HTTPS://[::1]", "https://[::1]:443", None),
            ("http://u:p@h:1", "http://h:1", Some("u:p")),
            ("u@h:1", "http://h:1", Some("u:")),
            ("http://u:p%40%3A/%2f@h:1", "http://h:1", Some("u:p@://")),
            ("http://u:a@b?c@h:1", "http://h:1", Some("u:a@b?c")),
        ] {
            let proxy = proxy_url(text).unwrap();
            assert_eq!(proxy.shown(), shown, "{text}");
            let found = proxy.login.as_ref().map(|login| login.expose().as_str());
            assert_eq!(found, login, "{text}");
            assert!(!format!("{proxy:?}").contains("u:"), "{proxy:?}");
        }
    }

    #[test]
    fn a_bad_proxy_is_told_without_its_password() {
        let long = format!("http://u:{}@h", "hunter2".repeat(LOGIN_BYTES_MAX));
        for (bad, told) in [
            ("socks5://u:hunter2@h:1080", "speak HTTP"),
            ("http://", "no host"),
            ("http://u:hunter2@", "no host"),
            ("http://u:hunter2@h:99999", "no host"),
            ("http://u:hunter2@h:1/path", "no host"),
            ("http://u:hunter2%zz@h", "bad %"),
            ("http://u:hunter2%4@h", "bad %"),
            ("http://u:hunter2%ff@h", "bad %"),
            ("http://u%3a:hunter2@h", "no colon"),
            ("http://u:hunter2%0d%0a@h", "printable"),
            (&long, "printable"),
        ] {
            let why = proxy_url(bad).unwrap_err();
            assert!(
                why.contains(told) && !why.contains("hunter2"),
                "{bad}: {why}"
            );
        }
    }

    #[test]
    fn exceptions_are_names_addresses_and_nets() {
        let read = |text| no_proxy(text).unwrap();
        let name = |name: &str, port| ProxyException::Name(name.to_owned(), port);
        let net =
            |address: &str, bits, port| ProxyException::Net(address.parse().unwrap(), bits, port);
        assert_eq!(
            read(" a.example , .B.example,*.c.example.  d:443,,"),
            [
                name("a.example", None),
                name("b.example", None),
                name("c.example", None),
                name("d", Some(443))
            ]
        );
        assert_eq!(
            read("10.0.0.0/8,10.1.2.3,10.1.2.3:80,::1,[::1]:80,fd00::/8,0.0.0.0/0,[fe80::]/10:443"),
            [
                net("10.0.0.0", 8, None),
                net("10.1.2.3", 32, None),
                net("10.1.2.3", 32, Some(80)),
                net("::1", 128, None),
                net("::1", 128, Some(80)),
                net("fd00::", 8, None),
                net("0.0.0.0", 0, None),
                net("fe80::", 10, Some(443)),
            ]
        );
        assert_eq!(read("a,*"), [name("a", None), ProxyException::All]);
        assert_eq!(read("/var/run/docker.sock,<local>,h:x,.,*."), []);
        for bad in [
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/x",
            "10.0.0.0/",
            "1.2.3.4/8:x",
        ] {
            let why = no_proxy(bad).unwrap_err();
            assert_eq!(why, format!("{bad} is no address/bits"));
        }
        let many = "h,".repeat(NO_PROXY_MAX + 1);
        assert_eq!(no_proxy(&many).unwrap_err(), "these are 257");
    }

    #[test]
    fn redirects_are_followed_or_passed() {
        let read = |text| one_of(text, BlobRedirect::WORDS);
        assert_eq!(read("follow"), Ok(BlobRedirect::default()));
        assert_eq!(read("Pass"), Ok(BlobRedirect::Pass));
        assert_eq!(read("both"), Err(String::new()));
    }
}
