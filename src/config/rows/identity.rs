//! Rows of the table: the sources of the AWS identity. Pure data.

use std::time::Duration;

use crate::config::table::Kind::*;
use crate::config::table::Preset::{Unset, Value};
use crate::config::table::*;
use crate::config::{aws, metadata, parse};

pub(super) static ROWS: &[Setting] = &[
    row(
        "AWS_ACCESS_KEY_ID",
        Unset("none"),
        Text(Unit::Text, VISIBLE, |s, text| {
            put(&mut s.aws.access_key_id, aws::visible(text))
        }),
        "Access key of the AWS identity.",
    ),
    row(
        "AWS_SECRET_ACCESS_KEY",
        Unset("none"),
        Text(Unit::Text, VISIBLE, |s, text| {
            put(&mut s.aws.secret_access_key, aws::visible_secret(text))
        }),
        "Secret that belongs to the access key. Prefer the variable: other processes can read \
         flags.",
    )
    .secret(),
    row(
        "AWS_SESSION_TOKEN",
        Unset("none"),
        Text(Unit::Text, VISIBLE, |s, text| {
            put(&mut s.aws.session_token, aws::visible_secret(text))
        }),
        "Session token of temporary credentials. Prefer the variable, as above.",
    )
    .secret(),
    row(
        "AWS_PROFILE",
        Unset("`default`, if the shared files have it"),
        Text(Unit::Text, "the name of a profile", |s, text| {
            put(&mut s.aws.profile, aws::profile(text))
        }),
        "Profile in the shared AWS files; when it is set it must be there.",
    )
    .also(&["AWS_DEFAULT_PROFILE"]),
    row(
        "AWS_SHARED_CREDENTIALS_FILE",
        Unset("`~/.aws/credentials`"),
        File(|s, path| s.aws.credentials_file = Some(path)),
        "Shared credentials file, read anew at each use.",
    ),
    row(
        "AWS_CONFIG_FILE",
        Unset("`~/.aws/config`"),
        File(|s, path| s.aws.config_file = Some(path)),
        "Shared config file. Credentials in it are read anew at each use, regions and endpoints \
         at the start.",
    ),
    row(
        "AWS_ROLE_ARN",
        Unset("none"),
        Text(Unit::Text, ROLE_ARN, |s, text| {
            put(&mut s.aws.role_arn, aws::role_arn(text))
        }),
        "Role to assume with the web identity token.",
    ),
    row(
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        Unset("none"),
        File(|s, path| s.aws.web_identity_token_file = Some(path)),
        "Web identity token (IRSA), read anew at each use. Needs `AWS_ROLE_ARN`.",
    ),
    row(
        "AWS_ROLE_SESSION_NAME",
        Unset("`aws-ecr-proxy`"),
        Text(
            Unit::Text,
            "2 to 64 letters, digits and _+=,.@-",
            |s, text| put(&mut s.aws.role_session_name, aws::session_name(text)),
        ),
        "Session name of the role that is assumed with the web identity token.",
    ),
    row(
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        Unset("none"),
        Text(
            Unit::Text,
            "a path from its slash on, such as /v2/credentials/ID",
            |s, text| {
                put(
                    &mut s.aws.container.relative_uri,
                    metadata::relative_uri(text),
                )
            },
        ),
        "Path of the container credentials at `169.254.170.2` (ECS sets it).",
    ),
    row(
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        Unset("none"),
        Text(
            Unit::Url,
            "https:// and a host, or http:// and loopback, 169.254.170.2, 169.254.170.23, \
             [fd00:ec2::23] or a name that leads to one of these",
            |s, text| put(&mut s.aws.container.full_uri, metadata::full_uri(text)),
        ),
        "Address of the container credentials, where no path is given (EKS Pod Identity sets \
         it). Over http only loopback, `169.254.170.2`, `169.254.170.23` and `[fd00:ec2::23]`.",
    ),
    row(
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        Unset("none"),
        Text(
            Unit::Text,
            "visible ASCII characters and spaces on one line",
            |s, text| {
                put(
                    &mut s.aws.container.authorization_token,
                    metadata::authorization_token(text),
                )
            },
        ),
        "Token that the container credentials ask for.",
    )
    .secret(),
    row(
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        Unset("none"),
        File(|s, path| s.aws.container.authorization_token_file = Some(path)),
        "File with that token, read anew each time; it beats the token itself.",
    ),
    row(
        "AWS_EC2_METADATA_DISABLED",
        Value("false"),
        Switch(|s, off| s.aws.instance.enabled = !off),
        "Never ask the EC2 instance metadata service, neither for credentials nor for the \
         region.",
    ),
    row(
        "AWS_EC2_METADATA_V1_DISABLED",
        Value("true"),
        Text(Unit::Switch, "true", |_, text| {
            metadata::check_v1_disabled(text)
        }),
        "Version 1 of the instance metadata service is never used; only `true` is taken.",
    ),
    row(
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        Unset("the link-local address"),
        Text(Unit::Url, URL, |s, text| {
            put(&mut s.aws.instance.endpoint, parse::url(text))
        }),
        "Address of the instance metadata service.",
    ),
    row(
        "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
        Value("IPv4"),
        Text(Unit::Text, "IPv4 or IPv6", |s, text| {
            put(&mut s.aws.instance.ipv6, one_of(text, metadata::MODES))
        }),
        "`IPv4` or `IPv6`: which link-local address of the instance metadata service.",
    ),
    row(
        "AWS_METADATA_SERVICE_TIMEOUT",
        Value("1"),
        Number(
            range(1, 10, "fetching a token waits for it"),
            |s, seconds| s.aws.instance.timeout = Duration::from_secs(seconds.into()),
        ),
        "Seconds to connect to the instance metadata service, and again for its reply; without a \
         unit, as in the AWS SDKs.",
    ),
    row(
        "AWS_METADATA_SERVICE_NUM_ATTEMPTS",
        Value("4"),
        Number(
            range(1, 10, "fetching a token waits for them"),
            |s, attempts| s.aws.instance.attempts = attempts,
        ),
        "How often a request to the instance metadata service is sent that it answers with an \
         error of its own.",
    ),
];
