//! Rows of the table: the sources of the AWS identity. Pure data.

use std::time::Duration;

use crate::config::table::*;
use crate::config::{aws, metadata};

pub(super) static ROWS: &[Setting] = &[
    Setting {
        name: "AWS_ACCESS_KEY_ID",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Access key of the AWS identity.",
        state: text(Unit::Text, VISIBLE, aws::access_key_id),
        ..ROW
    },
    Setting {
        name: "AWS_SECRET_ACCESS_KEY",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Secret that belongs to the access key. Prefer the variable: other processes \
                  can read flags.",
        secret: true,
        state: text(Unit::Text, VISIBLE, aws::secret_access_key),
        ..ROW
    },
    Setting {
        name: "AWS_SESSION_TOKEN",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Session token of temporary credentials. Prefer the variable, as above.",
        secret: true,
        state: text(Unit::Text, VISIBLE, aws::session_token),
        ..ROW
    },
    Setting {
        name: "AWS_PROFILE",
        other_names: &["AWS_DEFAULT_PROFILE"],
        group: Group::Aws,
        preset: Preset::Unset("`default`, if the shared files have it"),
        meaning: "Profile in the shared AWS files; when it is set it must be there.",
        state: text(Unit::Text, "the name of a profile", aws::profile),
        ..ROW
    },
    Setting {
        name: "AWS_SHARED_CREDENTIALS_FILE",
        group: Group::Aws,
        preset: Preset::Unset("`~/.aws/credentials`"),
        meaning: "Shared credentials file, read anew at each use.",
        state: text(Unit::Path, "a path", aws::credentials_file),
        ..ROW
    },
    Setting {
        name: "AWS_CONFIG_FILE",
        group: Group::Aws,
        preset: Preset::Unset("`~/.aws/config`"),
        meaning: "Shared config file. Credentials in it are read anew at each use, regions and \
                  endpoints at the start.",
        state: text(Unit::Path, "a path", aws::config_file),
        ..ROW
    },
    Setting {
        name: "AWS_ROLE_ARN",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Role to assume with the web identity token.",
        state: text(Unit::Text, ROLE_ARN, aws::role_arn),
        ..ROW
    },
    Setting {
        name: "AWS_WEB_IDENTITY_TOKEN_FILE",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Web identity token (IRSA), read anew at each use. Needs `AWS_ROLE_ARN`.",
        state: text(Unit::Path, "a path", aws::web_identity_token_file),
        ..ROW
    },
    Setting {
        name: "AWS_ROLE_SESSION_NAME",
        group: Group::Aws,
        preset: Preset::Unset("`aws-ecr-proxy`"),
        meaning: "Session name of the role that is assumed with the web identity token.",
        state: text(
            Unit::Text,
            "2 to 64 letters, digits and _+=,.@-",
            aws::role_session_name,
        ),
        ..ROW
    },
    Setting {
        name: "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Path of the container credentials at `169.254.170.2` (ECS sets it).",
        state: text(
            Unit::Text,
            "a path from its slash on, such as /v2/credentials/ID",
            metadata::relative_uri,
        ),
        ..ROW
    },
    Setting {
        name: "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Address of the container credentials, where no path is given (EKS Pod Identity \
                  sets it). Over http only loopback, `169.254.170.2`, `169.254.170.23` and \
                  `[fd00:ec2::23]`.",
        state: text(
            Unit::Url,
            "https:// and a host, or http:// and loopback, 169.254.170.2, 169.254.170.23, \
             [fd00:ec2::23] or a name that leads to one of these",
            metadata::full_uri,
        ),
        ..ROW
    },
    Setting {
        name: "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Token that the container credentials ask for.",
        secret: true,
        state: text(
            Unit::Text,
            "visible ASCII characters and spaces on one line",
            metadata::authorization_token,
        ),
        ..ROW
    },
    Setting {
        name: "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "File with that token, read anew each time; it beats the token itself.",
        state: text(Unit::Path, "a path", metadata::authorization_token_file),
        ..ROW
    },
    Setting {
        name: "AWS_EC2_METADATA_DISABLED",
        group: Group::Aws,
        preset: Preset::Value("false"),
        meaning: "Never ask the EC2 instance metadata service, neither for credentials nor for \
                  the region.",
        state: State::Built(Kind::Switch(|settings, off| {
            settings.aws.instance.enabled = !off;
        })),
        ..ROW
    },
    Setting {
        name: "AWS_EC2_METADATA_V1_DISABLED",
        group: Group::Aws,
        preset: Preset::Value("true"),
        meaning: "Version 1 of the instance metadata service is never used; only `true` is taken.",
        state: text(Unit::Switch, "true", metadata::instance_v1_disabled),
        ..ROW
    },
    Setting {
        name: "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        group: Group::Aws,
        preset: Preset::Unset("the link-local address"),
        meaning: "Address of the instance metadata service.",
        state: text(Unit::Url, URL, metadata::instance_endpoint),
        ..ROW
    },
    Setting {
        name: "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
        group: Group::Aws,
        preset: Preset::Value("IPv4"),
        meaning: "`IPv4` or `IPv6`: which link-local address of the instance metadata service.",
        state: text(Unit::Text, "IPv4 or IPv6", metadata::instance_endpoint_mode),
        ..ROW
    },
    Setting {
        name: "AWS_METADATA_SERVICE_TIMEOUT",
        group: Group::Aws,
        preset: Preset::Value("1"),
        meaning: "Seconds to connect to the instance metadata service, and again for its reply; \
                  without a unit, as in the AWS SDKs.",
        state: number(
            1,
            10,
            "fetching a token waits for it",
            |settings, seconds| {
                settings.aws.instance.timeout = Duration::from_secs(seconds.into());
            },
        ),
        ..ROW
    },
    Setting {
        name: "AWS_METADATA_SERVICE_NUM_ATTEMPTS",
        group: Group::Aws,
        preset: Preset::Value("4"),
        meaning: "How often a request to the instance metadata service is sent that it answers \
                  with an error of its own.",
        state: number(
            1,
            10,
            "fetching a token waits for them",
            |settings, attempts| settings.aws.instance.attempts = attempts,
        ),
        ..ROW
    },
];
