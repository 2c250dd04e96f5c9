//! `check`: everything that a pull needs, tried once, as a table. Owns: what is tried, in which
//! order, for how long, and the rows. Must not: open the cache (a proxy may run beside it), show a
//! secret, or outlast its limit, whatever hangs.

mod image;
mod local;
mod outcome;
mod way;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::image::Rights;
use self::outcome::{StepResult, noted, ok, skipped};
use self::way::{ANSWER_LIMIT, Account, DNS_LIMIT, Way};
use super::bounded;
use super::invocation::{CommandFault, Invocation};
use super::output::Streams;
use crate::aws::ecr;
use crate::config::{
    EXIT_FAILED, EXIT_OK, EXIT_SETTINGS, Effective, Origin, Settings, UpstreamAuth,
};
use crate::image_name::ImageName;
use crate::log;
use crate::oci::Registry;

/// Longest time for all steps together: people wait a minute, and so do deployments.
const TOTAL: Duration = Duration::from_secs(55);
/// The cache, certificates and logins are on disks, which may hang.
const DISK_LIMIT: Duration = Duration::from_secs(5);
/// Credentials and their identity: a container's endpoint may take 17 s, then STS 10.
const IDENTITY_LIMIT: Duration = Duration::from_secs(28);
/// One token: a call of 15 s, and room for a second one where the clock was off.
const TOKEN_LIMIT: Duration = Duration::from_secs(20);
/// An index and a manifest; or a layer, by way of its registry.
const IMAGE_LIMIT: Duration = Duration::from_secs(20);
/// Longest wait for the last log lines.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);
/// Widest name of a step.
const WHAT_WIDTH: usize = 8;

/// Tries everything, and with an image the rights on its repository, too. When the settings have
/// faults, only those are shown, since nothing else can be tried.
pub(super) fn run(command: Invocation<'_>, streams: &mut Streams<'_>) -> Result<u8, CommandFault> {
    let mut check = Check {
        streams,
        deadline: Instant::now() + TOTAL,
        code: EXIT_OK,
        rows: command.has("--json").then(Vec::new),
    };
    let image = command.word().map(str::parse).transpose();
    match (command.faults, image) {
        ([], Ok(image)) => {
            let settings = Arc::new(command.settings.clone());
            log::init(settings.log_level, settings.log_format);
            log::hook_panics();
            check.run(&settings, command.effective, image);
        }
        ([], Err(why)) => check.refuse("image", &[why]),
        (faults, _) => check.refuse("settings", faults),
    }
    let code = check.finish();
    log::flush(FLUSH_LIMIT);
    Ok(code)
}

/// The check as it runs; it prints each line when its step ends.
struct Check<'a, 'b> {
    streams: &'a mut Streams<'b>,
    deadline: Instant,
    /// The exit code so far.
    code: u8,
    /// With `--json` the rows are kept for one document.
    rows: Option<Vec<Value>>,
}

impl Check<'_, '_> {
    /// Shows why nothing can be tried.
    fn refuse(&mut self, what: &str, faults: &[impl ToString]) {
        for fault in faults {
            self.print_row(what, Err(fault.to_string()));
        }
        self.code = EXIT_SETTINGS;
    }

    /// From the inside out, so that the first failure is the one to mend.
    fn run(&mut self, settings: &Arc<Settings>, effective: &[Effective], image: Option<ImageName>) {
        self.print_row("settings", ok(list_given(effective)));
        for warning in &settings.warnings {
            self.print_row("settings", Err(warning.clone()));
        }
        for (what, step) in local::STEPS {
            self.run_step(what, DISK_LIMIT, settings, step);
        }
        if settings.offline {
            for what in ["identity", "token", "clock", "registry", "image"] {
                self.print_row(what, skipped("OFFLINE=true: nothing is asked"));
            }
            return;
        }
        match Account::new(Arc::clone(settings)) {
            Ok(account) => self.check_network(&Arc::new(account), image),
            Err(why) => self.print_row("network", Err(why)),
        }
    }

