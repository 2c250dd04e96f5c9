//! Variables that are spelt almost like a setting. Owns: what "almost" is, and which names belong
//! to other programs. Must not: look at a value, except whether it is blank.
//!
//! An unknown flag is an error, but an environment is shared: most of its variables are not for us.
//! So only a name that is close to one of ours is reported.

use std::ffi::{OsStr, OsString};

use super::fault::{Fault, mask};
use super::rows::table_rows;
use super::table::Setting;

/// Edits (insert, delete, replace) that a misspelt name may need.
const EDITS_MAX: usize = 2;
/// Names with fewer letters than this may need one edit only: `HOST` is two away from `PORT`.
const LONG_NAME: usize = 6;
/// Names with fewer letters than this must have the same letters: `EC2` is one away from `ECR`.
const SHORT_NAME: usize = 4;
/// Letters that two words share at their beginning when one abbreviates or inflects the other:
/// `REPOS` and `REPOSITORIES`.
const STEM_LETTERS_MIN: usize = 4;
/// Longest name that is compared: the comparison is quadratic.
const LENGTH_MAX: usize = 64;

/// Words that are put before the name of a setting to say whose it is.
const BEGINNINGS: [&str; 3] = ["AWS_ECR_PROXY_", "ECR_PROXY_", "ECR_"];
/// Words that are put behind it to say what it holds.
const ENDS: [&str; 6] = ["_ENABLE", "_ENABLED", "_FILE", "_LIST", "_MODE", "_PATH"];
/// Shorter names than this may stand in a longer one by chance: `ECR_PORT`.
const WRAPPED_LENGTH_MIN: usize = 8;

/// Names that are close to one of ours and belong to others: shells, curl, SSH, Kubernetes's
/// downward API, and older SDKs of AWS.
const OTHERS: &[&str] = &[
    "AWS_ACCESS_KEY",
    "ENABLE_SSH",
    "FTPS_PROXY",
    "FTP_PROXY",
    "LINES",
    "NAMESPACE",
    "SSH_KEY",
    "WSS_PROXY",
    "WS_PROXY",
];
/// Beginnings of names that belong to others. AWS has an endpoint variable for each of its services
/// (SDK reference guide, "Service-specific endpoints"): `AWS_ENDPOINT_URL_SNS`.
const OTHERS_BEGIN: &[&str] = &["AWS_ENDPOINT_URL_"];

/// Names of a predecessor (catalinpan/aws-ecr-proxy), and those by which Docker's registry keeps
/// clients out, that are too far from ours to be slips. They count only while ours is not set:
/// `REGION` may be there for another program.
const PREDECESSORS: &[(&str, &str)] = &[
    ("AWS_KEY", "AWS_ACCESS_KEY_ID"),
    ("AWS_SECRET", "AWS_SECRET_ACCESS_KEY"),
    ("REGION", "AWS_REGION"),
    ("REGISTRY_AUTH_HTPASSWD_PATH", "AUTH_FILE"),
    ("REGISTRY_HTTP_TLS_CLIENTCAS", "SSL_CLIENT_CA"),
    ("REGISTRY_HTTP_TLS_CLIENTCAS_0", "SSL_CLIENT_CA"),
    ("REGISTRY_STORAGE_MAINTENANCE_READONLY_ENABLED", "READ_ONLY"),
    ("RENEW_TOKEN", "RENEW_INTERVAL_HOURS"),
];

/// A variable that is probably the misspelt name of a setting.
#[derive(Debug)]
pub(super) struct NearMiss {
    /// As given; fit to be shown.
    variable: String,
    /// The name that was probably meant.
    known: &'static str,
    /// The setting of that name.
    pub(super) setting: &'static Setting,
}

impl NearMiss {
    /// The text for a setting that does not limit clients.
    pub(super) fn warning(&self) -> String {
        let (variable, known) = (&self.variable, self.known);
        format!("{variable} is no setting; did you mean {known}?")
    }

    /// The text for a setting that keeps clients out.
    pub(super) fn fault(&self) -> Fault {
        let (variable, known) = (&self.variable, self.known);
        Fault::new(format!(
            "{variable}: no setting; did you mean {known}? rename it, or set {known} too: \
             the rights of clients depend on it"
        ))
    }
}

