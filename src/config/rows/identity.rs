//! Rows of the table: the sources of the AWS identity. Pure data.

use crate::config::aws;
use crate::config::table::*;

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
        meaning: "Container credentials (ECS).",
        ..ROW
    },
    Setting {
        name: "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Container credentials (EKS Pod Identity).",
        state: later(Unit::Url, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "Token for the container credentials.",
        secret: true,
        ..ROW
    },
    Setting {
        name: "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        group: Group::Aws,
        preset: Preset::Unset("none"),
        meaning: "File with that token.",
        state: later(Unit::Path, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "AWS_EC2_METADATA_DISABLED",
        group: Group::Aws,
        preset: Preset::Value("false"),
        meaning: "Never ask the EC2 instance metadata service.",
        state: later(Unit::Switch, ON),
        ..ROW
    },
    Setting {
        name: "AWS_EC2_METADATA_V1_DISABLED",
        group: Group::Aws,
        preset: Preset::Value("true"),
        meaning: "Never fall back to IMDSv1.",
        state: later(Unit::Switch, ON),
        ..ROW
    },
    Setting {
        name: "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        group: Group::Aws,
        preset: Preset::Unset("the link-local address"),
        meaning: "Address of the instance metadata service.",
        state: later(Unit::Url, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
        group: Group::Aws,
        preset: Preset::Value("IPv4"),
        meaning: "`IPv4` or `IPv6` address of the instance metadata service.",
        ..ROW
    },
];
