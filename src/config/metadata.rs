//! The metadata endpoints of containers and instances, from which AWS's own machines get their
//! credentials. Owns: their settings, and which addresses are such endpoints. Must not: call them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use super::parse::{keep_if, switch};
use crate::oci;
use crate::secret::Secret;

/// Addresses beside loopback that hand out container credentials: ECS, and EKS Pod Identity in
/// both families (SDK reference guide, "Container credential provider").
const CONTAINER_ADDRESSES: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x23)),
];
/// The instance metadata service, unless a setting names another address.
const INSTANCE_ENDPOINT_IPV4: &str = "http://169.254.169.254";
/// The instance metadata service in `IPv6` mode.
const INSTANCE_ENDPOINT_IPV6: &str = "http://[fd00:ec2::254]";
/// Longest URI taken; those of ECS and EKS have well under 100 bytes.
const URI_LENGTH_MAX: usize = 2048;

/// `AWS_CONTAINER_*`
#[derive(Debug, Clone, Default)]
pub struct ContainerSettings {
    /// `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`: path and query, from a slash on
    pub relative_uri: Option<String>,
    /// `AWS_CONTAINER_CREDENTIALS_FULL_URI`
    pub full_uri: Option<String>,
    /// `AWS_CONTAINER_AUTHORIZATION_TOKEN`
    pub authorization_token: Option<Secret<String>>,
    /// `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE`
    pub authorization_token_file: Option<PathBuf>,
}

/// `AWS_EC2_METADATA_*`
#[derive(Debug, Clone)]
pub struct InstanceSettings {
    /// The opposite of `AWS_EC2_METADATA_DISABLED`. False by default: nothing may call the network
    /// before the user's settings were read.
    pub enabled: bool,
    /// `AWS_EC2_METADATA_SERVICE_ENDPOINT`: `scheme://host[:port]`
    pub endpoint: Option<String>,
    /// `AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE` is `IPv6`.
    pub ipv6: bool,
    /// `AWS_METADATA_SERVICE_TIMEOUT`: to connect, and again for the reply
    pub timeout: Duration,
    /// `AWS_METADATA_SERVICE_NUM_ATTEMPTS`
    pub attempts: u32,
}

impl Default for InstanceSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            endpoint: None,
            ipv6: false,
            timeout: Duration::from_secs(1),
            attempts: 4,
        }
    }
}

impl InstanceSettings {
    /// The address of the service, without a slash at its end.
    pub fn base(&self) -> &str {
        match (&self.endpoint, self.ipv6) {
            (Some(endpoint), _) => endpoint,
            (None, true) => INSTANCE_ENDPOINT_IPV6,
            (None, false) => INSTANCE_ENDPOINT_IPV4,
        }
    }
}

/// True for addresses that container credentials may come from without TLS.
pub fn is_container_address(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback() || CONTAINER_ADDRESSES.contains(&address)
}

/// Scheme, authority and the rest (from the slash on) of a URI that may be asked for credentials.
///
/// # Errors
/// Says what is wrong with it. A host name always passes here: its addresses are checked when it
/// is used.
pub fn container_uri(text: &str) -> Result<(&str, &str, &str), String> {
    let (scheme, rest) = text.split_once("://").ok_or("this has no scheme")?;
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(at).unwrap_or((rest, ""));
    if !oci::is_authority(authority) {
        return Err("this has no host name with an optional port".to_owned());
    }
    if text.len() > URI_LENGTH_MAX || !is_path(path) {
        return Err("this has a path with characters that no URI has".to_owned());
    }
    if scheme.eq_ignore_ascii_case("https") {
        return Ok(("https", authority, path));
    }
    if !scheme.eq_ignore_ascii_case("http") {
        return Err("this has a scheme other than http or https".to_owned());
    }
    let bare = oci::host_of(authority).trim_matches(['[', ']']);
    match bare.parse() {
        Ok(address) if !is_container_address(address) => {
            Err("this address is none of these".to_owned())
        }
        _ => Ok(("http", authority, path)),
    }
}

