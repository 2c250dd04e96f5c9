//! Which outbound proxy leads to a host. Owns: the rules of `HTTPS_PROXY`, `HTTP_PROXY` and
//! `NO_PROXY`. Must not: connect anywhere.

use std::net::IpAddr;

use super::address_rule::is_local;
use super::resolver::is_localhost;
use crate::config::{OutboundSettings, ProxyException, ProxyUrl};
use crate::oci::{self, Scheme};
use crate::secret::{Secret, basic_authorization};

/// The proxies and the exceptions.
#[derive(Debug, Default)]
pub struct Proxies {
    https: Option<OutboundProxy>,
    http: Option<OutboundProxy>,
    exceptions: Vec<ProxyException>,
}

/// One proxy.
#[derive(Debug)]
pub(super) struct OutboundProxy {
    /// Its own protocol.
    pub(super) scheme: Scheme,
    /// Its name or address; IPv6 in brackets.
    pub(super) host: String,
    /// Its port.
    pub(super) port: u16,
    /// Its URL without user and password.
    pub(super) shown: String,
    /// The setting that names it.
    pub(super) setting: &'static str,
    /// The value of `Proxy-Authorization`, if there is one.
    pub(super) authorization: Option<Secret<String>>,
}

impl Proxies {
    /// The proxies and exceptions of the settings.
    pub fn new(settings: &OutboundSettings) -> Self {
        let proxy = |url: &Option<ProxyUrl>, setting| {
            let url = url.as_ref()?;
            Some(OutboundProxy {
                scheme: url.scheme,
                host: url.host.clone(),
                port: url.port,
                shown: url.shown(),
                setting,
                authorization: url.login.as_ref().map(basic_authorization),
            })
        };
        Self {
            https: proxy(&settings.https_proxy, "HTTPS_PROXY"),
            http: proxy(&settings.http_proxy, "HTTP_PROXY"),
            exceptions: settings.no_proxy.clone(),
        }
    }

    /// The proxy that leads to this scheme and authority, unless it is reached directly.
    pub(super) fn proxy_for(&self, scheme: Scheme, authority: &str) -> Option<&OutboundProxy> {
        let (proxy, default_port) = match scheme {
            Scheme::Https => (self.https.as_ref()?, 443),
            Scheme::Http => (self.http.as_ref()?, 80),
        };
        let (host, port) = oci::split_port(authority);
        let port = port.map_or(Ok(default_port), str::parse).ok()?;
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let address: Option<IpAddr> = bare.parse().ok();
        let address = address.map(|address| address.to_canonical());
        let direct = is_direct(&host, address)
            || self
                .exceptions
                .iter()
                .any(|exception| covers(exception, &host, address, port));
        (!direct).then_some(proxy)
    }
}

/// True for this host itself, and for the metadata services, which answer it alone.
fn is_direct(host: &str, address: Option<IpAddr>) -> bool {
    address.map_or_else(|| is_localhost(host), is_local)
}

fn covers(exception: &ProxyException, host: &str, address: Option<IpAddr>, port: u16) -> bool {
    let is_port = |wanted: &Option<u16>| wanted.is_none_or(|wanted| wanted == port);
    match exception {
        ProxyException::All => true,
        ProxyException::Name(name, wanted) => {
            let above = host.strip_suffix(name.as_str());
            let fits = above.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
            address.is_none() && fits && is_port(wanted)
        }
        ProxyException::Net(net, bits, wanted) => {
            address.is_some_and(|address| is_in(address, *net, *bits)) && is_port(wanted)
        }
    }
}

