//! The role of an EC2 instance. Owns: its name, its credentials, and their use while the metadata
//! service fails. Must not: know how the service is asked (`aws/imds.rs` does).
//!
//! Locks: `memory`, held for a copy; never across a call.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::super::credentials::{Credentials, Source};
use super::super::fault::AwsFault;
use super::super::imds::{Imds, ImdsFault};
use super::document::{self, Unusable};
use crate::clock::Clock;
use crate::config::AwsSettings;
use crate::locked::Locked as _;
use crate::log;
use crate::random::unguessable;
use crate::upstream::Api;

/// The role's name, and below it its credentials.
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
/// Longest name of a role (IAM quotas), with room.
const ROLE_LENGTH_MAX: usize = 128;
/// When the service stops renewing credentials, the old ones stay in use: AWS's own services then
/// accept them past their end. The service is asked again after this time and up to
/// [`STALE_JITTER`] more: 10 minutes and a jitter of 2 to 10 (aws-config, "static stability").
const STALE_RETRY: Duration = Duration::from_secs(12 * 60);
/// See [`STALE_RETRY`].
const STALE_JITTER: Duration = Duration::from_secs(8 * 60);
/// Credentials count as over this long before their end, when they are renewed.
const RENEWAL_MARGIN: Duration = Duration::from_secs(5 * 60);

/// The role of the instance we run on.
pub(super) struct InstanceRole {
    /// None when the settings forbid to ask.
    imds: Option<Imds>,
    /// True when the settings say where the service is: then it has to be there.
    is_demanded: bool,
    clock: Arc<dyn Clock>,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// The credentials given out last.
    last: Option<Credentials>,
    /// Why the service was passed over.
    passed_over: Option<String>,
}

impl InstanceRole {
    pub(super) fn new(settings: &AwsSettings, api: Arc<dyn Api>, clock: Arc<dyn Clock>) -> Self {
        let instance = &settings.instance;
        let off = "the EC2 instance metadata service is off (AWS_EC2_METADATA_DISABLED)";
        let memory = Memory {
            passed_over: (!instance.enabled).then(|| off.to_owned()),
            ..Memory::default()
        };
        Self {
            imds: instance
                .enabled
                .then(|| Imds::new(instance, api, Arc::clone(&clock))),
            is_demanded: instance.endpoint.is_some(),
            clock,
            memory: Mutex::new(memory),
        }
    }

    fn retrieve(&self, imds: &Imds) -> Result<Credentials, ImdsFault> {
        let roles = imds.get(ROLES).map_err(no_role)?;
        let role = roles.lines().next().unwrap_or_default().trim();
        if !is_role(role) {
            return Err(no_role(ImdsFault::Failed {
                status: Some(404),
                text: format!("{} lists none", imds.base()),
                passes: false,
            }));
        }
        let body = imds.get(&format!("{ROLES}{role}"))?;
        let source = format!("EC2 instance role {role}");
        let found = document::read(body.as_bytes(), source).map_err(|why| unusable(role, &why))?;
        if found.expires.is_some_and(|end| end <= self.clock.now()) {
            let why = "the instance metadata service hands out credentials past their end";
            return Ok(self.stretch(found, why));
        }
        Ok(found)
    }

    /// Credentials that serve past their end, until the service is to be asked again.
    fn stretch(&self, mut credentials: Credentials, why: &str) -> Credentials {
        let thousandths = u32::try_from(unguessable() % 1001).unwrap_or_default();
        let again = STALE_RETRY + STALE_JITTER * thousandths / 1000;
        log::warn(
            "expired AWS credentials stay in use",
            &[
                ("error", &why),
                ("source", &credentials.source),
                ("next_try_in_s", &again.as_secs()),
            ],
        );
        credentials.expires = self.clock.now().checked_add(again + RENEWAL_MARGIN);
        credentials
    }

    /// Chooses what to give when the service gives nothing: the last credentials, none, or the
    /// fault.
    fn fall_back(&self, fault: &ImdsFault) -> Result<Option<Credentials>, AwsFault> {
        let last = self.memory.locked().last.clone();
        match (fault, last) {
            (ImdsFault::Unreachable(_) | ImdsFault::Failed { passes: true, .. }, Some(last)) => {
                if last.expires.is_some_and(|end| end <= self.clock.now()) {
                    return Ok(Some(self.stretch(last, &fault.to_string())));
                }
                log::warn("AWS credentials not renewed", &[("error", fault)]);
                Ok(Some(last))
            }
            (ImdsFault::Unreachable(text), None) if !self.is_demanded => {
                self.memory.locked().passed_over = Some(text.clone());
                Ok(None)
            }
            // The settings say that the service is there, so it may just be late.
            (ImdsFault::Unreachable(text), None) => Err(AwsFault::passing(text.clone())),
            _ => Err(fault.clone().into()),
        }
    }
}

