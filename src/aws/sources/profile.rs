//! A profile of the shared files. Owns: its credentials, from files that are read anew each time,
//! and its region and endpoints. Must not: keep credentials.

mod files;
#[cfg(any(fuzzing, test))]
#[path = "../../../fuzz/hooks/profile.rs"]
pub mod fuzz;
mod ini;
mod plan;

use std::sync::Arc;

use self::files::{Profiles, SharedFiles, text};
use self::ini::Properties;
use self::plan::{Base, NamedSource, Plan, plan};
use super::super::credentials::{Credentials, Source};
use super::super::fault::AwsFault;
use super::super::sts::Sts;
use super::process;
use super::web_identity::TokenFile;
use crate::config::{AwsSettings, ProfileEndpoints, StsEndpoints};
use crate::log;

/// The sources that a profile may name in `credential_source`.
pub(super) struct NamedSources {
    /// `Environment`
    pub(super) environment: Arc<dyn Source>,
    /// `EcsContainer`
    pub(super) container: Option<Arc<dyn Source>>,
    /// `Ec2InstanceMetadata`
    pub(super) instance_metadata: Option<Arc<dyn Source>>,
}

/// `AWS_PROFILE`, or `default`.
pub(super) struct Profile {
    files: SharedFiles,
    sts: Arc<Sts>,
    named: NamedSources,
}

impl Profile {
    pub(super) fn new(settings: &AwsSettings, sts: &Arc<Sts>, named: NamedSources) -> Self {
        Self {
            files: SharedFiles::new(settings),
            sts: Arc::clone(sts),
            named,
        }
    }

    fn plan(&self) -> Result<Option<Plan>, String> {
        let Some(profiles) = self.files.load()? else {
            return Ok(None);
        };
        match (plan(&profiles, self.files.profile())?, profiles.absent()) {
            // The credentials may be in the file that is missing.
            (None, Some(absent)) => Err(absent.clone()),
            (plan, _) => Ok(plan),
        }
    }

    fn base(&self, base: &Base, source: &str) -> Result<Credentials, AwsFault> {
        match base {
            Base::Keys {
                id,
                secret,
                session_token,
            } => Ok(Credentials {
                access_key_id: id.clone(),
                secret: secret.clone(),
                session_token: session_token.clone(),
                expires: None,
                source: source.to_owned(),
            }),
            Base::Named(named) => self.fetch_named(*named, source),
            Base::Process(command) => process::fetch(command, &format!("{source}'s process")),
            Base::WebIdentity { path, role } => TokenFile {
                path: path.clone(),
                named_by: format!("{source}: web_identity_token_file"),
                source: format!("{source}'s web identity"),
                role: role.clone(),
            }
            .fetch(&self.sts),
        }
    }

    fn fetch_named(&self, named: NamedSource, source: &str) -> Result<Credentials, AwsFault> {
        let (name, asked, remedy) = match named {
            NamedSource::Container => (
                "EcsContainer",
                self.named.container.as_ref(),
                "run it as a task of ECS or a pod of EKS",
            ),
            NamedSource::Environment => (
                "Environment",
                Some(&self.named.environment),
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            ),
            NamedSource::InstanceMetadata => (
                "Ec2InstanceMetadata",
                self.named.instance_metadata.as_ref(),
                "run it on EC2, and do not set AWS_EC2_METADATA_DISABLED",
            ),
        };
        let found = asked.map_or(Ok(None), |asked| asked.fetch())?;
        let found = found.ok_or_else(|| {
            let tried = asked.and_then(|asked| asked.explain_absence());
            let tried = tried.map(|tried| format!(" ({tried})")).unwrap_or_default();
            AwsFault::lasting(format!(
                "{source}: credential_source = {name} has no credentials{tried}; {remedy}"
            ))
        })?;
        Ok(found.with_source(format!("{source}, {}", found.source)))
    }
}

impl Source for Profile {
    fn fetch(&self) -> Result<Option<Credentials>, AwsFault> {
        // A file may be half written, or about to be mended: it is looked at again soon.
        let Some(plan) = self.plan().map_err(AwsFault::passing)? else {
            return Ok(None);
        };
        let source = format!("profile {}", self.files.profile());
        let mut credentials = self.base(&plan.base, &source)?;
        for role in &plan.roles {
            credentials = self.sts.assume_role(&credentials, role)?;
        }
        Ok(Some(credentials))
    }