/// Finds the variables that are set and close to a setting's name, in the order of their names.
pub(super) fn find(environment: &[(OsString, OsString)]) -> Vec<NearMiss> {
    let is_blank = |value: &OsStr| value.to_str().is_some_and(|text| text.trim().is_empty());
    let set = environment.iter().filter(|(_, value)| !is_blank(value));
    let mut found: Vec<NearMiss> = set
        .filter_map(|(variable, _)| nearest(variable.to_str()?))
        .collect();
    let is_set = |name: &str| {
        let mut values = environment.iter().filter(|(known, _)| known == name);
        values.any(|(_, value)| !is_blank(value))
    };
    let predecessors = PREDECESSORS.iter();
    let predecessors = predecessors.filter(|(theirs, ours)| is_set(theirs) && !is_set(ours));
    found.extend(predecessors.filter_map(|(theirs, ours)| {
        Some(NearMiss {
            variable: (*theirs).to_owned(),
            known: ours,
            setting: table_rows().find(|setting| setting.name == *ours)?,
        })
    }));
    found.sort_by(|a, b| a.variable.cmp(&b.variable));
    found
}

/// The setting that `variable` is probably meant to be.
fn nearest(variable: &str) -> Option<NearMiss> {
    let upper = variable.to_ascii_uppercase();
    let is_others = OTHERS.contains(&upper.as_str())
        || OTHERS_BEGIN.iter().any(|begin| upper.starts_with(begin));
    let names =
        || table_rows().flat_map(|setting| setting.names().map(move |name| (name, setting)));
    if is_others || variable.len() > LENGTH_MAX || names().any(|(name, _)| name == variable) {
        return None;
    }
    let near = names().filter_map(|(name, setting)| Some((distance(&upper, name)?, name, setting)));
    // A setting that keeps clients out goes first: the other one would only be warned about.
    let nearest = near.min_by_key(|(distance, _, setting)| (*distance, !setting.keeps_out));
    nearest.map(|(_, known, setting)| NearMiss {
        variable: mask(variable),
        known,
        setting,
    })
}

/// How far two names are apart, if they are close: edits between their letters, `_` left out.
fn distance(variable: &str, name: &str) -> Option<usize> {
    // The two words name the same thing.
    let (variable, name) = (
        &*variable.replace("TLS", "SSL"),
        &*name.replace("TLS", "SSL"),
    );
    let (letters, own) = (letters(variable), letters(name));
    let first_word = name.split('_').next().unwrap_or_default().len();
    let is_long = letters.len() >= first_word + STEM_LETTERS_MIN;
    let is_cut = letters == variable && is_long && own.starts_with(&letters);
    let edits_max = match own.len() {
        ..SHORT_NAME => 0,
        SHORT_NAME..LONG_NAME => 1,
        _ => EDITS_MAX,
    };
    let close = letters.len().abs_diff(own.len()) <= edits_max;
    let edits = Some(()).filter(|()| close).map(|()| edits(&letters, &own));
    let edits = edits.filter(|edits| *edits <= edits_max);
    let is_near = || is_cut || has_the_same_words(variable, name) || is_wrapped(variable, name);
    edits.or_else(|| is_near().then_some(EDITS_MAX))
}

/// True for `ECR_READ_ONLY` and `READ_ONLY_MODE`.
fn is_wrapped(variable: &str, name: &str) -> bool {
    let mut before = BEGINNINGS.iter().map(|word| variable.strip_prefix(word));
    let mut behind = ENDS.iter().map(|word| variable.strip_suffix(word));
    let is_name = |rest: Option<&str>| rest == Some(name);
    name.len() >= WRAPPED_LENGTH_MIN && (before.any(is_name) || behind.any(is_name))
}

/// Upper case, and only what is not there to separate words.
fn letters(name: &str) -> String {
    let kept = name.chars().filter(|c| !"_-.".contains(*c));
    kept.map(|c| c.to_ascii_uppercase()).collect()
}

/// True for `ALLOW_REPOS` and `ALLOW_REPOSITORIES`: as many words, in any order, each the same or
/// of one stem.
fn has_the_same_words(one: &str, other: &str) -> bool {
    let sorted = |name: &str| {
        let mut words: Vec<String> = name.split('_').map(str::to_owned).collect();
        words.sort_unstable();
        words
    };
    let (ones, others) = (sorted(one), sorted(other));
    let mut pairs = ones.iter().zip(&others);
    ones.len() == others.len()
        && ones.len() > 1
        && pairs.all(|(one, other)| one == other || has_the_same_stem(one, other))
}

/// True when one word is the beginning of the other, but for a last letter (`REPOSITORY`,
/// `REPOSITORIES`).
fn has_the_same_stem(one: &str, other: &str) -> bool {
    let pairs = one.bytes().zip(other.bytes());
    let shared = pairs.take_while(|(one, other)| one == other).count();
    shared >= STEM_LETTERS_MIN && one.len().min(other.len()) <= shared + 1
}

