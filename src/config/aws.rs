//! The settings that AWS SDKs share. Owns: their values and how they are written. Must not: read
//! AWS's own files or ask AWS.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::metadata::{ContainerSettings, InstanceSettings};
use super::parse::{keep_if, one_of};
use crate::secret::Secret;
use crate::small_file;

/// Largest CA bundle; Mozilla's whole list is about 250 kB.
pub const CA_BUNDLE_BYTES_MAX: u64 = 4 << 20;
/// Longest ARN of a role (STS API reference, `AssumeRole`).
const ROLE_ARN_LENGTH_MAX: usize = 2048;
/// Shortest and longest name of a role's session (STS API reference, `AssumeRole`).
const SESSION_NAME_LENGTH: std::ops::RangeInclusive<usize> = 2..=64;
/// Longest region: it becomes a label of a host name (RFC 1035 §2.3.4).
pub const REGION_LENGTH_MAX: usize = 63;

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
    /// `AWS_PROFILE`
    pub profile: Option<String>,
    /// `AWS_SHARED_CREDENTIALS_FILE`
    pub credentials_file: Option<PathBuf>,
    /// `AWS_CONFIG_FILE`
    pub config_file: Option<PathBuf>,
    /// `HOME`, where the shared files are unless the two above say otherwise
    pub home: Option<PathBuf>,
    /// `AWS_ROLE_ARN`
    pub role_arn: Option<String>,
    /// `AWS_WEB_IDENTITY_TOKEN_FILE`
    pub web_identity_token_file: Option<PathBuf>,
    /// `AWS_ROLE_SESSION_NAME`
    pub role_session_name: Option<String>,
    /// `AWS_USE_FIPS_ENDPOINT`; none: what the profile says
    pub use_fips: Option<bool>,
    /// `AWS_USE_DUALSTACK_ENDPOINT`; none: what the profile says
    pub use_dual_stack: Option<bool>,
    /// `AWS_STS_REGIONAL_ENDPOINTS`; none: what the profile says
    pub sts_endpoints: Option<StsEndpoints>,
    /// `AWS_IGNORE_CONFIGURED_ENDPOINT_URLS`; none: what the profile says
    pub ignore_endpoint_urls: Option<bool>,
    /// The endpoints that the profile names; the environment cannot set them.
    pub profile_endpoints: ProfileEndpoints,
}

/// The fault of a key without its other half: no call to AWS can be signed with it.
pub(super) fn half_key_fault(is_missing: impl Fn(&str) -> bool) -> Option<String> {
    let (id, secret) = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY");
    let (given, missing) = match (is_missing(id), is_missing(secret)) {
        (false, true) => (id, secret),
        (true, false) => (secret, id),
        _ => return None,
    };
    Some(format!("{given}: expected {missing} to be set too"))
}

impl AwsSettings {
    /// Warns of a temporary key without its session token, which AWS will refuse after a while.
    pub(super) fn warning(&self) -> Option<String> {
        let key = self.access_key_id.as_deref()?.trim();
        let token = self.session_token.as_ref();
        let has_token = token.is_some_and(|token| !token.expose().trim().is_empty());
        (key.starts_with("ASIA") && !has_token).then(|| {
            "AWS_ACCESS_KEY_ID begins with ASIA, so it is temporary: set AWS_SESSION_TOKEN, too"
                .to_owned()
        })
    }

    /// The settings that an identity may come from and that are given, by name.
    pub fn given_sources(&self) -> Vec<&'static str> {
        let container = &self.container;
        let all = [
            ("AWS_SESSION_TOKEN", self.session_token.is_some()),
            ("AWS_PROFILE", self.profile.is_some()),
            (
                "AWS_SHARED_CREDENTIALS_FILE",
                self.credentials_file.is_some(),
            ),
            ("AWS_CONFIG_FILE", self.config_file.is_some()),
            ("AWS_ROLE_ARN", self.role_arn.is_some()),
            (
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                container.relative_uri.is_some(),
            ),
            (
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                container.full_uri.is_some(),
            ),
            ("AWS_REGION", self.region.is_some()),
            ("HOME", self.home.is_some()),
        ];
        let given = all.into_iter().filter(|(_, given)| *given);
        given.map(|(name, _)| name).collect()
    }
}

/// Endpoints in the shared config file, as written there. They rank below the variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProfileEndpoints {
    /// The profile's own `endpoint_url`
    pub any: Option<String>,
    /// The endpoint of `ecr` in the profile's `services` section
    pub ecr: Option<String>,
    /// The endpoint of `sts` in the profile's `services` section
    pub sts: Option<String>,
}