fn is_in(address: IpAddr, net: IpAddr, bits: u8) -> bool {
    let (all, found, wanted) = match (address, net) {
        (IpAddr::V4(address), IpAddr::V4(net)) => {
            (32, u128::from(address.to_bits()), u128::from(net.to_bits()))
        }
        (IpAddr::V6(address), IpAddr::V6(net)) => (128, address.to_bits(), net.to_bits()),
        _ => return false,
    };
    let host_bits = u32::from(bits).abs_diff(all);
    let prefix = |bits: u128| bits.checked_shr(host_bits).unwrap_or_default();
    prefix(found) == prefix(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Arguments, resolve};

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        let environment: Vec<_> = variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        let resolution = resolve(&Arguments::parse([]), &environment);
        Proxies::new(&resolution.settings.unwrap().outbound)
    }

    fn is_proxied(proxies: &Proxies, url: &str) -> bool {
        let (scheme, authority) = url.split_once("://").unwrap();
        let scheme = if scheme == "https" {
            Scheme::Https
        } else {
            Scheme::Http
        };
        proxies.proxy_for(scheme, authority).is_some()
    }

    #[test]
    fn each_scheme_has_its_proxy() {
        let both = proxies(&[
            ("HTTPS_PROXY", "http://s:1"),
            ("http_proxy", "http://u:p@p:2"),
        ]);
        let https = both.proxy_for(Scheme::Https, "r.example").unwrap();
        assert_eq!(
            (https.shown.as_str(), https.setting),
            ("http://s:1", "HTTPS_PROXY")
        );
        assert_eq!(https.authorization, None);
        let http = both.proxy_for(Scheme::Http, "r.example:5000").unwrap();
        assert_eq!(
            (http.shown.as_str(), http.setting),
            ("http://p:2", "HTTP_PROXY")
        );
        let authorization = http.authorization.as_ref().map(|a| a.expose().as_str());
        assert_eq!(authorization, Some("Basic dTpw"));
        assert!(!format!("{both:?}").contains("dTpw"));
        let one = proxies(&[("HTTPS_PROXY", "http://s:1")]);
        assert!(!is_proxied(&one, "http://r.example"));
        assert!(!is_proxied(&Proxies::default(), "https://r.example"));
    }

    #[test]
    fn loopback_and_metadata_are_never_proxied() {
        let all = proxies(&[("HTTPS_PROXY", "http://p:1"), ("HTTP_PROXY", "http://p:1")]);
        for host in [
            "127.0.0.1",
            "127.8.8.8:5000",
            "localhost",
            "LocalHost.:80",
            "a.localhost",
            "[::1]",
            "[::1]:80",
            "[::ffff:127.0.0.1]",
            "169.254.169.254",
            "169.254.170.2:80",
            "169.254.170.23",
            "[fd00:ec2::254]",
            "[fd00:ec2::23]:80",
            "[fe80::1]",
        ] {
            assert!(!is_proxied(&all, &format!("http://{host}")), "{host}");
            assert!(!is_proxied(&all, &format!("https://{host}")), "{host}");
        }
        for host in ["10.0.0.1", "[fd00::1]", "localhost.example", "169.253.0.1"] {
            assert!(is_proxied(&all, &format!("http://{host}")), "{host}");
        }
    }

    #[test]
    fn exceptions_cover_names_and_what_is_below_them() {
        let some = proxies(&[
            ("HTTPS_PROXY", "http://p:1"),
            (
                "NO_PROXY",
                "a.example, .B.example, d.example:8443,10.0.0.0/8,fd00::/64,1.2.3.4:5",
            ),
        ]);
        for direct in [
            "a.example",
            "A.Example.",
            "x.a.example:5000",
            "b.example",
            "x.y.b.example",
            "d.example:8443",
            "10.9.8.7",
            "[fd00::9]:444",
            "1.2.3.4:5",
            "[::ffff:10.0.0.1]",
        ] {
            assert!(!is_proxied(&some, &format!("https://{direct}")), "{direct}");
        }
        for proxied in [
            "xa.example",
            "example",
            "a.example.org",
            "d.example",
            "11.0.0.1",
            "[fd00:0:0:1::9]",
            "1.2.3.4:6",
            "10.example",
        ] {
            assert!(
                is_proxied(&some, &format!("https://{proxied}")),
                "{proxied}"
            );
        }
        let none = proxies(&[("HTTPS_PROXY", "http://p:1"), ("no_proxy", "x,*")]);
        assert!(!is_proxied(&none, "https://r.example"));
        let zero = proxies(&[
            ("HTTPS_PROXY", "http://p:1"),
            ("no_proxy", "0.0.0.0/0,::/0"),
        ]);
        assert!(!is_proxied(&zero, "https://8.8.8.8"));
        assert!(!is_proxied(&zero, "https://[2001:db8::1]"));
        assert!(is_proxied(&zero, "https://r.example"));
    }
}