/// Levenshtein distance between two names: one row of the table at a time.
pub(super) fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        let mut left = i + 1;
        for (to, above) in b.iter().zip(row.windows(2)) {
            let &[diagonal, above] = above else { continue };
            let replaced = diagonal + usize::from(from != *to);
            left = replaced.min(above + 1).min(left + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(variable: &str) -> Option<&'static str> {
        nearest(variable).map(|miss| miss.known)
    }

    #[test]
    fn a_name_with_a_slip_is_near_a_setting() {
        for (variable, known) in [
            ("READONLY", "READ_ONLY"),
            ("READ_ONYL", "READ_ONLY"),
            ("read_only", "READ_ONLY"),
            ("READ-ONLY", "READ_ONLY"),
            ("REDONLY", "READ_ONLY"),
            ("AUTHFILE", "AUTH_FILE"),
            ("AUTH_FILES", "AUTH_FILE"),
            ("AUTH_FLIE", "AUTH_FILE"),
            ("AUTHENTICATION_FILE", "AUTH_FILE"),
            ("ALLOW_REPOS", "ALLOW_REPOSITORIES"),
            ("ALLOW_REPOSITORY", "ALLOW_REPOSITORIES"),
            ("ALLOWED_REPOSITORIES", "ALLOW_REPOSITORIES"),
            ("ALLOWED_REPOS", "ALLOW_REPOSITORIES"),
            ("ALLOWREPOSITORIES", "ALLOW_REPOSITORIES"),
            ("SSLCLIENTCA", "SSL_CLIENT_CA"),
            ("SSL_CLIENTS_CA", "SSL_CLIENT_CA"),
            ("SSL_CERT", "SSL_CERTIFICATE"),
            ("SSLKEY", "SSL_KEY"),
            ("ENABLE_SLL", "ENABLE_SSL"),
            ("LISTEN_HSOT", "LISTEN_HOST"),
            ("LISTENPORT", "LISTEN_PORT"),
            ("LISTEN_PROT", "LISTEN_PORT"),
            ("CACHEDIR", "CACHE_DIR"),
            ("CACHE_TAGTTL", "CACHE_TAG_TTL"),
            ("WORKER", "WORKERS"),
            ("LOGLEVEL", "LOG_LEVEL"),
            ("PORTS", "PORT"),
            ("ecr", "ECR"),
            ("AWS_REGOIN", "AWS_REGION"),
            ("REGISTRY_HTTP_TLS_KEYS", "REGISTRY_HTTP_TLS_KEY"),
            ("ALLOWREPOS", "ALLOW_REPOSITORIES"),
            ("SSL_ENABLE", "ENABLE_SSL"),
            ("SSL_ENABLED", "ENABLE_SSL"),
            ("ENABLE_TLS", "ENABLE_SSL"),
            ("TLS_CLIENT_CA", "SSL_CLIENT_CA"),
            ("FILE_AUTH", "AUTH_FILE"),
            ("READ_ONLY_MODE", "READ_ONLY"),
            ("AUTH_FILE_PATH", "AUTH_FILE"),
            ("ECR_READ_ONLY", "READ_ONLY"),
            ("AWS_ECR_PROXY_AUTH_FILE", "AUTH_FILE"),
        ] {
            assert_eq!(meant(variable), Some(known), "{variable}");
        }
    }

    #[test]
    fn ordinary_variables_are_near_nothing() {
        let ordinary = "PATH HOME HOST HOSTNAME USER USERNAME LOGNAME SHELL SHLVL TERM PWD OLDPWD \
            LANG LANGUAGE LC_ALL LC_CTYPE TZ MAIL EDITOR VISUAL PAGER LESS LESSOPEN LS_COLORS \
            COLUMNS LINES PS1 PS2 IFS DISPLAY XAUTHORITY XDG_RUNTIME_DIR XDG_CACHE_HOME \
            XDG_SESSION_ID DBUS_SESSION_BUS_ADDRESS SSH_AUTH_SOCK SSH_CLIENT SSH_CONNECTION \
            SSH_TTY SSH_KEY SUDO_USER SUDO_UID TMPDIR TEMP TMP DEBIAN_FRONTEND CI DEBUG VERBOSE \
            container HTTP_PORT HTTPS_PORT FTP_PROXY ftp_proxy ALL_PROXY all_proxy \
            SSL_CERT_FILE SSL_CERT_DIR SSLKEYLOGFILE CURL_CA_BUNDLE REQUESTS_CA_BUNDLE \
            NODE_EXTRA_CA_CERTS REGISTRY_AUTH_FILE REGISTRY_AUTH REGISTRY_HTTP_ADDR \
            REGISTRY_HTTP_SECRET REGISTRY_STORAGE DOCKER_HOST DOCKER_CONFIG DOCKER_TLS_VERIFY \
            DOCKER_CERT_PATH KUBERNETES_PORT KUBERNETES_SERVICE_HOST KUBERNETES_SERVICE_PORT \
            KUBERNETES_SERVICE_PORT_HTTPS KUBERNETES_PORT_443_TCP KUBERNETES_PORT_443_TCP_ADDR \
            KUBECONFIG POD_NAME POD_IP POD_NAMESPACE NODE_NAME HOST_IP NAMESPACE \
            REGISTRY METRICS ALLOW ECR_PROXY_PORT ECR_PROXY_SERVICE_HOST AWS_ECR_PROXY_PORT \
            AWS_ECR_PROXY_PORT_8080_TCP_PORT \
            REDIS_PORT REDIS_SERVICE_HOST CACHE_PORT CACHE_SERVICE_HOST PROXY_PORT \
            AWS_EXECUTION_ENV AWS_ACCOUNT_ID AWS_ACCESS_KEY AWS_SECRET_KEY AWS_SECURITY_TOKEN \
            AWS_MAX_ATTEMPTS AWS_RETRY_MODE AWS_DEFAULTS_MODE AWS_DEFAULT_OUTPUT AWS_PAGER \
            AWS_SDK_LOAD_CONFIG AWS_CLI_AUTO_PROMPT AWS_ENDPOINT_URL_S3 AWS_ENDPOINT_URL_SNS \
            AWS_ENDPOINT_URL_ECS AWS_ENDPOINT_URL_SSM AWS_CREDENTIAL_EXPIRATION AWS_SDK_UA_APP_ID \
            AWS_ACCOUNT_ID_ENDPOINT_MODE AWS_SIGV4A_SIGNING_REGION_SET AWS_VAULT AWS_SSO_REGION \
            AWS_LAMBDA_FUNCTION_NAME AWS_S3_US_EAST_1_REGIONAL_ENDPOINT ECS_CONTAINER_METADATA_URI \
            ECS_CONTAINER_METADATA_URI_V4 ECS_AGENT_URI ECS_CLUSTER INVOCATION_ID JOURNAL_STREAM \
            NOTIFY_SOCKET WATCHDOG_USEC WATCHDOG_PID MAINPID LISTEN_FDS LISTEN_PID LISTEN_FDNAMES \
            LISTEN_PIDFDID CACHE_DIRECTORY STATE_DIRECTORY LOGS_DIRECTORY RUNTIME_DIRECTORY \
            CONFIGURATION_DIRECTORY CREDENTIALS_DIRECTORY MEMORY_PRESSURE_WATCH SYSTEMD_EXEC_PID \
            RUST_LOG RUST_BACKTRACE GODEBUG GOPATH JAVA_HOME JAVA_OPTS PYTHONPATH NODE_ENV \
            ENVIRONMENT APP_ENV SERVICE_NAME VERSION MANPATH INFOPATH WINDOWID COLORTERM _";
        let names: Vec<&str> = ordinary.split_whitespace().collect();
        assert!(names.len() > 150, "{}", names.len());
        for name in names {
            assert_eq!(meant(name), None, "{name}");
        }
        let long = "A".repeat(100_000);
        assert_eq!(meant(&long), None);
    }

    #[test]
    fn the_names_of_a_predecessor_are_known() {
        let said = |pairs: &[(&str, &str)]| {
            let own = |(name, value): &(&str, &str)| (OsString::from(name), OsString::from(value));
            let environment: Vec<_> = pairs.iter().map(own).collect();
            let found = find(&environment);
            found.iter().map(NearMiss::warning).collect::<Vec<_>>()
        };
        for (theirs, ours) in PREDECESSORS {
            let warning = format!("{theirs} is no setting; did you mean {ours}?");
            assert_eq!(said(&[(theirs, "x")]), [warning]);
            assert!(said(&[(theirs, "x"), (ours, "y")]).is_empty(), "{theirs}");
            assert!(said(&[(theirs, " ")]).is_empty(), "{theirs}");
        }
    }

    #[test]
    fn settings_and_blank_variables_are_no_near_misses() {
        for name in table_rows().flat_map(Setting::names) {
            assert_eq!(meant(name), None, "{name}");
        }
        let pair = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
        let environment = [
            pair("READONLY", " "),
            pair("WORKER", "1"),
            pair("AUTHFILE", "x"),
        ];
        let found: Vec<String> = find(&environment).iter().map(NearMiss::warning).collect();
        assert_eq!(
            found,
            [
                "AUTHFILE is no setting; did you mean AUTH_FILE?",
                "WORKER is no setting; did you mean WORKERS?"
            ]
        );
    }

    #[test]
    fn edit_distances() {
        for (a, b, distance) in [
            ("", "", 0),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("--port", "--prot", 2),
            ("flaw", "lawn", 2),
        ] {
            assert_eq!(edits(a, b), distance, "{a} {b}");
            assert_eq!(edits(b, a), distance, "{b} {a}");
        }
    }
}
