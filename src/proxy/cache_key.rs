//! `CACHE_KEY`: the partition of the tag entries that a request belongs to. Owns: the meaning of
//! nginx's variables here. Must not: look at anything but the request.

use std::fmt::Write as _;

use crate::config::{CacheKey, KeyPart};
use crate::message::Request;
use crate::oci;

/// Bytes of a partition's name: with 64 bits, no two keys meet by chance.
const PARTITION_BYTES: usize = 8;

/// The partition's name; empty for the default key, under which all requests share one.
///
/// `path` is the request's path without a registry's host in it: every entry belongs to a registry
/// anyway, however the client names it.
pub(super) fn partition(key: &CacheKey, request: &Request, path: &str) -> String {
    if key.is_default() {
        return String::new();
    }
    let rendered = render(key, request, path);
    let digest = ring::digest::digest(&ring::digest::SHA256, rendered.as_bytes());
    let bytes = digest.as_ref().iter().take(PARTITION_BYTES);
    bytes.fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn render(key: &CacheKey, request: &Request, path: &str) -> String {
    let mut text = String::new();
    for part in key.parts() {
        match part {
            KeyPart::Args => text.push_str(request.query().unwrap_or_default()),
            KeyPart::Field(name) => {
                text.push_str(&request.headers.join_values(name).unwrap_or_default());
            }
            KeyPart::Host => {
                let host = request.headers.first("Host").unwrap_or_default();
                text.push_str(&oci::host_of(host).to_ascii_lowercase());
            }
            KeyPart::IsArgs if request.query().is_some_and(|query| !query.is_empty()) => {
                text.push('?');
            }
            KeyPart::IsArgs => {}
            // A HEAD and the GET that follows it share an entry.
            KeyPart::Method if request.method == "HEAD" => text.push_str("GET"),
            KeyPart::Method => text.push_str(&request.method),
            KeyPart::Scheme => text.push_str(if request.peer.tls { "https" } else { "http" }),
            KeyPart::Target => text.push_str(&request.target),
            KeyPart::Text(own) => text.push_str(own),
            KeyPart::Uri => text.push_str(path),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::message::{Headers, Peer};

    fn request(method: &str, target: &str, host: &str, team: &str) -> Request {
        Request {
            method: method.into(),
            target: target.into(),
            headers: Headers::from_iter([("Host", host), ("X-Team", team)]),
            peer: Peer::on_unix_socket(),
            id: "1".into(),
        }
    }

    fn key(text: &str) -> CacheKey {
        let environment = [("CACHE_KEY".into(), text.into())];
        let settings = crate::config::resolve(&crate::config::Arguments::parse([]), &environment);
        settings.settings.unwrap().cache_key
    }

    #[test]
    fn the_default_key_makes_no_partitions() {
        let any = request("GET", "/v2/a/manifests/1?ns=x", "h", "t");
        assert_eq!(
            partition(&Settings::default().cache_key, &any, any.path()),
            ""
        );
    }

    #[test]
    fn variables_are_nginxs() {
        let any = request("HEAD", "/v2/a/manifests/1?ns=x", "H:80", "t");
        let whole =
            key("$request_method $scheme://$host$uri$is_args$args $request_uri $http_x_team");
        assert_eq!(
            render(&whole, &any, any.path()),
            "GET http://h/v2/a/manifests/1?ns=x /v2/a/manifests/1?ns=x t"
        );
    }

    #[test]
    fn what_the_key_names_tells_requests_apart() {
        let by_team = key("$uri$http_x_team");
        let path = "/v2/a/manifests/1";
        let partition = |host, team| partition(&by_team, &request("GET", path, host, team), path);
        let (one, two) = (partition("h", "one"), partition("h", "two"));
        let other_host = partition("i", "one");
        assert_eq!(one.len(), 16);
        assert!(one != two && one == other_host);
    }
}
