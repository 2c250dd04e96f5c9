//! Tests of GetAuthorizationToken and of ECR's names.

use super::super::fake::{FakeApi, clock, credentials, json};
use super::*;

fn private(region: &str, fips: bool, dual_stack: bool) -> Option<EcrHost> {
    Some(EcrHost::Private {
        account: "123456789012".into(),
        region: region.into(),
        fips,
        dual_stack,
    })
}

fn realm(public: bool) -> Realm {
    Realm {
        region: if public { PUBLIC_REGION } else { "eu-west-1" }.into(),
        public,
        fips: false,
        dual_stack: false,
    }
}

#[test]
fn names_of_registries() {
    let table = [
        ("dkr.ecr.eu-west-1.amazonaws.com", "eu-west-1", false, false),
        (
            "DKR.ECR.EU-West-1.AmazonAWS.com:443",
            "eu-west-1",
            false,
            false,
        ),
        (
            "dkr.ecr.cn-north-1.amazonaws.com.cn",
            "cn-north-1",
            false,
            false,
        ),
        (
            "dkr.ecr-fips.us-east-1.amazonaws.com",
            "us-east-1",
            true,
            false,
        ),
        (
            "dkr.ecr.eusc-de-east-1.amazonaws.eu",
            "eusc-de-east-1",
            false,
            false,
        ),
        ("dkr-ecr.eu-west-1.on.aws", "eu-west-1", false, true),
        (
            "dkr-ecr-fips.us-gov-west-1.on.aws",
            "us-gov-west-1",
            true,
            true,
        ),
        (
            "dkr-ecr.cn-north-1.on.amazonwebservices.com.cn",
            "cn-north-1",
            false,
            true,
        ),
        (
            "dkr.ecr.us-isob-east-1.sc2s.sgov.gov",
            "us-isob-east-1",
            false,
            false,
        ),
        (
            "dkr.ecr.us-iso-east-1.c2s.ic.gov",
            "us-iso-east-1",
            false,
            false,
        ),
        (
            "dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk",
            "eu-isoe-west-1",
            false,
            false,
        ),
        (
            "dkr.ecr.us-isof-south-1.csp.hci.ic.gov",
            "us-isof-south-1",
            false,
            false,
        ),
    ];
    for (name, region, fips, dual_stack) in table {
        let found = EcrHost::parse(&format!("123456789012.{name}"));
        assert_eq!(found, private(region, fips, dual_stack), "{name}");
    }
    assert_eq!(EcrHost::parse("Public.ECR.aws:443"), Some(EcrHost::Public));
    assert_eq!(EcrHost::parse("ecr-public.aws.com"), Some(EcrHost::Public));
}

#[test]
fn names_that_only_look_like_registries() {
    for name in [
        "",
        "127.0.0.1:5000",
        "12345678901.dkr.ecr.eu-west-1.amazonaws.com",
        "12345678901x.dkr.ecr.eu-west-1.amazonaws.com",
        "123456789012.dkr.ecr.amazonaws.com",
        "123456789012.dkr.ecr..amazonaws.com",
        "123456789012.dkr.ecr.-eu.amazonaws.com",
        "123456789012.dkr.ecr.eu.west.amazonaws.com",
        "123456789012.dkr.ecrx.eu-west-1.amazonaws.com",
        "123456789012.dkr.ecr-fipsx.eu-west-1.amazonaws.com",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example",
        "123456789012.dkr.ecr.eu-west-1.notamazonaws.com",
        "x.123456789012.dkr.ecr.eu-west-1.amazonaws.com",
        "public.ecr.aws.evil.example",
    ] {
        assert_eq!(EcrHost::parse(name), None, "{name}");
    }
}

#[test]
fn api_hosts() {
    let table = [
        ("eu-west-1", false, false, "api.ecr.eu-west-1.amazonaws.com"),
        ("eu-west-1", false, true, "ecr.eu-west-1.api.aws"),
        ("us-east-1", true, false, "ecr-fips.us-east-1.amazonaws.com"),
        ("us-east-1", true, true, "ecr-fips.us-east-1.api.aws"),
        (
            "cn-north-1",
            false,
            false,
            "api.ecr.cn-north-1.amazonaws.com.cn",
        ),
    ];
    for (region, fips, dual_stack, host) in table {
        assert_eq!(api_host(region, fips, dual_stack), host);
    }
}

