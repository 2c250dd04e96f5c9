//! `check`: everything that a pull needs, tried once, as a table. Owns: what is tried, in which
//! order, for how long, and the words. Must not: open the cache (a proxy may run beside it), show a
//! secret, or outlast its limit, whatever hangs.

mod image;
mod outcome;
mod steps;
mod storage;

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::image::Rights;
use self::outcome::{StepOutcome, StepResult, noted, ok, parts, skipped};
use self::steps::Target;
use super::output::Streams;
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

/// Tries everything with these settings; returns the exit code. `image`: one whose repository is to
/// be tried, too. `json`: one document instead of a table.
pub(super) fn run(
    settings: &Settings,
    effective: &[Effective],
    (image, json): (Option<&str>, bool),
    streams: &mut Streams<'_>,
) -> u8 {
    log::init(settings.log_level, settings.log_format);
    log::hook_panics();
    let mut check = Check::new(streams, json);
    match image.map(str::parse::<ImageName>).transpose() {
        Ok(image) => check.run(&Arc::new(settings.clone()), effective, image),
        Err(why) => {
            check.print_row("image", &Err(why));
            check.code = EXIT_SETTINGS;
        }
    }
    let code = check.finish();
    log::flush(FLUSH_LIMIT);
    code
}

/// Prints the faults of the settings: nothing else can be tried.
pub(super) fn print_faults(faults: &[Fault], json: bool, streams: &mut Streams<'_>) -> u8 {
    let mut check = Check::new(streams, json);
    for fault in faults {
        check.print_row("settings", &Err(fault.to_string()));
    }
    check.code = EXIT_SETTINGS;
    check.finish()
}

/// A registry, and the value of `Authorization` that it gets.
type WithToken = (Registry, Option<Secret<String>>);

/// The check as it runs; it prints each line when its step ends.
struct Check<'a, 'b> {
    streams: &'a mut Streams<'b>,
    deadline: Instant,
    /// The exit code so far.
    code: u8,
    /// The rows are kept for one document.
    json: bool,
    rows: Vec<Value>,
}

impl<'a, 'b> Check<'a, 'b> {
    fn new(streams: &'a mut Streams<'b>, json: bool) -> Self {
        Self {
            streams,
            deadline: Instant::now() + TOTAL,
            code: EXIT_OK,
            json,
            rows: Vec::new(),
        }
    }

    /// From the inside out, so that the first failure is the one to mend.
    fn run(&mut self, settings: &Arc<Settings>, effective: &[Effective], image: Option<ImageName>) {
        self.print_row("settings", &ok(list_given(effective)));
        for warning in &settings.warnings {
            self.print_row("settings", &Err(warning.clone()));
        }
        let disk = [
            ("cache", steps::probe_cache as fn(&Settings) -> StepResult),
            ("quota", steps::judge_quota),
            ("port", steps::try_port),
            ("tls", steps::load_tls),
            ("logins", steps::load_logins),
        ];
        for (what, step) in disk {
            let own = Arc::clone(settings);
            self.run_step(what, DISK_LIMIT, move |_| step(&own));
        }
        if settings.offline {
            let network = ["identity", "token", "clock", "registry", "image"];
            return self.skip(&network, "OFFLINE=true: nobody is asked");
        }
        match app::new_client(settings, POOL) {
            Ok(client) => self.check_network(settings, &Arc::new(client), image),
            Err(why) => self.print_row("network", &Err(why)),
        }
    }

    /// Prints the document, where there is to be one; returns the exit code.
    fn finish(self) -> u8 {
        if !self.json {
            return self.code;
        }
        let document = json!({ "ok": self.code == EXIT_OK, "steps": self.rows });
        match self.streams.print(&format!("{document:#}\n")) {
            EXIT_OK => self.code,
            failed => failed,
        }
    }

    /// The steps that need the network.
    fn check_network(
        &mut self,
        settings: &Settings,
        client: &Arc<Client>,
        image: Option<ImageName>,
    ) {
        let named = settings.registries.clone();
        let found = if settings.upstream_auth == UpstreamAuth::None {
            let aws = ["identity", "token", "clock"];
            self.skip(&aws, "not needed: UPSTREAM_AUTH=none");
            named.into_iter().map(|registry| (registry, None)).collect()
        } else {
            self.compare_regions(settings);
            self.fetch_tokens(named, &app::new_tokens(settings, client))
        };
        if found.is_empty() {
            let why = "not known: set ECR, or mend the token, which names one";
            self.skip(&["registry"], why);
        }
        for (registry, token) in &found {
            self.check_registry(settings, client, registry, token.as_ref());
        }
        let Some(image) = image else {
            let why = "name an image to try the rights on its repository: check IMAGE";
            return self.skip(&["image"], why);
        };
        let mut places = found.into_iter().enumerate();
        match places.find(|(place, (registry, _))| image.is_in(registry, *place == 0)) {
            Some((_, (_, None))) if settings.upstream_auth == UpstreamAuth::Ecr => {
                self.skip(&["manifest", "layer"], "no token to ask with");
            }
            Some((_, target)) => self.check_image(settings, client, target, image),
            None => {
                let why = "no registry in ECR has this host; name it as ECR does";
                self.print_row("manifest", &Err(why.to_owned()));
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
                self.print_row("region", &noted(why));
            }
        }
    }

