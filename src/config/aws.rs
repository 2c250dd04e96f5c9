//! The settings that AWS SDKs share. Owns: their values and how they are written. Must not: read
//! AWS's own files or ask AWS.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::parse::url;
use super::{ContainerSettings, InstanceSettings, Settings};
use crate::log::Secret;

/// Largest CA bundle; Mozilla's whole list is about 250 kB.
const CA_BUNDLE_BYTES_MAX: u64 = 4 << 20;
/// Longest region: it becomes a label of a host name (RFC 1035 §2.3.4).
const REGION_LENGTH_MAX: usize = 63;

/// The settings AWS SDKs share. Blank counts as unset.
#[derive(Debug, Clone, Default)]
pub struct AwsSettings {
    /// `AWS_REGION`
    pub region: Option<String>,
    /// `AWS_ACCESS_KEY_ID`
    pub access_key_id: Option<String>,
    /// `AWS_SECRET_ACCESS_KEY`
    pub secret_access_key: Option<Secret<String>>,
    /// `AWS_SESSION_TOKEN`
    pub session_token: Option<Secret<String>>,
    /// `AWS_ENDPOINT_URL`: `scheme://host[:port]`, no slash at the end, default port left out
    pub endpoint_url: Option<String>,
    /// `AWS_ENDPOINT_URL_ECR`, likewise
    pub endpoint_url_ecr: Option<String>,
    /// `AWS_ENDPOINT_URL_STS`, likewise
    pub endpoint_url_sts: Option<String>,
    /// `AWS_CA_BUNDLE`: PEM, in place of the built-in roots.
    pub ca_bundle: Option<PathBuf>,
    /// `AWS_CONTAINER_*`
    pub container: ContainerSettings,
    /// `AWS_EC2_METADATA_*`
    pub instance: InstanceSettings,
}

pub(super) fn region(settings: &mut Settings, text: &str) -> Result<(), String> {
    // It becomes part of a host name that credentials are sent to.
    let fit = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if text.len() > REGION_LENGTH_MAX || !text.bytes().all(fit) {
        return Err(String::new());
    }
    settings.aws.region = Some(text.to_owned());
    Ok(())
}

pub(super) fn access_key_id(settings: &mut Settings, text: &str) -> Result<(), String> {
    settings.aws.access_key_id = Some(visible(text)?);
    Ok(())
}

pub(super) fn secret_access_key(settings: &mut Settings, text: &str) -> Result<(), String> {
    settings.aws.secret_access_key = Some(Secret::new(visible(text)?));
    Ok(())
}

pub(super) fn session_token(settings: &mut Settings, text: &str) -> Result<(), String> {
    settings.aws.session_token = Some(Secret::new(visible(text)?));
    Ok(())
}

/// Key and token travel in header fields, where anything else would break or forge a line.
fn visible(text: &str) -> Result<String, String> {
    if text.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(text.to_owned());
    }
    Err(String::new())
}

pub(super) fn endpoint_url(settings: &mut Settings, text: &str) -> Result<(), String> {
    settings.aws.endpoint_url = Some(url(text)?);
    Ok(())
}

pub(super) fn endpoint_url_ecr(settings: &mut Settings, text: &str) -> Result<(), String> {
    settings.aws.endpoint_url_ecr = Some(url(text)?);
    Ok(())
}

pub(super) fn endpoint_url_sts(settings: &mut Settings, text: &str) -> Result<(), String> {
    settings.aws.endpoint_url_sts = Some(url(text)?);
    Ok(())
}

pub(super) fn ca_bundle(settings: &mut Settings, text: &str) -> Result<(), String> {
    let path = Path::new(text);
    let why = |error: std::io::Error| format!("it cannot be read: {error}");
    // Opening a pipe would wait for its writer, so the kind comes first.
    if !path.metadata().map_err(why)?.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let file = std::fs::File::open(path).map_err(why)?;
    let mut bytes = Vec::new();
    let mut limited = file.take(CA_BUNDLE_BYTES_MAX + 1);
    let length = limited.read_to_end(&mut bytes).map_err(why)?;
    if u64::try_from(length).unwrap_or(u64::MAX) > CA_BUNDLE_BYTES_MAX {
        let limit_mib = CA_BUNDLE_BYTES_MAX >> 20;
        return Err(format!("it is larger than {limit_mib} MiB"));
    }
    if !has_certificate(&bytes) {
        return Err("it has none".to_owned());
    }
    settings.aws.ca_bundle = Some(PathBuf::from(path));
    Ok(())
}

/// True when a line that begins a certificate is followed by one that ends it (RFC 7468 §5).
fn has_certificate(bytes: &[u8]) -> bool {
    let mut lines = bytes.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
    lines.any(|line| line == b"-----BEGIN CERTIFICATE-----")
        && lines.any(|line| line == b"-----END CERTIFICATE-----")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_found_by_their_lines() {
        let whole =
            b"# roots\n-----BEGIN CERTIFICATE-----\r\nMIIB\r\n-----END CERTIFICATE-----\r\n";
        assert!(has_certificate(whole));
        assert!(!has_certificate(b""));
        assert!(!has_certificate(b"-----BEGIN CERTIFICATE-----\nMIIB\n"));
        assert!(!has_certificate(
            b"-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n"
        ));
    }
}