impl Source for InstanceRole {
    fn fetch(&self) -> Result<Option<Credentials>, AwsFault> {
        let Some(imds) = &self.imds else {
            return Ok(None);
        };
        match self.retrieve(imds) {
            Ok(credentials) => {
                self.memory.locked().last = Some(credentials.clone());
                Ok(Some(credentials))
            }
            Err(fault) => self.fall_back(&fault),
        }
    }

    fn explain_absence(&self) -> Option<String> {
        self.memory.locked().passed_over.clone()
    }
}

/// Letters that IAM allows in a role's name (IAM user guide, "Names and paths"); none of them
/// means anything in a path.
fn is_role(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b);
    !text.is_empty() && text.len() <= ROLE_LENGTH_MAX && text.bytes().all(fits)
}

/// A missing list means that there is no role.
fn no_role(fault: ImdsFault) -> ImdsFault {
    match fault {
        ImdsFault::Failed {
            status: Some(404),
            text,
            ..
        } => ImdsFault::Failed {
            status: Some(404),
            text: format!(
                "this EC2 instance has no role ({text}); attach an instance profile to it, or \
                 configure another source of credentials"
            ),
            passes: false,
        },
        other => other,
    }
}

fn unusable(role: &str, why: &Unusable) -> ImdsFault {
    let text = match why {
        Unusable::Odd(reason) => {
            format!("the EC2 instance metadata service's reply for role {role} {reason}")
        }
        Unusable::Refused(code, message) => {
            let remedy = match code.as_str() {
                "AssumeRoleUnauthorizedAccess" => {
                    "let ec2.amazonaws.com assume it in its trust policy"
                }
                _ => "check the instance profile and its role",
            };
            format!("EC2 instance role {role}: {code}: {message}; {remedy}")
        }
    };
    ImdsFault::Failed {
        status: Some(200),
        text,
        passes: false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::fake::{FakeApi, Scripted, clock, json, refused};
    use super::*;
    use crate::clock::ManualClock;
    use crate::config::InstanceSettings;
    use crate::upstream::{Stage, UpstreamError};

    const HOUR: Duration = Duration::from_secs(3600);

    struct Bench {
        api: Arc<FakeApi>,
        clock: Arc<ManualClock>,
        role: InstanceRole,
    }

    fn bench(endpoint: Option<&str>) -> Bench {
        let clock = clock();
        let api = FakeApi::new(&clock);
        let instance = InstanceSettings {
            enabled: true,
            endpoint: endpoint.map(Into::into),
            ..InstanceSettings::default()
        };
        let settings = AwsSettings {
            instance,
            ..AwsSettings::default()
        };
        let mut role = InstanceRole::new(&settings, api.clone(), clock.clone());
        role.imds = role.imds.map(Imds::hasty);
        Bench { api, clock, role }
    }

    impl Bench {
        fn session(self) -> Self {
            self.api.reply(json(200, "t1"));
            self
        }

        fn role(&self, document: Scripted) {
            self.api.reply(json(200, "puller\n"));
            self.api.reply(document);
        }

        fn fault(&self) -> String {
            self.role.fetch().unwrap_err().text
        }
    }

    /// Credentials that end at this time of 2023-11-15, six hours from the start at 04:13:20.
    fn document(time: &str) -> Scripted {
        json(
            200,
            &format!(
                r#"{{"Code":"Success","AccessKeyId":"ASIAX","SecretAccessKey":"hunter2",
                "Token":"t+/=","Expiration":"2023-11-15T{time}Z"}}"#
            ),
        )
    }

    #[test]
    fn the_first_role_of_the_list_is_taken() {
        let bench = bench(None).session();
        bench.role(document("04:13:20"));
        let found = bench.role.fetch().unwrap().unwrap();
        assert_eq!(found.access_key_id, "ASIAX");
        assert_eq!(found.session_token.unwrap().expose(), "t+/=");
        assert_eq!(found.source, "EC2 instance role puller");
        assert_eq!(found.expires, Some(bench.clock.now() + HOUR * 6));
        let paths: Vec<String> = bench.api.calls().into_iter().map(|call| call.url).collect();
        let base = "http://169.254.169.254/latest";
        let expected = [
            format!("{base}/api/token"),
            format!("{base}/meta-data/iam/security-credentials/"),
            format!("{base}/meta-data/iam/security-credentials/puller"),
        ];
        assert_eq!(paths, expected);
        assert!(bench.api.calls().iter().all(|call| !call.through_proxy));
        assert_eq!(bench.role.explain_absence(), None);
    }

    #[test]
    fn an_instance_without_a_role_is_told_to_get_one() {
        for list in [json(404, "<html>"), json(200, ""), json(200, "a/../b")] {
            let bench = bench(None).session();
            bench.api.reply(list);
            let fault = bench.fault();
            assert!(
                fault.starts_with("this EC2 instance has no role"),
                "{fault}"
            );
            assert!(fault.contains("attach an instance profile"), "{fault}");
        }
    }

    #[test]
    fn a_code_other_than_success_is_told_with_its_remedy() {
        let bench = bench(None).session();
        let body = r#"{"Code":"AssumeRoleUnauthorizedAccess","Message":"EC2 cannot assume it."}"#;
        bench.role(json(200, body));
        let fault = bench.fault();
        assert_eq!(
            fault,
            "EC2 instance role puller: AssumeRoleUnauthorizedAccess: EC2 cannot assume it; let \
             ec2.amazonaws.com assume it in its trust policy"
        );
        bench.role(json(200, r#"{"Code":"Failed"}"#));
        assert!(
            bench
                .fault()
                .ends_with("check the instance profile and its role")
        );
        bench.role(json(200, "{}"));
        assert!(
            bench
                .fault()
                .ends_with("for role puller has no AccessKeyId")
        );
    }

    #[test]
    fn out_of_reach_means_not_configured_and_says_what_was_tried() {
        let bench = bench(None);
        assert_eq!(bench.role.fetch(), Ok(None));
        let why = bench.role.explain_absence().unwrap();
        assert!(why.contains("does not answer"), "{why}");
        bench.api.fail(UpstreamError {
            stage: Stage::Timeout,
            ..refused()
        });
        assert_eq!(bench.role.fetch(), Ok(None));
        assert!(
            bench
                .role
                .explain_absence()
                .unwrap()
                .contains("hop limit 2")
        );
        // The user says that it is there, so its absence is a fault.
        let demanded = self::bench(Some("http://127.0.0.1:1"));
        assert!(demanded.fault().contains("does not answer"));
    }

    #[test]
    fn what_somebody_must_mend_is_told_from_what_passes() {
        let lasting = |replies: &[(u16, &str)]| {
            let bench = bench(Some("http://127.0.0.1:1"));
            for (status, body) in replies {
                bench.api.reply(json(*status, body));
            }
            bench.role.fetch().unwrap_err().is_lasting()
        };
        assert!(lasting(&[(403, "")]), "the service is off");
        assert!(lasting(&[(200, "t1"), (404, "")]), "no role");
        let refused = r#"{"Code":"AssumeRoleUnauthorizedAccess"}"#;
        assert!(lasting(&[(200, "t1"), (200, "puller"), (200, refused)]));
        assert!(!lasting(&[]), "nobody listens yet");
        assert!(!lasting(&[
            (200, "t1"),
            (500, ""),
            (500, ""),
            (500, ""),
            (500, "")
        ]));
    }

    #[test]
    fn switched_off_it_is_not_asked() {
        let (api, clock) = (FakeApi::new(&clock()), clock());
        let settings = AwsSettings::default();
        let role = InstanceRole::new(&settings, api.clone(), clock);
        assert_eq!(role.fetch(), Ok(None));
        assert!(api.calls().is_empty());
        let why = role.explain_absence().unwrap();
        assert!(why.contains("AWS_EC2_METADATA_DISABLED"), "{why}");
    }

    fn retry_in(bench: &Bench, found: &Credentials) -> Duration {
        let left = found.expires.unwrap().duration_since(bench.clock.now());
        left.unwrap() - RENEWAL_MARGIN
    }

    #[test]
    fn credentials_handed_out_past_their_end_are_used_and_asked_for_again_later() {
        let bench = bench(None).session();
        for _ in 0..50 {
            // The bench's clock stands at 22:13:20 of the day before.
            let late = r#"{"AccessKeyId":"ASIAX","SecretAccessKey":"hunter2",
                "Expiration":"2023-11-14T22:13:20Z"}"#;
            bench.role(json(200, late));
            let found = bench.role.fetch().unwrap().unwrap();
            let wait = retry_in(&bench, &found);
            assert!((STALE_RETRY..=STALE_RETRY + STALE_JITTER).contains(&wait));
        }
    }

    #[test]
    fn when_the_service_fails_the_last_ones_serve_past_their_end() {
        let bench = bench(None).session();
        bench.role(document("04:13:20"));
        bench.role.fetch().unwrap().unwrap();
        bench.clock.advance(HOUR * 5);
        (0..4).for_each(|_| bench.api.reply(json(500, "")));
        let kept = bench.role.fetch().unwrap().unwrap();
        assert_eq!(kept.expires, Some(bench.clock.now() + HOUR));
        bench.clock.advance(HOUR);
        (0..4).for_each(|_| bench.api.reply(json(500, "")));
        let found = bench.role.fetch().unwrap().unwrap();
        assert_eq!(found.access_key_id, "ASIAX");
        assert!(retry_in(&bench, &found) >= STALE_RETRY);
        // The session token has ended, too; now nothing answers at all.
        bench.clock.advance(HOUR);
        assert!(bench.role.fetch().unwrap().is_some());
        // A role that is taken away is no failure of the service.
        bench.api.reply(json(200, "t2"));
        bench.api.reply(json(404, ""));
        assert!(bench.fault().contains("has no role"));
    }
}