/// Path and query (RFC 3986 §3.3, §3.4), or nothing.
fn is_path(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_graphic() && !b"\"#<>\\^`{|}".contains(&b))
}

/// `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`
pub(super) fn relative_uri(text: &str) -> Result<String, String> {
    // Without the slash the text would go on the host's name: `@evil.example/` is another host.
    let fits = text.starts_with('/') && is_path(text) && text.len() <= URI_LENGTH_MAX;
    keep_if(text, fits)
}

/// `AWS_CONTAINER_CREDENTIALS_FULL_URI`
pub(super) fn full_uri(text: &str) -> Result<String, String> {
    container_uri(text)?;
    Ok(text.to_owned())
}

/// `AWS_CONTAINER_AUTHORIZATION_TOKEN`
pub(super) fn authorization_token(text: &str) -> Result<Secret<String>, String> {
    keep_if(text, is_field_value(text)).map(Secret::new)
}

/// True for what fits a header field (RFC 9110 §5.5), bytes above ASCII left out.
pub fn is_field_value(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
}

/// `AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE`: the words, and whether each is IPv6.
pub(super) const MODES: &[(&str, bool)] = &[("ipv4", false), ("ipv6", true)];

/// `AWS_EC2_METADATA_V1_DISABLED`
pub(super) fn check_v1_disabled(text: &str) -> Result<(), String> {
    match switch(text) {
        Some(true) => Ok(()),
        Some(false) => Err("version 1 asks for no token and is never used".to_owned()),
        None => Err(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hosts_of_containers_may_be_asked_in_plain_text() {
        for good in [
            "http://169.254.170.2/v2/credentials/1b2c?x=y",
            "http://169.254.170.23/v1/credentials",
            "http://[fd00:ec2::23]/v1/credentials",
            "http://127.0.0.1:1234/",
            "http://127.8.9.10",
            "http://[::1]:80/a",
            "HTTP://localhost/a",
            "http://agent.internal:8080/a",
            "https://10.0.0.1/a",
            "https://vault.example/a",
        ] {
            assert!(container_uri(good).is_ok(), "{good}");
        }
        for bad in [
            "http://10.0.0.1/a",
            "http://169.254.169.254/latest",
            "http://[fd00:ec2::254]/",
            "http://[::ffff:10.0.0.1]/",
            "http://0.0.0.0/",
            "http://user@127.0.0.1/",
            "http://127.0.0.1#@evil/",
            "http://127.0.0.1/a b",
            "http:///a",
            "ftp://127.0.0.1/a",
            "127.0.0.1/a",
            "",
        ] {
            assert!(container_uri(bad).is_err(), "{bad}");
        }
        let parts = container_uri("http://[::1]:8/a?b=c");
        assert_eq!(parts, Ok(("http", "[::1]:8", "/a?b=c")));
        assert!(container_uri(&format!("https://h/{}", "a".repeat(URI_LENGTH_MAX))).is_err());
    }

    #[test]
    fn a_relative_uri_cannot_name_a_host() {
        for bad in ["@evil.example/", ".evil.example/", "v2", "", "/a b", "/a#b"] {
            assert!(relative_uri(bad).is_err(), "{bad}");
        }
        let good = "/v2/credentials/1?a=b";
        assert_eq!(relative_uri(good).as_deref(), Ok(good));
    }

    #[test]
    fn the_instance_endpoint_follows_mode_and_override() {
        let mut instance = InstanceSettings::default();
        assert_eq!(instance.base(), "http://169.254.169.254");
        instance.ipv6 = true;
        assert_eq!(instance.base(), "http://[fd00:ec2::254]");
        instance.endpoint = Some("http://127.0.0.1:1".into());
        assert_eq!(instance.base(), "http://127.0.0.1:1");
    }
}