/// Which hosts of STS are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StsEndpoints {
    /// The region's own.
    Regional,
    /// `sts.amazonaws.com` for the regions that AWS had when it was the only one.
    Legacy,
}

impl StsEndpoints {
    pub(super) const WORDS: &[(&str, Self)] =
        &[("regional", Self::Regional), ("legacy", Self::Legacy)];

    /// Reads the setting's value, or that of `sts_regional_endpoints`, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        one_of(text, Self::WORDS).ok()
    }
}

/// True for a name that STS takes for a role's session (`[\w+=,.@-]{2,64}`).
pub fn is_session_name(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b);
    SESSION_NAME_LENGTH.contains(&text.len()) && text.bytes().all(fits)
}

/// True for a text in the form of a role's ARN, in any partition.
pub fn is_role_arn(text: &str) -> bool {
    let whole = text.len() <= ROLE_ARN_LENGTH_MAX && text.bytes().all(|b| b.is_ascii_graphic());
    // arn:partition:iam::account:role/name
    let mut fields = text.splitn(6, ':');
    let mut field = || fields.next().unwrap_or_default();
    let (arn, partition, service) = (field(), field(), field());
    let (_region, account, resource) = (field(), field(), field());
    whole
        && (arn, service) == ("arn", "iam")
        && !partition.is_empty()
        && !account.is_empty()
        && resource
            .strip_prefix("role/")
            .is_some_and(|name| !name.is_empty())
}

/// The home directory, which has AWS's files in it and is no setting.
pub(super) fn find_home(environment: &[(OsString, OsString)]) -> Option<PathBuf> {
    let (_, value) = environment.iter().find(|(name, _)| name == "HOME")?;
    Some(PathBuf::from(value)).filter(|home| home.is_absolute())
}

/// `AWS_REGION`
pub(super) fn region(text: &str) -> Result<String, String> {
    // It becomes part of a host name that credentials are sent to.
    let fit = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    keep_if(
        text,
        text.len() <= REGION_LENGTH_MAX && text.bytes().all(fit),
    )
}

/// Reads a key or a token. They travel in header fields, where other characters would break or
/// forge a line.
pub(super) fn visible(text: &str) -> Result<String, String> {
    keep_if(text, text.bytes().all(|b| b.is_ascii_graphic()))
}

/// Reads a secret key or a token.
pub(super) fn visible_secret(text: &str) -> Result<Secret<String>, String> {
    visible(text).map(Secret::new)
}

/// `AWS_PROFILE`
pub(super) fn profile(text: &str) -> Result<String, String> {
    keep_if(
        text,
        !text.contains(']') && !text.contains(char::is_control),
    )
}

/// `AWS_ROLE_ARN`
pub(super) fn role_arn(text: &str) -> Result<String, String> {
    keep_if(text, is_role_arn(text))
}

/// `AWS_ROLE_SESSION_NAME`
pub(super) fn session_name(text: &str) -> Result<String, String> {
    keep_if(text, is_session_name(text))
}

/// `AWS_CA_BUNDLE`
pub(super) fn ca_bundle(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let bytes = small_file::read(path, CA_BUNDLE_BYTES_MAX)
        .map_err(|error| format!("it cannot be read: {error}"))?;
    if !has_certificate(&bytes) {
        return Err("it has none".to_owned());
    }
    Ok(path.to_owned())
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
    fn roles_are_told_from_other_arns() {
        for good in [
            "arn:aws:iam::123456789012:role/puller",
            "arn:aws-cn:iam::123456789012:role/path/to/puller",
        ] {
            assert!(is_role_arn(good), "{good}");
        }
        let long = format!("arn:aws:iam::1:role/{}", "a".repeat(ROLE_ARN_LENGTH_MAX));
        for bad in [
            "",
            "puller",
            "arn:aws:iam::123456789012:user/a",
            "arn:aws:iam::123456789012:role/",
            "arn:aws:sts::123456789012:role/a",
            "arn::iam::123456789012:role/a",
            "arn:aws:iam::123456789012:role/a b",
            &long,
        ] {
            assert!(!is_role_arn(bad), "{bad}");
        }
    }

    #[test]
    fn session_names_are_those_of_sts() {
        for good in ["ab", "node-1.site@example+x=y,z_", &"a".repeat(64)] {
            assert!(is_session_name(good), "{good}");
        }
        for bad in ["", "a", "a b", "a/b", "é", &"a".repeat(65)] {
            assert!(!is_session_name(bad), "{bad}");
        }
    }

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