    /// The steps that need the network.
    fn check_network(&mut self, account: &Arc<Account>, image: Option<ImageName>) {
        for remark in compare_regions(&account.settings) {
            self.print_row("region", noted(remark));
        }
        self.run_step("identity", IDENTITY_LIMIT, account, Account::find_identity);
        let ways = Way::all(account);
        for way in &ways {
            self.run_step("token", TOKEN_LIMIT, way, Way::fetch_token);
        }
        self.run_step("clock", DISK_LIMIT, account, Account::compare_clocks);
        for way in &ways {
            match way.registry() {
                Ok(_) => self.check_way(way),
                Err(why) => self.print_row("registry", skipped(why)),
            }
        }
        match image {
            Some(image) => self.check_image(&ways, image),
            None => {
                let why = "name an image to try the rights on its repository: check IMAGE";
                self.print_row("image", skipped(why));
            }
        }
    }

    /// The way to one registry, and to the layers behind it.
    fn check_way(&mut self, way: &Arc<Way>) {
        self.run_step("proxy", DNS_LIMIT, way, Way::try_outbound_proxy);
        self.run_step("dns", DNS_LIMIT, way, Way::look_up);
        self.run_step("registry", ANSWER_LIMIT, way, Way::ask_registry);
        let hosts = way.storage_hosts();
        if hosts.is_empty() {
            let why = "where this registry keeps layers is not known; check IMAGE tries it";
            self.print_row("storage", skipped(why));
        }
        for host in hosts {
            let reach = move |way: &Way| way.reach_storage(&host);
            self.run_step("storage", ANSWER_LIMIT, way, reach);
        }
    }

    /// The rights on one repository.
    fn check_image(&mut self, ways: &[Arc<Way>], image: ImageName) {
        let mut ways = ways.iter().enumerate();
        let found = ways.find(|(place, way)| {
            let registry = way.registry();
            registry.is_ok_and(|registry| image.is_in(registry, *place == 0))
        });
        let Some((_, way)) = found else {
            let why = format!("{image}: no registry in ECR has this host; name it as ECR does");
            return self.print_row("manifest", Err(why));
        };
        let (way, layer) = (Arc::clone(way), OnceLock::new());
        let rights = Arc::new(Rights { way, image, layer });
        self.run_step("manifest", IMAGE_LIMIT, &rights, Rights::read_manifest);
        self.run_step("layer", IMAGE_LIMIT, &rights, Rights::read_layer);
    }

    /// Runs a step within its limit and the time that is left, and prints its line. A step that
    /// hangs is left behind.
    fn run_step<C: Send + Sync + 'static>(
        &mut self,
        what: &str,
        limit: Duration,
        context: &Arc<C>,
        step: impl FnOnce(&C) -> StepResult + Send + 'static,
    ) {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let total = TOTAL.as_secs();
            let why = format!("not tried: the steps before it took {total} s, all there is");
            return self.print_row(what, Err(why));
        }
        let context = Arc::clone(context);
        let result = bounded::within(limit.min(left), move || step(&context));
        self.print_row(what, result.flatten());
    }

    fn print_row(&mut self, what: &str, result: StepResult) {
        let (word, detail) = result.unwrap_or_else(|why| {
            self.code = EXIT_FAILED;
            ("FAIL", why)
        });
        if let Some(rows) = &mut self.rows {
            let word = word.to_lowercase();
            return rows.push(json!({ "step": what, "outcome": word, "detail": detail }));
        }
        // One line, whatever the detail holds.
        let detail = detail.replace(char::is_control, " ");
        let line = format!("{word:4}  {what:WHAT_WIDTH$}  {detail}\n");
        // A table that cannot be printed is a failed check.
        self.code = self.code.max(self.streams.print(&line));
    }

    /// Prints the document, where there is to be one; returns the exit code.
    fn finish(self) -> u8 {
        let Some(rows) = self.rows else {
            return self.code;
        };
        let document = json!({ "ok": self.code == EXIT_OK, "steps": rows });
        let printed = self.streams.print(&format!("{document:#}\n"));
        self.code.max(printed)
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

/// Finds the registries for which `AWS_REGION` counts for nothing.
fn compare_regions(settings: &Settings) -> Vec<String> {
    let wants_token = settings.upstream_auth == UpstreamAuth::Ecr;
    let set = settings.aws.region.as_ref().filter(|_| wants_token);
    let remark = |registry: &Registry| {
        let own = ecr::region_of(registry)?;
        let set = set.filter(|set| **set != own)?;
        Some(format!(
            "AWS_REGION={set}, and {registry} is in {own}, which counts"
        ))
    };
    settings.registries.iter().filter_map(remark).collect()
}

#[cfg(test)]
mod tests;
