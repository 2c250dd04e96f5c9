//! Every form of a registry's name, for every partition: what it says, and which hosts are called
//! for it. One table (issue "identity"); nothing but tests.

use super::ecr::{EcrHost, api_host, api_url, realm_of};
use super::sts;
use crate::config::AwsSettings;

/// Region, domain of IPv4 names, domain of dual-stack registries (none where AWS documents none),
/// domain of dual-stack APIs, and the FIPS name of STS.
type Partition = (
    &'static str,
    &'static str,
    Option<&'static str>,
    &'static str,
    &'static str,
);

const PARTITIONS: [Partition; 8] = [
    (
        "eu-west-1",
        "amazonaws.com",
        Some("on.aws"),
        "api.aws",
        "sts-fips",
    ),
    (
        "us-gov-west-1",
        "amazonaws.com",
        Some("on.aws"),
        "api.aws",
        "sts",
    ),
    (
        "cn-north-1",
        "amazonaws.com.cn",
        Some("on.amazonwebservices.com.cn"),
        "api.amazonwebservices.com.cn",
        "sts-fips",
    ),
    (
        "eusc-de-east-1",
        "amazonaws.eu",
        None,
        "api.amazonwebservices.eu",
        "sts-fips",
    ),
    (
        "us-iso-east-1",
        "c2s.ic.gov",
        None,
        "api.aws.ic.gov",
        "sts-fips",
    ),
    (
        "us-isob-east-1",
        "sc2s.sgov.gov",
        None,
        "api.aws.scloud",
        "sts-fips",
    ),
    (
        "eu-isoe-west-1",
        "cloud.adc-e.uk",
        None,
        "api.cloud-aws.adc-e.uk",
        "sts-fips",
    ),
    (
        "us-isof-south-1",
        "csp.hci.ic.gov",
        None,
        "api.aws.hci.ic.gov",
        "sts-fips",
    ),
];

#[test]
fn every_form_of_a_registrys_name_leads_to_its_hosts() {
    let mut seen = 0;
    for (region, domain, dual_domain, api_domain, sts_fips) in PARTITIONS {
        for (fips, dual_stack) in [(false, false), (true, false), (false, true), (true, true)] {
            let suffix = if fips { "-fips" } else { "" };
            let name = match (dual_stack, dual_domain) {
                (false, _) => format!("dkr.ecr{suffix}.{region}.{domain}"),
                (true, Some(dual_domain)) => format!("dkr-ecr{suffix}.{region}.{dual_domain}"),
                (true, None) => continue,
            };
            let api = match (fips, dual_stack) {
                (false, false) => format!("api.ecr.{region}.{domain}"),
                (true, false) => format!("ecr-fips.{region}.{domain}"),
                (false, true) => format!("ecr.{region}.{api_domain}"),
                (true, true) => format!("ecr-fips.{region}.{api_domain}"),
            };
            let sts = match (fips, dual_stack) {
                (false, false) => format!("sts.{region}.{domain}"),
                (true, false) => format!("{sts_fips}.{region}.{domain}"),
                (false, true) => format!("sts.{region}.{api_domain}"),
                (true, true) => format!("sts-fips.{region}.{api_domain}"),
            };
            for authority in [
                format!("123456789012.{name}"),
                format!("123456789012.{name}:443"),
                format!("123456789012.{name}").to_ascii_uppercase(),
            ] {
                let expected = EcrHost::Private {
                    account: "123456789012".into(),
                    region: region.into(),
                    fips,
                    dual_stack,
                };
                assert_eq!(EcrHost::parse(&authority), Some(expected), "{authority}");
                let registry = authority.parse().unwrap();
                let settings = AwsSettings::default();
                let realm = realm_of(&registry, &settings).unwrap();
                assert_eq!((realm.region.as_str(), realm.public), (region, false));
                let url = api_url(&settings, &realm).unwrap();
                assert_eq!(url, format!("https://{api}/"), "{authority}");
                seen += 1;
            }
            assert_eq!(api_host(region, fips, dual_stack), api);
            assert_eq!(sts::host(region, fips, dual_stack), sts);
            wishes_lead_there_too(region, domain, (fips, dual_stack), &api);
        }
    }
    assert_eq!(seen, (8 * 2 + 3 * 2) * 3);
}

/// A registry with a plain name, and the settings asking for the rest.
fn wishes_lead_there_too(region: &str, domain: &str, wish: (bool, bool), api: &str) {
    let settings = AwsSettings {
        use_fips: Some(wish.0),
        use_dual_stack: Some(wish.1),
        ..AwsSettings::default()
    };
    let plain = format!("123456789012.dkr.ecr.{region}.{domain}");
    let realm = realm_of(&plain.parse().unwrap(), &settings).unwrap();
    let url = api_url(&settings, &realm).unwrap();
    assert_eq!(url, format!("https://{api}/"), "{plain}");
}

#[test]
fn ecr_public_is_in_one_region_without_fips() {
    for name in ["public.ecr.aws", "ecr-public.aws.com:443", "PUBLIC.ECR.AWS"] {
        assert_eq!(EcrHost::parse(name), Some(EcrHost::Public));
        let mut settings = AwsSettings::default();
        let url = |settings: &AwsSettings| {
            api_url(
                settings,
                &realm_of(&name.parse().unwrap(), settings).unwrap(),
            )
        };
        let plain = "https://api.ecr-public.us-east-1.amazonaws.com/";
        assert_eq!(url(&settings).as_deref(), Ok(plain));
        settings.use_dual_stack = Some(true);
        let dual_stack = "https://ecr-public.us-east-1.api.aws/";
        assert_eq!(url(&settings).as_deref(), Ok(dual_stack));
        settings.use_fips = Some(true);
        let fault = url(&settings).unwrap_err();
        assert!(
            fault.starts_with("ECR Public has no FIPS endpoint"),
            "{fault}"
        );
    }
}