#[test]
fn overrides_beat_the_regional_host() {
    let mut settings = AwsSettings::default();
    let urls = |settings: &AwsSettings| {
        [realm(false), realm(true)].map(|realm| api_url(settings, &realm).unwrap())
    };
    let regional = [
        "https://api.ecr.eu-west-1.amazonaws.com/",
        "https://api.ecr-public.us-east-1.amazonaws.com/",
    ];
    assert_eq!(urls(&settings), regional);
    settings.endpoint_url = Some("http://any:1".into());
    assert_eq!(urls(&settings), ["http://any:1/", "http://any:1/"]);
    settings.endpoint_url_ecr = Some("http://ecr:2".into());
    assert_eq!(urls(&settings), ["http://ecr:2/", "http://any:1/"]);
}

fn fetch(body: &str, realm: &Realm) -> Result<AuthorizationToken, String> {
    let api = FakeApi::new(&clock());
    api.reply(json(200, body));
    let caller = Caller::new(api, clock());
    let url = api_url(&AwsSettings::default(), realm).unwrap();
    authorization_token(&caller, url, realm, &credentials()).map_err(|fault| fault.to_string())
}

#[test]
fn a_token_of_5_kb_with_a_newline_is_taken_whole() {
    let token = "QVdT".repeat(1280);
    let body = serde_json::json!({"authorizationData": [{
        "authorizationToken": format!("{token}\n"),
        "expiresAt": 1.700_043_200_5e9,
        "proxyEndpoint": "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com",
    }]});
    let found = fetch(&body.to_string(), &realm(false)).unwrap();
    assert_eq!(*found.value.expose(), format!("Basic {token}"));
    let expires = found.expires.unwrap().duration_since(UNIX_EPOCH).unwrap();
    assert_eq!(expires.as_secs(), 1_700_043_200);
    let host = found.registry.unwrap().host().to_owned();
    assert_eq!(host, "123456789012.dkr.ecr.eu-west-1.amazonaws.com");
}

#[test]
fn ecr_public_is_asked_and_answers_in_its_own_way() {
    let api = FakeApi::new(&clock());
    api.reply(json(
        200,
        r#"{"authorizationData":{"authorizationToken":"dG9r","expiresAt":1.7E9}}"#,
    ));
    let caller = Caller::new(api.clone(), clock());
    let url = api_url(&AwsSettings::default(), &realm(true)).unwrap();
    let found = authorization_token(&caller, url, &realm(true), &credentials()).unwrap();
    assert_eq!(found.value.expose(), "Bearer dG9r");
    assert_eq!(found.registry, Err("names no registry".into()));
    assert_eq!(
        found.expires,
        UNIX_EPOCH.checked_add(Duration::from_secs(1_700_000_000))
    );
    let call = api.calls().remove(0);
    assert_eq!(
        call.headers.first("x-amz-target"),
        Some("SpencerFrontendService.GetAuthorizationToken")
    );
    let authorization = call.headers.first("authorization").unwrap();
    assert!(authorization.contains("/us-east-1/ecr-public/aws4_request"));
}

#[test]
fn expiry_in_a_form_we_do_not_know_is_no_expiry() {
    for expires in ["-1", "1e300", "null", "\"soon\"", "true"] {
        let body = format!(
            r#"{{"authorizationData":[{{"authorizationToken":"dA==","expiresAt":{expires}}}]}}"#
        );
        let found = fetch(&body, &realm(false)).unwrap();
        assert_eq!(found.expires, None, "{expires}");
    }
}

