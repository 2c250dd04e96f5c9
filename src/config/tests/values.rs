//! The values that each kind accepts, and the faults of others.

use super::*;

#[test]
fn numbers_hold_at_both_ends() {
    for (name, min, max) in [
        ("WORKERS", 1, 64),
        ("LANES", 2, 256),
        ("MAX_CONNECTIONS", 1, 100_000),
        ("MAX_CONNECTIONS_PER_PEER", 1, 100_000),
        ("MAX_EXCHANGES", 1, 10_000),
        ("MAX_UPLOADS", 1, 10_000),
        ("LISTEN_PORT", 0, 65535),
    ] {
        for good in [min, max] {
            read(&[], &[(name, &good.to_string())]);
        }
        for bad in [min - 1, max + 1] {
            let start = format!("{name}={bad}: expected a whole number from {min} to {max} (");
            let fault = fault(name, &bad.to_string());
            assert!(fault.starts_with(&start), "{fault}");
        }
    }
    assert_eq!(read(&[], &[("LISTEN_PORT", "65535")]).listen_port, 65535);
}

#[test]
fn times_hold_at_both_ends() {
    for good in ["0s", "3600s", "1h"] {
        read(&[], &[("SHUTDOWN_GRACE", good)]);
    }
    let too_long = fault("SHUTDOWN_GRACE", "61m");
    assert!(
        too_long.contains("expected a time from 0s to 1h ("),
        "{too_long}"
    );
    for good in ["0.01", "12"] {
        read(&[], &[("RENEW_INTERVAL_HOURS", good)]);
    }
    for bad in ["0", "12.1", "6h"] {
        let fault = fault("RENEW_INTERVAL_HOURS", bad);
        assert!(
            fault.contains("expected a number of hours from 0.01 to 12 ("),
            "{fault}"
        );
    }
}

#[test]
fn texts_have_a_form() {
    for (name, bad, expected) in [
        ("ECR", "ftp://h", "ftp://h has a scheme other than"),
        ("ECR", "a.example,b c", "b c has not a host name"),
        ("ECR", "a.example,http://A.example:443", "is there twice"),
        ("ECR", "a.example:443,A.example", "is there twice"),
        ("ECR", ",", "expected at most 64 of"),
        ("UPSTREAM_AUTH", "basic", "expected ecr or none"),
        ("AWS_REGION", "eu west", "such as eu-west-1"),
        ("AWS_REGION", "evil.example/", "such as eu-west-1"),
        ("AWS_ENDPOINT_URL_STS", "sts.local", "this has no scheme"),
        ("AWS_ROLE_ARN", "puller", "expected the ARN of a role"),
        ("AWS_ROLE_SESSION_NAME", "a/b", "expected 2 to 64 letters"),
        ("AWS_PROFILE", "a]b", "expected the name of a profile"),
        ("AWS_USE_FIPS_ENDPOINT", "maybe", "expected true or false"),
        (
            "AWS_STS_REGIONAL_ENDPOINTS",
            "global",
            "expected regional or legacy",
        ),
        (
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "@evil.example/",
            "from its slash on",
        ),
        (
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "http://10.0.0.1/a",
            "this address is none of these",
        ),
        (
            "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
            "dual",
            "expected IPv4 or IPv6",
        ),
        (
            "AWS_METADATA_SERVICE_TIMEOUT",
            "11",
            "a whole number from 1 to 10",
        ),
        ("LISTEN_HOST", "1.2.3", "expected an IP address"),
        ("LISTEN_HOST", "unix:p", "does not begin with /"),
        ("MIN_RATE", "1m", "would cut clients behind slow lines"),
        ("DISABLE_PROXY_HEADERS", "maybe", "expected true or false"),
        ("LOG_LEVEL", "trace", "expected DEBUG, INFO, WARN or ERROR"),
        ("BLOB_HOSTS", "https://h", "is none of these"),
    ] {
        let fault = fault(name, bad);
        assert!(
            fault.starts_with(&format!("{name}={bad}: expected ")),
            "{fault}"
        );
        assert!(fault.contains(expected), "{fault}");
    }
    let bracketed = read(&[], &[("LISTEN_HOST", "[::1]")]).listen_host;
    assert_eq!(bracketed, ListenHost::Address("::1".parse().unwrap()));
}

