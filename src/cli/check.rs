//! `check`: everything that a pull needs, tried once, as a table. Owns: what is tried, in which
//! order, for how long, and the words. Must not: open the cache (a proxy may run beside it), show a
//! secret, or outlast its limit, whatever hangs.

mod image;
mod outcome;
mod steps;
mod storage;

use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::image::Rights;
use self::outcome::StepOutcome;
use super::output::print;
use crate::app;
use crate::aws::ecr;
use crate::aws::token::Tokens;
use crate::config::{
    EXIT_FAILED, EXIT_OK, EXIT_SETTINGS, Effective, Fault, Origin, Settings, UpstreamAuth,
};
use crate::image_name::ImageName;
use crate::log;
use crate::oci::Registry;
use crate::secret::Secret;
use crate::upstream::client::Client;

/// Longest time for all steps together: people wait a minute, and so do deployments.
const TOTAL: Duration = Duration::from_secs(55);
/// The cache, certificates and logins are on disks, which may hang.
const DISK_LIMIT: Duration = Duration::from_secs(5);
/// Credentials and who they are: a container's endpoint may take 17 s, then STS 10.
const IDENTITY_LIMIT: Duration = Duration::from_secs(28);
/// One token: a call of 15 s, and room for a second one where the clock was off.
const TOKEN_LIMIT: Duration = Duration::from_secs(20);
/// One name.
const DNS_LIMIT: Duration = Duration::from_secs(6);
/// One registry's answer, connecting included.
const REGISTRY_LIMIT: Duration = Duration::from_secs(10);
/// Stack of a step's thread: TLS and JSON.
const STACK_BYTES: usize = 1 << 20;
/// Idle connections: nothing is asked twice.
const POOL: usize = 1;
/// Longest wait for the last log lines.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);
/// Widest name of a step.
const WHAT_WIDTH: usize = 8;

/// What the command line asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    /// An image whose repository is to be tried, too.
    pub(super) image: Option<&'a str>,
    /// One JSON document instead of a table.
    pub(super) json: bool,
}

/// Tries everything with these settings; returns the exit code.
pub(super) fn run(
    settings: &Settings,
    effective: &[Effective],
    wish: Wish<'_>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    log::init(settings.log_level, settings.log_format);
    log::hook_panics();
    let mut check = Check::new(out, err, TOTAL);
    check.json = wish.json;
    let image = wish.image.map(str::parse::<ImageName>).transpose();
    let code = match image {
        Ok(image) => check.run(settings, effective, image),
        Err(why) => {
            check.print_row("image", &StepOutcome::Failed(why));
            check.code = EXIT_SETTINGS;
            check.finish()
        }
    };
    log::flush(FLUSH_LIMIT);
    code
}

/// A registry, and the value of `Authorization` that it gets.
type WithToken = (Registry, Option<Secret<String>>);

/// Prints the faults of the settings: nothing else can be tried.
pub(super) fn print_faults(
    faults: &[Fault],
    json: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let mut check = Check::new(out, err, TOTAL);
    check.json = json;
    for fault in faults {
        check.print_row("settings", &StepOutcome::Failed(fault.to_string()));
    }
    check.code = EXIT_SETTINGS;
    check.finish()
}

/// The check as it runs; it prints each line when its step ends.
struct Check<'a> {
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    deadline: Instant,
    /// The exit code so far.
    code: u8,
    /// The rows are kept for one document.
    json: bool,
    rows: Vec<Value>,
}

impl<'a> Check<'a> {
    fn new(out: &'a mut dyn Write, err: &'a mut dyn Write, total: Duration) -> Self {
        Self {
            out,
            err,
            deadline: Instant::now() + total,
            code: EXIT_OK,
            json: false,
            rows: Vec::new(),
        }
    }

    /// From the inside out, so that the first failure is the one to mend.
    fn run(mut self, settings: &Settings, effective: &[Effective], image: Option<ImageName>) -> u8 {
        self.print_row("settings", &StepOutcome::Ok(list_given(effective)));
        for warning in &settings.warnings {
            self.print_row("settings", &StepOutcome::Failed(warning.clone()));
        }
        let own = Arc::new(settings.clone());
        let disk = [
            ("cache", steps::probe_cache as fn(&Settings) -> StepOutcome),
            ("quota", steps::judge_quota),
            ("port", steps::try_port),
            ("tls", steps::load_tls),
            ("logins", steps::load_logins),
        ];
        for (what, step) in disk {
            let own = Arc::clone(&own);
            self.run_step(what, DISK_LIMIT, move || step(&own));
        }
        if settings.offline {
            for what in ["identity", "token", "clock", "registry", "image"] {
                let why = "OFFLINE=true: nobody is asked".to_owned();
                self.print_row(what, &StepOutcome::Skipped(why));
            }
            return self.finish();
        }
        match app::new_client(settings, POOL) {
            Ok(client) => self.check_network(&own, &Arc::new(client), image),
            Err(why) => self.print_row("network", &StepOutcome::Failed(why)),
        }
        self.finish()
    }

