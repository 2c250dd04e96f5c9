//! The Security Token Service. Owns: its hosts, GetCallerIdentity and the assuming of roles. Must
//! not: keep what it gives out; `credentials` does.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::call::{CALL_TIMEOUT, Caller, UnsignedCall};
use super::credentials::{Credentials, Role};
use super::fault::AwsFault;
use super::{endpoint, xml};
use crate::calendar;
use crate::config::{AwsSettings, StsEndpoints};
use crate::log;
use crate::message::Headers;
use crate::secret::Secret;
use crate::upstream::ApiReply;
use crate::uri;

/// Longest time for GetCallerIdentity. It runs on the thread that renews tokens and only adds a
/// line to the log, so it gets less than a call that matters.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(5);
/// The region that signs for the global host.
const GLOBAL_REGION: &str = "us-east-1";
/// The regions that `legacy` leads to the global host (endpoint rule set of the AWS SDKs).
const LEGACY_REGIONS: [&str; 16] = [
    "ap-northeast-1",
    "ap-south-1",
    "ap-southeast-1",
    "ap-southeast-2",
    "aws-global",
    "ca-central-1",
    "eu-central-1",
    "eu-north-1",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "sa-east-1",
    "us-east-1",
    "us-east-2",
    "us-west-1",
    "us-west-2",
];

/// Our identity, as AWS gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Twelve digits.
    pub account: String,
    /// The user's or the assumed role's name.
    pub arn: String,
    /// The unique id of the same.
    pub user_id: String,
}

/// Asks for our identity; needs no IAM permission.
///
/// # Errors
/// A bad endpoint setting (lasting), or what AWS said.
pub(super) fn caller_identity(
    caller: &Caller,
    settings: &AwsSettings,
    region: &str,
    credentials: &Credentials,
) -> Result<Identity, AwsFault> {
    let unsigned =
        build_call(settings, region, "GetCallerIdentity", &[]).map_err(AwsFault::lasting)?;
    let unsigned = UnsignedCall {
        timeout: IDENTITY_TIMEOUT,
        ..unsigned
    };
    let reply = caller.call(&unsigned, credentials)?;
    let text = |name| element(&unsigned, credentials, &reply, name);
    Ok(Identity {
        account: text("Account")?,
        arn: text("Arn")?,
        user_id: text("UserId")?,
    })
}

/// Assumes roles, in one region.
pub(super) struct Sts {
    caller: Arc<Caller>,
    settings: AwsSettings,
    /// Set once: a role is assumed in one region, whichever region its credentials are used in.
    region: OnceLock<String>,
}

impl Sts {
    /// Roles are assumed in the region of the settings, else in `region`, that of the registry's
    /// name.
    pub(super) fn new(
        caller: &Arc<Caller>,
        settings: &AwsSettings,
        region: Option<String>,
    ) -> Self {
        let configured = settings.region.as_deref().and_then(endpoint::region);
        Self {
            caller: Arc::clone(caller),
            settings: settings.clone(),
            region: configured.or(region).map(Into::into).unwrap_or_default(),
        }
    }

    /// Takes a region that was found later: that of the instance metadata, or of a registry.
    pub(super) fn suggest_region(&self, region: &str) {
        // The first one stays.
        let _ = self.region.set(region.to_owned());
    }

    /// Assumes `role` as `base`.
    ///
    /// # Errors
    /// AWS's answer, or the setting that is missing.
    pub(super) fn assume_role(
        &self,
        base: &Credentials,
        role: &Role,
    ) -> Result<Credentials, AwsFault> {
        let mut fields = fields_of(role);
        fields.extend(role.external_id.clone().map(|id| ("ExternalId", id)));
        let permission = "sts:AssumeRole on the role to this identity, let the role's trust policy \
                          name it, and give the external_id that the policy may ask for";
        let unsigned = UnsignedCall {
            permission: Some(permission),
            ..self.ask("AssumeRole", &fields)?
        };
        let base = base.with_source(format!("{}, assuming {}", base.source, role.arn));
        session(&unsigned, &base, &self.caller.call(&unsigned, &base)?)
    }

