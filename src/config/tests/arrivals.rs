//! Each setting that is built arrives where it is read, and so does its default.

use super::*;

#[test]
fn the_defaults() {
    let settings = read(&[], &[]);
    assert!(settings.registries.is_empty());
    assert_eq!(settings.upstream_auth, UpstreamAuth::Ecr);
    assert_eq!(settings.renew_interval, Duration::from_secs(6 * 3600));
    assert_eq!(settings.listen_host, ListenHost::default());
    assert_eq!(settings.listen_port, 8080);
    assert!(settings.trust_proxy_headers && !settings.fill_referrers);
    assert_eq!((settings.workers, settings.lanes), (8, 16));
    assert_eq!(settings.max_connections, 1024);
    assert_eq!(settings.max_connections_per_peer, 256);
    assert_eq!(settings.min_rate, 256);
    assert_eq!(settings.activation, Activation::None);
    assert_eq!((settings.max_exchanges, settings.max_uploads), (256, 128));
    assert_eq!(settings.shutdown_grace, Duration::from_secs(30));
    assert_eq!(
        (settings.log_level, settings.log_format),
        (Level::Info, Format::Text)
    );
    assert!(settings.blob_hosts.is_empty() && settings.aws.region.is_none());
    let access = settings.access;
    assert!(access.auth_file.is_none() && !access.read_only);
    assert!(access.repositories.match_everything());
}

#[test]
fn every_built_setting_arrives() {
    let settings = read(
        &[],
        &[
            ("ECR", "http://Registry.local:5000/, b.example,"),
            ("UPSTREAM_AUTH", "None"),
            ("AWS_DEFAULT_REGION", "eu-west-1"),
            ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
            ("AWS_SECRET_ACCESS_KEY", "secret\n"),
            ("AWS_SESSION_TOKEN", "token"),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:5000/"),
            ("AWS_ENDPOINT_URL_ECR", "https://ecr.example"),
            ("AWS_ENDPOINT_URL_STS", "https://sts.example"),
            ("RENEW_INTERVAL_HOURS", "0.5"),
            ("LISTEN_HOST", "::"),
            ("PORT", "0"),
            ("DISABLE_PROXY_HEADERS", "yes"),
            ("BLOB_HOSTS", "cdn.example"),
            ("AUTH_FILE", "/not/read/here"),
            ("READ_ONLY", "on"),
            ("ALLOW_REPOSITORIES", "team-a/*, base"),
            (
                "ACCESS_CONTROL_ALLOW_ORIGIN",
                "HTTPS://UI.example:443/,http://[::1]:3000",
            ),
            ("BLOB_REDIRECT", "pass"),
            ("RESOLVER", "10.0.0.2"),
            ("HTTPS_PROXY", "http://user:word@secure.example:3128"),
            ("http_proxy", "plain.example"),
            ("NO_PROXY", "10.0.0.0/8"),
            ("FILL_REFERRERS", "true"),
            ("WORKERS", "1"),
            ("LANES", "2"),
            ("MAX_CONNECTIONS", "3"),
            ("MAX_CONNECTIONS_PER_PEER", "7"),
            ("MIN_RATE", "1k"),
            ("MAX_EXCHANGES", "4"),
            ("MAX_UPLOADS", "5"),
            ("SHUTDOWN_GRACE", "6s"),
            ("LOG_LEVEL", "warning"),
            ("LOG_FORMAT", "JSON"),
            ("ENABLE_SSL", "on"),
            ("REGISTRY_HTTP_TLS_CERTIFICATE", "/tls/tls.crt"),
            ("REGISTRY_HTTP_TLS_KEY", "/tls/tls.key"),
            ("SSL_CLIENT_CA", "/tls/ca.crt"),
        ],
    );
    let path = |text: &str| Some(PathBuf::from(text));
    let origins = ["https://ui.example", "http://[::1]:3000"];
    assert_eq!(settings.access.origins, origins);
    let tls = settings.tls;
    assert!(tls.enabled);
    assert_eq!(tls.certificate, path("/tls/tls.crt"));
    assert_eq!(
        (tls.key, tls.client_ca),
        (path("/tls/tls.key"), path("/tls/ca.crt"))
    );
    let registry = &settings.registries[0];
    assert_eq!(
        (registry.scheme(), registry.authority()),
        (Scheme::Http, "registry.local:5000")
    );
    assert_eq!(settings.registries[1].url(), "https://b.example");
    assert_eq!(settings.registries.len(), 2);
    assert_eq!(settings.upstream_auth, UpstreamAuth::None);
    let aws = settings.aws;
    assert_eq!(aws.region.as_deref(), Some("eu-west-1"));
    assert_eq!(aws.access_key_id.as_deref(), Some("AKIDEXAMPLE"));
    assert_eq!(aws.secret_access_key.unwrap().expose(), "secret");
    assert_eq!(aws.session_token.unwrap().expose(), "token");
    assert_eq!(aws.endpoint_url.as_deref(), Some("http://127.0.0.1:5000"));
    assert_eq!(aws.endpoint_url_ecr.as_deref(), Some("https://ecr.example"));
    assert_eq!(aws.endpoint_url_sts.as_deref(), Some("https://sts.example"));
    assert_eq!(settings.renew_interval, Duration::from_secs(1800));
    assert_eq!(
        settings.listen_host,
        ListenHost::Address("::".parse().unwrap())
    );
    assert_eq!(settings.listen_port, 0);
    assert!(!settings.trust_proxy_headers && settings.fill_referrers);
    assert_eq!(settings.blob_hosts, ["cdn.example"]);
    let access = settings.access;
    assert_eq!(access.auth_file, Some(PathBuf::from("/not/read/here")));
    let repositories = access.repositories;
    assert!(access.read_only && repositories.matches("team-a/x") && !repositories.matches("x"));
    let outbound = settings.outbound;
    assert_eq!(outbound.blob_redirect, BlobRedirect::Pass);
    assert_eq!(outbound.resolvers, ["10.0.0.2:53".parse().unwrap()]);
    let shown = |proxy: Option<ProxyUrl>| proxy.unwrap().shown();
    assert_eq!(shown(outbound.https_proxy), "http://secure.example:3128");
    assert_eq!(shown(outbound.http_proxy), "http://plain.example:80");
    let net = ProxyException::Net([10, 0, 0, 0].into(), 8, None);
    assert_eq!(outbound.no_proxy, [net]);
    assert_eq!((settings.workers, settings.lanes), (1, 2));
    assert_eq!(settings.max_connections, 3);
    assert_eq!(settings.max_connections_per_peer, 7);
    assert_eq!(settings.min_rate, 1024);
    assert_eq!((settings.max_exchanges, settings.max_uploads), (4, 5));
    assert_eq!(settings.shutdown_grace, Duration::from_secs(6));
    assert_eq!(
        (settings.log_level, settings.log_format),
        (Level::Warn, Format::Json)
    );
}

