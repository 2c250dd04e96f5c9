//! The Security Token Service. Owns: its hosts and GetCallerIdentity. Must not: matter; STS may be
//! out of reach in a VPC where ECR is not.

use std::time::Duration;

use super::call::{Ask, Caller};
use super::credentials::Credentials;
use super::fault::CallFault;
use super::{endpoint, xml};
use crate::config::AwsSettings;
use crate::message::Headers;

/// Longest time for the call. It runs on the thread that renews tokens and only adds a line to the
/// log, so it gets less than a call that matters.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Who AWS says we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Twelve digits.
    pub account: String,
    /// The user's or the assumed role's name.
    pub arn: String,
    /// The unique id of the same.
    pub user_id: String,
}

/// Asks who we are; needs no IAM permission.
///
/// # Errors
/// A bad endpoint setting (permanent), or what AWS said.
pub(super) fn caller_identity(
    caller: &Caller,
    settings: &AwsSettings,
    region: &str,
    credentials: &Credentials,
) -> Result<Identity, String> {
    let ask = Ask {
        operation: "GetCallerIdentity",
        service: "sts",
        region: region.into(),
        url: url(settings, region)?,
        headers: Headers::from_iter([(
            "content-type",
            "application/x-www-form-urlencoded; charset=utf-8",
        )]),
        body: "Action=GetCallerIdentity&Version=2011-06-15",
        permission: None,
        timeout: TIMEOUT,
    };
    let read = |ask: &Ask| -> Result<Identity, Box<CallFault>> {
        let reply = caller.call(ask, credentials)?;
        let document = String::from_utf8_lossy(&reply.body);
        let text = |name| {
            xml::first_text(&document, name)
                .filter(|text| !text.is_empty())
                .ok_or_else(|| ask.odd_reply(credentials, &format!("has no {name}")))
        };
        Ok(Identity {
            account: text("Account")?,
            arn: text("Arn")?,
            user_id: text("UserId")?,
        })
    };
    read(&ask).map_err(|fault| fault.to_string())
}

fn url(settings: &AwsSettings, region: &str) -> Result<String, String> {
    let overrides = [
        ("AWS_ENDPOINT_URL_STS", settings.endpoint_url_sts.as_deref()),
        ("AWS_ENDPOINT_URL", settings.endpoint_url.as_deref()),
    ];
    let regional = || format!("https://{}/", host(region, false, false));
    Ok(endpoint::overridden(&overrides)?.unwrap_or_else(regional))
}

/// The regional host of STS (endpoint rule set of the AWS SDKs).
pub fn host(region: &str, fips: bool, dual_stack: bool) -> String {
    let partition = endpoint::partition(region);
    // In GovCloud the plain name is the FIPS endpoint.
    let service = match (fips, dual_stack) {
        (true, false) if partition.gov_cloud => "sts",
        (true, _) => "sts-fips",
        (false, _) => "sts",
    };
    let suffix = if dual_stack {
        partition.dual_stack_suffix
    } else {
        partition.suffix
    };
    format!("{service}.{region}.{suffix}")
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeApi, clock, credentials, json};
    use super::*;

    const REPLY: &str = "<GetCallerIdentityResponse xmlns=\
        \"https://sts.amazonaws.com/doc/2011-06-15/\">\
        <GetCallerIdentityResult><Arn>arn:aws:iam::123456789012:user/a&amp;b</Arn>\
        <UserId>AIDAX</UserId><Account>123456789012</Account></GetCallerIdentityResult>\
        </GetCallerIdentityResponse>";

    #[test]
    fn hosts() {
        assert_eq!(
            host("eu-west-1", false, false),
            "sts.eu-west-1.amazonaws.com"
        );
        assert_eq!(
            host("eu-west-1", true, false),
            "sts-fips.eu-west-1.amazonaws.com"
        );
        assert_eq!(
            host("us-gov-west-1", true, false),
            "sts.us-gov-west-1.amazonaws.com"
        );
        assert_eq!(
            host("cn-north-1", false, false),
            "sts.cn-north-1.amazonaws.com.cn"
        );
        assert_eq!(host("eu-west-1", false, true), "sts.eu-west-1.api.aws");
    }

    #[test]
    fn the_identity_is_read_from_the_reply() {
        let api = FakeApi::new(&clock());
        api.reply(json(200, REPLY));
        let caller = Caller::new(api.clone(), clock());
        let settings = AwsSettings {
            endpoint_url: Some("http://127.0.0.1:1".into()),
            endpoint_url_sts: Some("http://127.0.0.1:2".into()),
            ..AwsSettings::default()
        };
        let found = caller_identity(&caller, &settings, "eu-west-1", &credentials()).unwrap();
        assert_eq!(found.arn, "arn:aws:iam::123456789012:user/a&b");
        assert_eq!(
            (found.account.as_str(), found.user_id.as_str()),
            ("123456789012", "AIDAX")
        );
        let call = api.calls().remove(0);
        assert_eq!(call.url, "http://127.0.0.1:2/");
        assert!(
            call.headers
                .first("authorization")
                .unwrap()
                .contains("/eu-west-1/sts/")
        );
        assert_eq!(call.timeout, TIMEOUT);
    }

    #[test]
    fn other_replies_are_faults() {
        let api = FakeApi::new(&clock());
        let caller = Caller::new(api.clone(), clock());
        let ask = |settings: &AwsSettings| {
            caller_identity(&caller, settings, "eu-west-1", &credentials()).unwrap_err()
        };
        let settings = AwsSettings::default();
        for body in ["", "{}", &REPLY[..150]] {
            api.reply(json(200, body));
            assert!(ask(&settings).contains("the reply has no"), "{body}");
        }
        api.reply(json(
            403,
            "<Error><Code>InvalidClientTokenId</Code></Error>",
        ));
        assert!(ask(&settings).starts_with("GetCallerIdentity 403 InvalidClientTokenId"));
        let bad = AwsSettings {
            endpoint_url: Some("nowhere".into()),
            ..settings
        };
        assert!(ask(&bad).starts_with("AWS_ENDPOINT_URL is not a URL"));
    }
}