    /// Assumes `role` with a web identity token; `source` names the token's origin.
    ///
    /// # Errors
    /// AWS's answer, or the setting that is missing.
    pub(super) fn assume_role_with_web_identity(
        &self,
        source: &str,
        token: &Secret<String>,
        role: &Role,
    ) -> Result<Credentials, AwsFault> {
        let mut fields = fields_of(role);
        fields.push(("WebIdentityToken", token.expose().clone()));
        let unsigned = self.ask("AssumeRoleWithWebIdentity", &fields)?;
        let bearer = Credentials::bearer(format!("{source}, assuming {}", role.arn), token.clone());
        session(
            &unsigned,
            &bearer,
            &self.caller.call_unsigned(&unsigned, &bearer)?,
        )
    }

    fn ask(
        &self,
        operation: &'static str,
        fields: &[(&str, String)],
    ) -> Result<UnsignedCall, AwsFault> {
        let region = self.region.get().ok_or_else(|| {
            AwsFault::lasting(format!("no region for {operation}: set AWS_REGION"))
        })?;
        build_call(&self.settings, region, operation, fields).map_err(AwsFault::lasting)
    }
}

/// The form fields of both ways to assume a role.
fn fields_of(role: &Role) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("RoleArn", role.arn.clone()),
        ("RoleSessionName", role.session_name.clone()),
    ];
    let duration = role.duration_s.map(|seconds| seconds.to_string());
    fields.extend(duration.map(|seconds| ("DurationSeconds", seconds)));
    fields
}

/// Builds a call in STS's query protocol.
fn build_call(
    settings: &AwsSettings,
    region: &str,
    operation: &'static str,
    fields: &[(&str, String)],
) -> Result<UnsignedCall, String> {
    let (url, region) = address(settings, region)?;
    let mut body = format!("Action={operation}&Version=2011-06-15");
    for (name, value) in fields {
        body.push_str(&format!("&{name}={}", uri::encode(value)));
    }
    Ok(UnsignedCall {
        operation,
        service: "sts",
        region,
        url,
        headers: Headers::from_iter([(
            "content-type",
            "application/x-www-form-urlencoded; charset=utf-8",
        )]),
        body: Secret::new(body),
        permission: None,
        timeout: CALL_TIMEOUT,
    })
}

/// The text of an element that the reply to `ask` must have.
fn element(
    unsigned: &UnsignedCall,
    credentials: &Credentials,
    reply: &ApiReply,
    name: &str,
) -> Result<String, AwsFault> {
    let document = String::from_utf8_lossy(&reply.body);
    xml::first_text(&document, name)
        .filter(|text| !text.is_empty())
        .ok_or_else(|| unsigned.odd_reply(credentials, &format!("has no {name}")))
}

/// The credentials in a reply. They live as long as AWS says; `base` names their origin.
fn session(
    unsigned: &UnsignedCall,
    base: &Credentials,
    reply: &ApiReply,
) -> Result<Credentials, AwsFault> {
    let text = |name| element(unsigned, base, reply, name);
    let expires = calendar::parse_rfc3339(&text("Expiration")?)
        .ok_or_else(|| unsigned.odd_reply(base, "has an Expiration that is no time"))?;
    let credentials = Credentials {
        access_key_id: text("AccessKeyId")?,
        secret: Secret::new(text("SecretAccessKey")?),
        session_token: Some(Secret::new(text("SessionToken")?)),
        expires: Some(expires),
        source: base.source.replace(", assuming ", ", role "),
    };
    log::info(
        "role assumed",
        &[
            ("source", &credentials.source),
            ("expires", &calendar::format_rfc3339(expires)),
        ],
    );
    Ok(credentials)
}