#[test]
fn the_registry_of_the_token_is_an_ecr_name_with_https_unless_the_api_is_our_own() {
    let aws = "https://api.ecr.eu-west-1.amazonaws.com/";
    let vpc = "https://vpce-1.api.ecr.eu-west-1.vpce.amazonaws.com/";
    let dual_stack = "https://ecr.eu-west-1.api.aws/";
    let (other, here) = ("https://ecr.site.example/", "http://127.0.0.1:5951/");
    let ecr = "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    for api in [aws, vpc, dual_stack, other, here] {
        assert!(own_registry(Some(ecr), api).is_ok(), "{api}");
        assert!(
            own_registry(Some(&ecr.replace("https", "http")), api).is_err(),
            "{api}"
        );
        for bad in [
            "https://169.254.169.254",
            "https://10.0.0.1",
            "https://0x7f000001",
        ] {
            assert!(own_registry(Some(bad), api).is_err(), "{bad} {api}");
        }
        let elsewhere = own_registry(Some("https://registry.example:5000"), api);
        assert_eq!(elsewhere.is_ok(), [other, here].contains(&api), "{api}");
        for local in [
            "http://127.0.0.1:5000",
            "https://[::1]:5000",
            "http://localhost:1",
        ] {
            let found = own_registry(Some(local), api);
            assert_eq!(found.is_ok(), api == here, "{local} {api}");
        }
    }
    let why = own_registry(Some("http://evil.example"), aws).unwrap_err();
    assert_eq!(
        why,
        "names http://evil.example as its registry, which is not an https address of ECR"
    );
    for none in [None, Some(""), Some(" ")] {
        assert_eq!(own_registry(none, aws).unwrap_err(), "names no registry");
    }
    assert!(
        own_registry(Some("a b"), aws)
            .unwrap_err()
            .contains("no address")
    );
}

#[test]
fn replies_without_a_token_are_faults_that_do_not_show_them() {
    for body in [
        "",
        "<html>",
        "{}",
        "[]",
        r#"{"authorizationData":[]}"#,
        r#"{"authorizationData":[{"authorizationToken":" \n"}]}"#,
        r#"{"authorizationData":[{"authorizationToken":7}]}"#,
        r#"{"authorizationData":[{"authorizationToken":"hunter2\u0000"}]}"#,
    ] {
        let fault = fetch(body, &realm(false)).unwrap_err();
        assert!(
            fault.starts_with("GetAuthorizationToken 200 in eu-west-1"),
            "{fault}"
        );
        assert!(!fault.contains("hunter2"));
    }
}

#[test]
fn layers_are_in_a_bucket_of_the_region() {
    for (host, bucket) in [
        (
            "1.dkr.ecr.eu-west-1.amazonaws.com",
            "prod-eu-west-1-starport-layer-bucket.s3.eu-west-1.amazonaws.com",
        ),
        (
            "1.dkr.ecr.cn-north-1.amazonaws.com.cn",
            "prod-cn-north-1-starport-layer-bucket.s3.cn-north-1.amazonaws.com.cn",
        ),
        (
            "1.dkr-ecr.us-east-1.on.aws",
            "prod-us-east-1-starport-layer-bucket.s3.dualstack.us-east-1.amazonaws.com",
        ),
    ] {
        let host = host.replacen('1', "123456789012", 1);
        assert_eq!(layer_host(&host.parse().unwrap()).as_deref(), Some(bucket));
    }
    for other in ["public.ecr.aws", "registry.test"] {
        assert_eq!(layer_host(&other.parse().unwrap()), None);
    }
}

#[test]
fn bug_the_arn_of_a_repository_had_the_partition_of_another_cloud() {
    for (region, domain, partition) in [
        ("eu-west-1", "amazonaws.com", "aws"),
        ("us-gov-west-1", "amazonaws.com", "aws-us-gov"),
        ("cn-north-1", "amazonaws.com.cn", "aws-cn"),
        ("eusc-de-east-1", "amazonaws.eu", "aws-eusc"),
        ("us-iso-east-1", "c2s.ic.gov", "aws-iso"),
        ("us-isob-east-1", "sc2s.sgov.gov", "aws-iso-b"),
        ("eu-isoe-west-1", "cloud.adc-e.uk", "aws-iso-e"),
        ("us-isof-south-1", "csp.hci.ic.gov", "aws-iso-f"),
    ] {
        let registry = format!("123456789012.dkr.ecr.{region}.{domain}");
        let arn = repository_arn(&registry.parse().unwrap(), &"team/app".parse().unwrap());
        let expected = format!("arn:{partition}:ecr:{region}:123456789012:repository/team/app");
        assert_eq!(arn, Some(expected));
    }
    let public = "public.ecr.aws".parse().unwrap();
    assert_eq!(repository_arn(&public, &"team/app".parse().unwrap()), None);
}