    fn explain_absence(&self) -> Option<String> {
        Some(self.files.describe_search())
    }
}

/// The environment's keys as a source of their own, except when the named profile assumes its role
/// with them. Without this exception they would come first, and the role would never be assumed
/// (the SDK for Go does the same).
pub(super) struct UnlessTakenBy {
    profile: Arc<Profile>,
    environment: Arc<dyn Source>,
}

impl UnlessTakenBy {
    pub(super) fn new(profile: &Arc<Profile>, environment: Arc<dyn Source>) -> Self {
        Self {
            profile: Arc::clone(profile),
            environment,
        }
    }
}

impl Source for UnlessTakenBy {
    fn fetch(&self) -> Result<Option<Credentials>, AwsFault> {
        let taken = self.profile.files.is_named()
            && matches!(
                self.profile.plan(),
                Ok(Some(Plan {
                    base: Base::Named(NamedSource::Environment),
                    ..
                }))
            );
        if taken {
            return Ok(None);
        }
        self.environment.fetch()
    }

    fn explain_absence(&self) -> Option<String> {
        self.environment.explain_absence()
    }
}

/// `settings` completed from the profile: region, endpoints and the kind of host. Read once, at the
/// start. The second value says what is wrong with the profile's endpoints; then nothing may be
/// called, as it might be the wrong host.
///
/// Files that cannot be read are reported and passed over, since the credentials may well come from
/// elsewhere; if not, [`Profile`] fails with the same words.
pub(in crate::aws) fn complete(settings: AwsSettings) -> (AwsSettings, Option<String>) {
    let files = SharedFiles::new(&settings);
    let loaded = files.load().and_then(|profiles| {
        let profiles = profiles.unwrap_or_default();
        let profile = profiles.get(files.profile())?.cloned();
        Ok((profiles, profile))
    });
    let (profiles, profile) = match loaded {
        Ok((profiles, Some(profile))) => (profiles, profile),
        Ok((_, None)) => return (settings, None),
        Err(why) => {
            let what = "region and endpoints of the profile are unknown";
            log::warn(what, &[("error", &why)]);
            return (settings, None);
        }
    };
    if let Some(absent) = profiles.absent() {
        log::warn(
            "a profile is used without one of its files",
            &[("error", absent)],
        );
    }
    match complete_settings(&settings, &profiles, files.profile(), &profile) {
        Ok(completed) => (completed, None),
        Err(why) => (settings, Some(format!("{why}; mend it and restart"))),
    }
}

fn complete_settings(
    settings: &AwsSettings,
    profiles: &Profiles,
    name: &str,
    profile: &Properties,
) -> Result<AwsSettings, String> {
    let get = |key: &str| text(profile, key).map(ToOwned::to_owned);
    let fault = |key: &str, expected: &str| format!("profile {name}: {key}: expected {expected}");
    let switch = |key: &str| match get(key).map(|text| text.to_ascii_lowercase()).as_deref() {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(_) => Err(fault(key, "true or false")),
    };
    let sts_endpoints = get("sts_regional_endpoints").map(|text| {
        StsEndpoints::parse(&text)
            .ok_or_else(|| fault("sts_regional_endpoints", "regional or legacy"))
    });
    let services = get("services");
    if let Some(missing) = services.as_ref().filter(|s| !profiles.has_services(s)) {
        return Err(fault(
            "services",
            &format!("a section [services {missing}]"),
        ));
    }
    let of_service = |service| {
        let section = services.as_deref()?;
        let url = profiles.of_service(section, service, "endpoint_url")?;
        Some(url.to_owned())
    };
    let mut completed = settings.clone();
    completed.region = completed.region.or_else(|| get("region"));
    completed.use_fips = completed.use_fips.or(switch("use_fips_endpoint")?);
    completed.use_dual_stack = completed
        .use_dual_stack
        .or(switch("use_dualstack_endpoint")?);
    completed.sts_endpoints = completed.sts_endpoints.or(sts_endpoints.transpose()?);
    completed.ignore_endpoint_urls = completed
        .ignore_endpoint_urls
        .or(switch("ignore_configured_endpoint_urls")?);
    completed.profile_endpoints = ProfileEndpoints {
        any: get("endpoint_url"),
        ecr: of_service("ecr"),
        sts: of_service("sts"),
    };
    Ok(completed)
}

#[cfg(test)]
mod tests;