/// URL and signing region of STS for `region`.
fn address(settings: &AwsSettings, region: &str) -> Result<(String, String), String> {
    if let Some(url) = endpoint::custom(settings, endpoint::Service::Sts)? {
        return Ok((url, region.into()));
    }
    let fips = settings.use_fips == Some(true);
    let dual_stack = settings.use_dual_stack == Some(true);
    let legacy = settings.sts_endpoints == Some(StsEndpoints::Legacy);
    if legacy && !fips && !dual_stack && LEGACY_REGIONS.contains(&region) {
        return Ok(("https://sts.amazonaws.com/".into(), GLOBAL_REGION.into()));
    }
    let url = format!("https://{}/", host(region, fips, dual_stack));
    Ok((url, region.into()))
}

/// The regional host of STS (endpoint rule set of the AWS SDKs).
pub fn host(region: &str, fips: bool, dual_stack: bool) -> String {
    let partition = endpoint::partition(region);
    // In GovCloud the plain name is the FIPS endpoint.
    let service = match (fips, dual_stack) {
        (true, false) if region.starts_with("us-gov-") => "sts",
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
        assert_eq!(call.timeout, IDENTITY_TIMEOUT);
    }

    #[test]
    fn legacy_leads_the_older_regions_to_the_global_host() {
        let mut settings = AwsSettings {
            sts_endpoints: Some(StsEndpoints::Legacy),
            ..AwsSettings::default()
        };
        let found = |settings: &AwsSettings, region: &str| address(settings, region).unwrap();
        let global = ("https://sts.amazonaws.com/".to_owned(), "us-east-1".into());
        assert_eq!(found(&settings, "eu-west-1"), global);
        let newer = found(&settings, "eu-south-1");
        assert_eq!(newer.0, "https://sts.eu-south-1.amazonaws.com/");
        assert_eq!(newer.1, "eu-south-1");
        settings.use_fips = Some(true);
        let fips = found(&settings, "us-west-2").0;
        assert_eq!(fips, "https://sts-fips.us-west-2.amazonaws.com/");
        settings.use_fips = None;
        settings.sts_endpoints = Some(StsEndpoints::Regional);
        assert_eq!(
            found(&settings, "us-east-1").0,
            "https://sts.us-east-1.amazonaws.com/"
        );
    }

    const SESSION: &str = "<R><Credentials><AccessKeyId>ASIAX</AccessKeyId><SecretAccessKey>sec/ret\
        </SecretAccessKey><SessionToken>tok+en==</SessionToken>\
        <Expiration>2023-11-14T23:13:20.5Z</Expiration></Credentials></R>";

    fn role() -> Role {
        Role {
            arn: "arn:aws:iam::123456789012:role/puller".into(),
            session_name: "node-1".into(),
            external_id: Some("a b&c=d".into()),
            duration_s: Some(900),
        }
    }

    fn sts(api: &Arc<FakeApi>) -> Sts {
        let caller = Arc::new(Caller::new(api.clone(), clock()));
        Sts::new(&caller, &AwsSettings::default(), Some("eu-west-1".into()))
    }

    #[test]
    fn a_role_is_assumed_with_a_signed_form() {
        let api = FakeApi::new(&clock());
        api.reply(json(200, SESSION));
        let found = sts(&api).assume_role(&credentials(), &role()).unwrap();
        assert_eq!(found.access_key_id, "ASIAX");
        assert_eq!(found.secret.expose(), "sec/ret");
        assert_eq!(found.session_token.unwrap().expose(), "tok+en==");
        let expires = Duration::from_millis(super::super::fake::START * 1000 + 3_600_500);
        assert_eq!(found.expires, Some(std::time::UNIX_EPOCH + expires));
        assert_eq!(
            found.source,
            "environment, role arn:aws:iam::123456789012:role/puller"
        );
        let call = api.calls().remove(0);
        assert_eq!(
            String::from_utf8(call.body).unwrap(),
            "Action=AssumeRole&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole\
             %2Fpuller&RoleSessionName=node-1&DurationSeconds=900&ExternalId=a%20b%26c%3Dd"
        );
        let authorization = call.headers.first("authorization").unwrap();
        assert!(authorization.contains("/eu-west-1/sts/"));
    }

    #[test]
    fn a_web_identity_is_sent_unsigned() {
        let api = FakeApi::new(&clock());
        api.reply(json(200, SESSION));
        let token = Secret::new("head.pay-load.sig_1".into());
        let found = sts(&api)
            .assume_role_with_web_identity("web identity", &token, &role())
            .unwrap();
        assert!(found.source.starts_with("web identity, role arn:"));
        let call = api.calls().remove(0);
        assert_eq!(call.headers.first("authorization"), None);
        let body = String::from_utf8(call.body).unwrap();
        assert!(body.starts_with("Action=AssumeRoleWithWebIdentity&"));
        assert!(body.contains("&WebIdentityToken=head.pay-load.sig_1"));
        assert!(!body.contains("ExternalId"));
    }

    #[test]
    fn refusals_name_call_code_source_and_role_but_no_secret() {
        let api = FakeApi::new(&clock());
        let refused = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>User x is not \
                       authorized, token tok.en</Message></Error></ErrorResponse>";
        api.reply(json(403, refused));
        api.reply(json(403, refused));
        let fault = sts(&api).assume_role(&credentials(), &role()).unwrap_err();
        let start = "AssumeRole 403 AccessDenied in eu-west-1 via environment, assuming \
                     arn:aws:iam::123456789012:role/puller: User x";
        assert!(fault.to_string().starts_with(start), "{fault}");
        assert!(
            fault
                .to_string()
                .contains("; grant sts:AssumeRole on the role")
        );
        let token = Secret::new("tok.en".into());
        let fault = sts(&api).assume_role_with_web_identity("web identity", &token, &role());
        let fault = fault.unwrap_err().text;
        assert!(fault.contains("via web identity, assuming arn:"), "{fault}");
        assert!(
            fault.contains("token ***") && !fault.contains("tok.en"),
            "{fault}"
        );
    }

    #[test]
    fn replies_without_whole_credentials_are_faults_that_do_not_show_them() {
        let api = FakeApi::new(&clock());
        for (cut, told) in [
            ("<AccessKeyId>ASIAX</AccessKeyId>", "no AccessKeyId"),
            ("tok+en==", "no SessionToken"),
            ("2023-11-14T23:13:20.5Z", "no Expiration"),
            ("-14T", "Expiration that is no time"),
        ] {
            api.reply(json(200, &SESSION.replace(cut, "")));
            let fault = sts(&api).assume_role(&credentials(), &role()).unwrap_err();
            let fault = fault.to_string();
            assert!(
                fault.contains(told) && !fault.contains("sec/ret"),
                "{fault}"
            );
        }
    }

    #[test]
    fn without_a_region_nothing_is_asked() {
        let api = FakeApi::new(&clock());
        let caller = Arc::new(Caller::new(api.clone(), clock()));
        let sts = Sts::new(&caller, &AwsSettings::default(), None);
        let fault = sts.assume_role(&credentials(), &role()).unwrap_err();
        assert_eq!(
            fault.to_string(),
            "no region for AssumeRole: set AWS_REGION"
        );
        assert!(api.calls().is_empty());
        // A region that is found later is used, and stays.
        for region in ["eu-north-1", "us-east-1"] {
            sts.suggest_region(region);
            api.reply(json(200, SESSION));
            sts.assume_role(&credentials(), &role()).unwrap();
            let url = api.calls().pop().unwrap().url;
            assert_eq!(url, "https://sts.eu-north-1.amazonaws.com/");
        }
    }

    #[test]
    fn other_replies_are_faults() {
        let api = FakeApi::new(&clock());
        let caller = Caller::new(api.clone(), clock());
        let ask = |settings: &AwsSettings| {
            let found = caller_identity(&caller, settings, "eu-west-1", &credentials());
            found.unwrap_err().to_string()
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