    /// Prints the document, where there is to be one; returns the exit code.
    fn finish(self) -> u8 {
        if !self.json {
            return self.code;
        }
        let document = json!({ "ok": self.code == EXIT_OK, "steps": self.rows });
        match print(self.out, self.err, &format!("{document:#}\n")) {
            EXIT_OK => self.code,
            failed => failed,
        }
    }

    /// The steps that need the network.
    fn check_network(
        &mut self,
        settings: &Arc<Settings>,
        client: &Arc<Client>,
        image: Option<ImageName>,
    ) {
        let named = settings.registries.clone();
        let found = if settings.upstream_auth == UpstreamAuth::None {
            for what in ["identity", "token", "clock"] {
                let why = "not needed: UPSTREAM_AUTH=none".to_owned();
                self.print_row(what, &StepOutcome::Skipped(why));
            }
            named.into_iter().map(|registry| (registry, None)).collect()
        } else {
            self.compare_regions(settings);
            self.fetch_tokens(named, &app::new_tokens(settings, client))
        };
        if found.is_empty() {
            let why = "not known: set ECR, or mend the token, which names one";
            self.print_row("registry", &StepOutcome::Skipped(why.into()));
        }
        let first = image.as_ref().and_then(|image| {
            let fits = |(at, (registry, _)): &(usize, &WithToken)| image.is_in(registry, *at == 0);
            Some(found.iter().enumerate().find(fits)?.1.clone())
        });
        for (registry, token) in found {
            self.check_registry(settings, client, registry, token);
        }
        match (image, first) {
            (Some(image), Some(target)) => self.check_image(settings, client, target, image),
            (Some(_), None) => {
                let why = "no registry in ECR has this host; name it as ECR does";
                self.print_row("manifest", &StepOutcome::Failed(why.into()));
            }
            (None, _) => {
                let why = "name an image to try the rights on its repository: check IMAGE";
                self.print_row("image", &StepOutcome::Skipped(why.into()));
            }
        }
    }

    /// Says where `AWS_REGION` counts for nothing.
    fn compare_regions(&mut self, settings: &Settings) {
        let Some(set) = settings.aws.region.as_deref() else {
            return;
        };
        for registry in &settings.registries {
            if let Some(own) = ecr::region_of(registry).filter(|own| own != set) {
                let why = format!("AWS_REGION={set}, and {registry} is in {own}, which counts");
                self.print_row("region", &StepOutcome::Noted(why));
            }
        }
    }

    /// The way to one registry, and to the layers behind it.
    fn check_registry(
        &mut self,
        settings: &Arc<Settings>,
        client: &Arc<Client>,
        registry: Registry,
        token: Option<Secret<String>>,
    ) {
        let (way, url) = (Arc::clone(client), registry.url());
        self.run_step("proxy", DNS_LIMIT, move || {
            steps::try_outbound_proxy(&way, &url, DNS_LIMIT)
        });
        let (way, asked) = (Arc::clone(client), registry.clone());
        self.run_step("dns", DNS_LIMIT, move || {
            steps::look_up(&way, &asked, DNS_LIMIT)
        });
        let hosts = storage::hosts(settings, &registry);
        let (way, auth) = (Arc::clone(client), settings.upstream_auth);
        self.run_step("registry", REGISTRY_LIMIT, move || {
            steps::ask_registry(&way, &registry, token.as_ref(), auth, REGISTRY_LIMIT)
        });
        if hosts.is_empty() {
            let why = "where this registry keeps layers is not known; check IMAGE tries it";
            self.print_row("storage", &StepOutcome::Skipped(why.into()));
        }
        for host in hosts {
            let way = Arc::clone(client);
            self.run_step("storage", REGISTRY_LIMIT, move || {
                storage::reach(&way, &host, REGISTRY_LIMIT)
            });
        }
    }

    /// The rights on one repository.
    fn check_image(
        &mut self,
        settings: &Settings,
        client: &Arc<Client>,
        target: WithToken,
        image: ImageName,
    ) {
        let redirects = app::redirects(settings);
        let rights = Rights::new(client, redirects, target, image, REGISTRY_LIMIT);
        let rights = Arc::new(rights);
        let asked = Arc::clone(&rights);
        let read = self.run_bounded("manifest", REGISTRY_LIMIT * 2, move || {
            asked.read_manifest()
        });
        let (verdict, layer) = read.unwrap_or_else(|why| (StepOutcome::Failed(why), None));
        self.print_row("manifest", &verdict);
        match layer {
            Some(layer) => {
                let read = move || rights.read_layer(&layer);
                self.run_step("layer", REGISTRY_LIMIT * 2, read);
            }
            None => self.print_row(
                "layer",
                &StepOutcome::Skipped("there is none to try".into()),
            ),
        }
    }