#[test]
fn the_registry_of_an_origin_is_one_of_the_list() {
    let list = ("ECR", "a.example,b.example:5000");
    read(
        &[],
        &[
            list,
            ("NAMESPACES", "docker.io=hub,quay.io=B.example:5000/quay"),
        ],
    );
    read(&[], &[("NAMESPACES", "quay.io=any.example/quay")]);
    let faults = faults(
        &[],
        &[list, ("NAMESPACES", "docker.io=hub,quay.io=c.example/quay")],
    );
    assert_eq!(faults.len(), 1);
    let start = "NAMESPACES=quay.io=c.example…: expected c.example to be in ECR too";
    assert!(faults[0].starts_with(start), "{faults:?}");
}

#[test]
fn without_a_token_the_registry_must_be_named() {
    read(
        &[],
        &[("UPSTREAM_AUTH", "none"), ("ECR", "http://site.example")],
    );
    let fault = fault("UPSTREAM_AUTH", "none");
    assert!(fault.contains("expected ECR to be set too"), "{fault}");
    // A registry that is set but wrong is one fault, not two.
    assert_eq!(
        faults(&[], &[("UPSTREAM_AUTH", "none"), ("ECR", "a b")]).len(),
        1
    );
}

#[test]
fn tls_needs_certificate_and_key_and_client_certificates_need_tls() {
    assert_eq!(
        faults(&["--enable-ssl"], &[]),
        [
            "ENABLE_SSL=true: expected SSL_CERTIFICATE to be set too",
            "ENABLE_SSL=true: expected SSL_KEY to be set too",
        ]
    );
    let half = [("ENABLE_SSL", "1"), ("REGISTRY_HTTP_TLS_CERTIFICATE", "/c")];
    assert_eq!(
        faults(&[], &half),
        ["ENABLE_SSL=true: expected SSL_KEY to be set too"]
    );
    let alone = fault("SSL_CLIENT_CA", "/ca.crt");
    let start = "SSL_CLIENT_CA=/ca.crt: expected ENABLE_SSL=true too";
    assert!(alone.starts_with(start), "{alone}");
    // As with the predecessors, the files alone switch nothing on.
    let settings = read(&[], &[("SSL_CERTIFICATE", "/c"), ("SSL_KEY", "/k")]);
    assert!(!settings.tls.enabled);
}

#[test]
fn truths_of_today() {
    read(
        &["--enable-ssl=no", "--allow-repositories", "*"],
        &[
            ("READ_ONLY", "FALSE"),
            ("CACHE_DIR", "off"),
            ("CACHE_KEY", "$uri"),
            ("AWS_EC2_METADATA_V1_DISABLED", "true"),
            ("AWS_USE_FIPS_ENDPOINT", "false"),
            ("AWS_USE_DUALSTACK_ENDPOINT", "false"),
            ("AWS_STS_REGIONAL_ENDPOINTS", "regional"),
        ],
    );
    let v1 = fault("AWS_EC2_METADATA_V1_DISABLED", "false");
    assert!(
        v1.ends_with("version 1 asks for no token and is never used"),
        "{v1}"
    );
}

#[test]
fn a_ca_bundle_is_a_file_with_certificates() {
    let folder = std::env::temp_dir().join(format!("ca-bundle-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let block = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    let good = write("good.pem", block);
    let settings = read(&[], &[("AWS_CA_BUNDLE", &good)]);
    assert_eq!(settings.aws.ca_bundle, Some(PathBuf::from(good)));
    let key = block.replace("CERTIFICATE", "PRIVATE KEY");
    for (path, why) in [
        (write("key.pem", &key), "it has none"),
        (write("empty.pem", ""), "it has none"),
        (
            write("large.pem", &"\n".repeat((4 << 20) + 1)),
            "larger than 4 MiB",
        ),
        (folder.to_str().unwrap().to_owned(), "not a regular file"),
        (
            folder.join("none").to_str().unwrap().to_owned(),
            "it cannot be read: No such",
        ),
    ] {
        let fault = fault("AWS_CA_BUNDLE", &path);
        assert!(
            fault.contains("AWS_CA_BUNDLE=/") && fault.contains(why),
            "{fault}"
        );
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn patterns_of_repositories_are_told_what_is_wrong_with_them() {
    let fault = fault("ALLOW_REPOSITORIES", "team-a/*,Team-B/*");
    assert!(
        fault.starts_with("ALLOW_REPOSITORIES=team-a/*,Team-B/*: expected repository names")
            && fault.ends_with("'T' is in no repository's name"),
        "{fault}"
    );
}