    /// Finds the identity and fetches a token for each registry. Without a registry in the settings
    /// the token names one.
    fn fetch_tokens(&mut self, named: Vec<Registry>, tokens: &Arc<Tokens>) -> Vec<WithToken> {
        let asked = Arc::clone(tokens);
        let credentials = self.run_bounded("identity", IDENTITY_LIMIT, move |_| {
            asked.find_credentials()
        });
        let credentials = match credentials {
            Ok(credentials) => credentials,
            Err(why) => {
                self.print_row("identity", &Err(why));
                self.skip(&["token"], "no credentials to fetch one with");
                self.skip(&["clock"], "AWS was not asked");
                return named.into_iter().map(|registry| (registry, None)).collect();
            }
        };
        let asked = Arc::clone(tokens);
        self.run_step("identity", IDENTITY_LIMIT, move |_| {
            steps::find_identity(&asked, &credentials)
        });
        let wanted = match named.is_empty() {
            true => vec![None],
            false => named.into_iter().map(Some).collect(),
        };
        let mut found = Vec::new();
        for registry in wanted {
            let (asked, about) = (Arc::clone(tokens), registry.clone());
            let token = self.run_giving("token", TOKEN_LIMIT, move |_| {
                steps::fetch_token(&asked, about.as_ref())
            });
            let own = token.as_ref().and_then(|token| token.registry.clone());
            let value = token.map(|token| token.value);
            found.extend(registry.or(own).map(|registry| (registry, value)));
        }
        self.print_row("clock", &steps::compare_clocks(tokens));
        found
    }

    /// The way to one registry, and to the layers behind it.
    fn check_registry(
        &mut self,
        settings: &Settings,
        client: &Arc<Client>,
        registry: &Registry,
        token: Option<&Secret<String>>,
    ) {
        let target = Arc::new(Target {
            client: Arc::clone(client),
            auth: settings.upstream_auth,
            registry: registry.clone(),
            token: token.cloned(),
        });
        let way = [
            (
                "proxy",
                DNS_LIMIT,
                Target::try_outbound_proxy as fn(&Target, Duration) -> StepResult,
            ),
            ("dns", DNS_LIMIT, Target::look_up),
            ("registry", REGISTRY_LIMIT, Target::ask_registry),
        ];
        for (what, limit, step) in way {
            let target = Arc::clone(&target);
            self.run_step(what, limit, move |limit| step(&target, limit));
        }
        let hosts = storage::hosts(settings, registry);
        if hosts.is_empty() {
            let why = "where this registry keeps layers is not known; check IMAGE tries it";
            self.skip(&["storage"], why);
        }
        for host in hosts {
            let way = Arc::clone(client);
            let reach = move |limit| storage::reach(&way, &host, limit);
            self.run_step("storage", REGISTRY_LIMIT, reach);
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
        let read = move |_| asked.read_manifest();
        match self.run_giving("manifest", REGISTRY_LIMIT * 2, read) {
            Some(Some(layer)) => {
                let read = move |_| rights.read_layer(&layer);
                self.run_step("layer", REGISTRY_LIMIT * 2, read);
            }
            _ => self.skip(&["layer"], "there is none to try"),
        }
    }

    /// Prints steps that are not tried.
    fn skip(&mut self, steps: &[&str], why: &str) {
        for what in steps {
            self.print_row(what, &skipped(why));
        }
    }

    /// Runs a step within its limit, and prints its line.
    fn run_step(
        &mut self,
        what: &str,
        limit: Duration,
        step: impl FnOnce(Duration) -> StepResult + Send + 'static,
    ) {
        self.run_giving(what, limit, move |limit| Ok((step(limit)?, ())));
    }

    /// The same with what the step found for those that follow; none when it failed.
    fn run_giving<T: Send + 'static>(
        &mut self,
        what: &str,
        limit: Duration,
        step: impl FnOnce(Duration) -> Result<(StepOutcome, T), String> + Send + 'static,
    ) -> Option<T> {
        let (result, found) = match self.run_bounded(what, limit, step) {
            Ok((outcome, found)) => (Ok(outcome), Some(found)),
            Err(why) => (Err(why), None),
        };
        self.print_row(what, &result);
        found
    }

    /// Runs `step` on a thread of its own and waits for it, at most `limit` and at most until the
    /// deadline of the whole check. A step that hangs is abandoned: the process ends soon.
    ///
    /// # Errors
    /// Why it failed, or why there is no outcome.
    fn run_bounded<T: Send + 'static>(
        &self,
        what: &str,
        limit: Duration,
        step: impl FnOnce(Duration) -> Result<T, String> + Send + 'static,
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
        let run = move || drop(done.send(step(limit)));
        Builder::new()
            .name(format!("check-{what}"))
            .stack_size(STACK_BYTES)
            .spawn(run)
            .map_err(|error| format!("no thread to try it with: {error}"))?;
        outcome
            .recv_timeout(limit)
            .unwrap_or_else(|error| match error {
                RecvTimeoutError::Timeout => {
                    let seconds = limit.as_secs().max(1);
                    Err(format!("no outcome within {seconds} s"))
                }
                RecvTimeoutError::Disconnected => {
                    Err("it ended without an outcome; the log says why".to_owned())
                }
            })
    }

    fn print_row(&mut self, what: &str, result: &StepResult) {
        if result.is_err() {
            self.code = EXIT_FAILED;
        }
        let (word, detail) = parts(result);
        if self.json {
            let row = json!({ "step": what, "outcome": word.to_lowercase(), "detail": detail });
            self.rows.push(row);
            return;
        }
        // One line, whatever the detail holds.
        let detail = detail.replace(char::is_control, " ");
        let line = format!("{word:4}  {what:WHAT_WIDTH$}  {detail}\n");
        // A table that cannot be printed is a failed check.
        if self.streams.print(&line) != EXIT_OK {
            self.code = EXIT_FAILED;
        }
    }
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