    /// Finds the identity and fetches a token for each registry. Without a registry in the settings
    /// the token names one.
    fn fetch_tokens(&mut self, named: Vec<Registry>, tokens: &Arc<Tokens>) -> Vec<WithToken> {
        let asked = Arc::clone(tokens);
        let who = self.run_bounded("identity", IDENTITY_LIMIT, move || {
            steps::find_identity(&asked)
        });
        let (who, has_credentials) = who.unwrap_or_else(|why| (StepOutcome::Failed(why), false));
        self.print_row("identity", &who);
        let wanted = if named.is_empty() {
            vec![None]
        } else {
            named.into_iter().map(Some).collect()
        };
        let mut found = Vec::new();
        for registry in wanted {
            if !has_credentials {
                self.print_row(
                    "token",
                    &StepOutcome::Skipped("no credentials to fetch one with".into()),
                );
                found.extend(registry.map(|registry| (registry, None)));
                continue;
            }
            let (asked, about) = (Arc::clone(tokens), registry.clone());
            let token = self.run_bounded("token", TOKEN_LIMIT, move || {
                steps::fetch_token(&asked, about.as_ref())
            });
            let (verdict, token) = token.unwrap_or_else(|why| (StepOutcome::Failed(why), None));
            self.print_row("token", &verdict);
            let own = token.as_ref().and_then(|token| token.registry.clone());
            let value = token.map(|token| token.value);
            found.extend(registry.or(own).map(|registry| (registry, value)));
        }
        if has_credentials {
            self.print_row("clock", &steps::compare_clocks(tokens));
        } else {
            let why = "AWS was not asked".to_owned();
            self.print_row("clock", &StepOutcome::Skipped(why));
        }
        found
    }

    /// Runs a step, prints its line, and returns the verdict.
    fn run_step(
        &mut self,
        what: &str,
        limit: Duration,
        step: impl FnOnce() -> StepOutcome + Send + 'static,
    ) -> StepOutcome {
        let verdict = self
            .run_bounded(what, limit, step)
            .unwrap_or_else(StepOutcome::Failed);
        self.print_row(what, &verdict);
        verdict
    }

    /// Runs `step` on a thread of its own and waits for it, at most `limit` and at most until the
    /// deadline of the whole check. A step that hangs is abandoned: the process ends soon.
    ///
    /// # Errors
    /// Why there is no outcome.
    fn run_bounded<T: Send + 'static>(
        &self,
        what: &str,
        limit: Duration,
        step: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, String> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let total = TOTAL.as_secs();
            return Err(format!(
                "not tried: the steps before it took {total} s, all there is"
            ));
        }
        let limit = limit.min(left);
        let (done, outcome) = sync_channel(1);
        let run = move || drop(done.send(step()));
        Builder::new()
            .name(format!("check-{what}"))
            .stack_size(STACK_BYTES)
            .spawn(run)
            .map_err(|error| format!("no thread to try it with: {error}"))?;
        outcome.recv_timeout(limit).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                format!("no outcome within {} s", limit.as_secs().max(1))
            }
            RecvTimeoutError::Disconnected => {
                "it ended without an outcome; the log says why".to_owned()
            }
        })
    }

    fn print_row(&mut self, what: &str, verdict: &StepOutcome) {
        if let StepOutcome::Failed(_) = verdict {
            self.code = EXIT_FAILED;
        }
        if self.json {
            let (word, detail) = verdict.parts();
            let row = json!({ "step": what, "outcome": word.to_lowercase(), "detail": detail });
            self.rows.push(row);
            return;
        }
        // A table that cannot be printed is a failed check.
        if print(self.out, self.err, &format_line(what, verdict)) != EXIT_OK {
            self.code = EXIT_FAILED;
        }
    }
}

/// `ok|note|skip|FAIL  what  detail`, one line whatever the detail holds.
fn format_line(what: &str, verdict: &StepOutcome) -> String {
    let (word, detail) = verdict.parts();
    let detail = detail.replace(char::is_control, " ");
    format!("{word:4}  {what:WHAT_WIDTH$}  {detail}\n")
}

/// Which settings are given, without their values.
fn list_given(effective: &[Effective]) -> String {
    let given = effective.iter().filter(|row| row.origin != Origin::Default);
    let names: Vec<&str> = given.map(|row| row.setting.name).collect();
    match names.len() {
        0 => "none given, all are the defaults".to_owned(),
        count => format!("{count} given: {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests;