#[test]
fn every_setting_of_files_and_roles_arrives() {
    let settings = read(
        &[],
        &[
            ("AWS_DEFAULT_PROFILE", "prod"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/run/credentials"),
            ("AWS_CONFIG_FILE", "~/aws-config"),
            ("HOME", "/home/me"),
            ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/puller"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/run/token"),
            ("AWS_ROLE_SESSION_NAME", "node-1"),
            ("AWS_USE_FIPS_ENDPOINT", "TRUE"),
            ("AWS_USE_DUALSTACK_ENDPOINT", "false"),
            ("AWS_STS_REGIONAL_ENDPOINTS", "Legacy"),
            ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true"),
        ],
    );
    let aws = settings.aws;
    assert_eq!(aws.profile.as_deref(), Some("prod"));
    assert_eq!(aws.credentials_file, Some("/run/credentials".into()));
    assert_eq!(aws.config_file, Some("~/aws-config".into()));
    assert_eq!(aws.home, Some("/home/me".into()));
    let role = "arn:aws:iam::123456789012:role/puller";
    assert_eq!(aws.role_arn.as_deref(), Some(role));
    assert_eq!(aws.web_identity_token_file, Some("/run/token".into()));
    assert_eq!(aws.role_session_name.as_deref(), Some("node-1"));
    assert_eq!(
        (aws.use_fips, aws.use_dual_stack),
        (Some(true), Some(false))
    );
    assert_eq!(aws.sts_endpoints, Some(StsEndpoints::Legacy));
    assert_eq!(aws.ignore_endpoint_urls, Some(true));
    let relative = read(&[], &[("HOME", "home")]);
    assert_eq!(relative.aws.home, None);
}

#[test]
fn metadata_settings_arrive() {
    let aws = read(&[], &[]).aws;
    assert!(aws.instance.enabled && !aws.instance.ipv6);
    assert_eq!(aws.instance.base(), "http://169.254.169.254");
    assert_eq!(aws.instance.timeout, Duration::from_secs(1));
    assert_eq!(aws.instance.attempts, 4);
    let aws = read(
        &["--aws-ec2-metadata-v1-disabled"],
        &[
            (
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                "/v2/credentials/1",
            ),
            (
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                "http://169.254.170.23/v1/credentials",
            ),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "Bearer a.b.c\n"),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/not/there/yet"),
            ("AWS_EC2_METADATA_DISABLED", "True"),
            (
                "AWS_EC2_METADATA_SERVICE_ENDPOINT",
                "http://127.0.0.1:1338/",
            ),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "ipv6"),
            ("AWS_METADATA_SERVICE_TIMEOUT", "5"),
            ("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1"),
        ],
    )
    .aws;
    let container = aws.container;
    assert_eq!(container.relative_uri.as_deref(), Some("/v2/credentials/1"));
    let full = "http://169.254.170.23/v1/credentials";
    assert_eq!(container.full_uri.as_deref(), Some(full));
    assert_eq!(
        container.authorization_token.unwrap().expose(),
        "Bearer a.b.c"
    );
    let file = container.authorization_token_file;
    assert_eq!(file, Some(PathBuf::from("/not/there/yet")));
    assert!(!aws.instance.enabled && aws.instance.ipv6);
    assert_eq!(aws.instance.base(), "http://127.0.0.1:1338");
    assert_eq!(aws.instance.timeout, Duration::from_secs(5));
    assert_eq!(aws.instance.attempts, 1);
}
