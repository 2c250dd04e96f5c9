//! The commands. Owns: which there are, what they print, the exit code. Must not: read the
//! environment (`config` does), or build the proxy (`app` does).

mod check;
mod health;
mod output;
mod running;
mod status;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use self::output::{complain, print};
use crate::app;
use crate::config::{
    self, Arguments, COMMIT, EXIT_OK, Effective, Fault, Preset, Resolution, Settings, VERSION,
};
use crate::log::Format;

/// Widest column of `settings`; a longer value moves only its own line.
const COLUMN_WIDTH_MAX: usize = 40;

/// A command: its name, what it does, and how, if it is built.
struct Command {
    name: &'static str,
    about: &'static str,
    action: Option<Action>,
}

#[derive(Clone, Copy)]
enum Action {
    Check,
    Health,
    Help,
    Serve,
    Settings,
    Status,
    Version,
}

impl Action {
    /// The flags that it takes beside the settings.
    const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Status => &["--json", "--watch"],
            _ => &[],
        }
    }
}

const fn built(name: &'static str, about: &'static str, action: Action) -> Command {
    Command {
        name,
        about,
        action: Some(action),
    }
}

const fn later(name: &'static str, about: &'static str) -> Command {
    Command {
        name,
        about,
        action: None,
    }
}

static COMMANDS: &[Command] = &[
    built(
        "serve",
        "run the proxy; also without a command",
        Action::Serve,
    ),
    built(
        "health",
        "ask the running proxy whether it is ready",
        Action::Health,
    ),
    built(
        "check",
        "test settings, identity, token, registry, cache and files",
        Action::Check,
    ),
    built(
        "settings",
        "show the effective settings and their origin",
        Action::Settings,
    ),
    built(
        "status",
        "show what the running proxy does; --json, --watch",
        Action::Status,
    ),
    built("help", "show this; also --help and -h", Action::Help),
    later(
        "client",
        "print a client's own configuration for this proxy",
    ),
    later("export", "write cached images as an OCI layout"),
    later("import", "read an OCI layout into the cache"),
    later("pull", "fetch images into the cache"),
    later("verify", "tell whether images are complete in the cache"),
];

/// Runs the command that this process was started with.
pub fn main() -> ExitCode {
    let arguments = config::process_arguments();
    let environment = config::process_environment();
    // Unlocked handles: `serve` lasts, and the log's thread needs standard error meanwhile.
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let code = run(arguments, &environment, &mut out, &mut err, app::run);
    ExitCode::from(code)
}

/// Runs a command and returns the exit code. `serve` runs the proxy.
pub fn run(
    arguments: Vec<OsString>,
    environment: &[(OsString, OsString)],
    out: &mut dyn Write,
    err: &mut dyn Write,
    serve: impl FnOnce(Settings) -> u8,
) -> u8 {
    let arguments = Arguments::parse(arguments);
    let action = match find_action(&arguments) {
        Ok(action) => action,
        // The command's own flags are not built either: to call them unknown would mislead.
        Err(CommandFault::NotBuilt(fault)) => return complain(err, Format::Text, &[fault]),
        Err(CommandFault::Unknown(fault)) => {
            let found = resolve(&arguments, environment);
            let format = log_format(&found.effective);
            complain(err, format, &[fault]);
            return complain(err, format, &found.settings.err().unwrap_or_default());
        }
    };
    match action {
        Action::Help => print(out, err, &help()),
        Action::Version => print(out, err, &version()),
        Action::Check | Action::Health | Action::Serve | Action::Settings | Action::Status => {
            let Resolution {
                settings,
                effective,
            } = resolve(&arguments, environment);
            let shown = match action {
                Action::Settings => print(out, err, &write_table(&effective)),
                _ => EXIT_OK,
            };
            match (settings, action) {
                (Err(faults), Action::Check) => check::print_faults(&faults, out, err),
                (Err(faults), Action::Serve) => complain(err, log_format(&effective), &faults),
                (Err(faults), _) => complain(err, Format::Text, &faults),
                (Ok(settings), Action::Check) => check::run(&settings, &effective, out, err),
                (Ok(settings), Action::Health) => health::run(&settings, out, err),
                (Ok(settings), Action::Serve) => serve(settings),
                (Ok(settings), Action::Status) => {
                    let has = |flag| arguments.flags.contains(&flag);
                    let form = status::Form {
                        json: has("--json"),
                        watch: has("--watch"),
                    };
                    status::run(&settings, form, out, err)
                }
                (Ok(settings), _) => {
                    complain(err, Format::Text, &settings.warnings);
                    shown
                }
            }
        }
    }
}

/// Reads the settings; the rules about registries' names are `app`'s.
fn resolve(arguments: &Arguments, environment: &[(OsString, OsString)]) -> Resolution {
    let mut resolution = config::resolve(arguments, environment);
    if let Ok(settings) = &resolution.settings {
        let faults = app::plain_token::faults(settings);
        if !faults.is_empty() {
            resolution.settings = Err(faults.into_iter().map(Fault::new).collect());
        }
    }
    resolution
}

/// Why no command can run.
enum CommandFault {
    NotBuilt(String),
    Unknown(String),
}

/// Finds the command that the arguments name.
fn find_action(arguments: &Arguments) -> Result<Action, CommandFault> {
    if arguments.help {
        return Ok(Action::Help);
    }
    if arguments.version {
        return Ok(Action::Version);
    }
    let mut words = arguments.words.iter();
    let serve = "serve".to_owned();
    let word = words.next().unwrap_or(&serve);
    let Some(command) = COMMANDS.iter().find(|command| command.name == word) else {
        let names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
        let names = names.join(" ");
        let fault = format!("{word:?}: unknown command, expected one of {names}");
        return Err(CommandFault::Unknown(fault));
    };
    let Some(action) = command.action else {
        let fault = format!("{word}: not built yet in this version");
        return Err(CommandFault::NotBuilt(fault));
    };
    if let Some(odd) = arguments
        .flags
        .iter()
        .find(|flag| !action.flags().contains(flag))
    {
        let fault = format!("{odd}: {word} does not take it");
        return Err(CommandFault::Unknown(fault));
    }
    match words.next() {
        None => Ok(action),
        Some(odd) => {
            let fault = format!("{odd:?}: unexpected after {word}, which takes flags only");
            Err(CommandFault::Unknown(fault))
        }
    }
}

fn help() -> String {
    let mut text = format!(
        "aws-ecr-proxy {VERSION}: lets any OCI client use AWS ECR without AWS credentials\n\n\
         Usage: aws-ecr-proxy [COMMAND] [--SETTING VALUE | --SETTING=VALUE]...\n\nCommands\n"
    );
    for command in COMMANDS {
        let note = if command.action.is_none() {
            " (not built yet in this version)"
        } else {
            ""
        };
        text.push_str(&format!("  {:<9} {}{note}\n", command.name, command.about));
    }
    text.push_str(
        "\nExit codes: 0 ok, 1 failed, 64 bad settings, 70 a thread was lost\n\nSettings\n",
    );
    text.push_str(&config::help());
    text
}

fn version() -> String {
    let date = config::build_date();
    format!("aws-ecr-proxy {VERSION} (commit {COMMIT}, built {date})\n")
}

/// The effective settings, in columns.
fn write_table(effective: &[Effective]) -> String {
    let rows: Vec<[String; 3]> = effective
        .iter()
        .map(|row| {
            let value = row.value.clone().unwrap_or_else(|| "-".to_owned());
            let origin = match (&row.value, row.setting.preset) {
                (None, Preset::Unset(words)) => format!("{}: {words}", row.origin),
                _ => row.origin.to_string(),
            };
            [row.setting.name.to_owned(), value, origin.replace('`', "")]
        })
        .collect();
    let width = |column: fn(&[String; 3]) -> &String| {
        let widths = rows.iter().map(|row| column(row).chars().count());
        widths.max().unwrap_or(0).min(COLUMN_WIDTH_MAX)
    };
    let (names, values) = (width(|[name, _, _]| name), width(|[_, value, _]| value));
    let lines = rows
        .iter()
        .map(|[name, value, origin]| format!("{name:names$}  {value:values$}  {origin}\n"));
    lines.collect()
}

/// `LOG_FORMAT`, even when other settings are at fault: a log store reads the faults, too.
fn log_format(effective: &[Effective]) -> Format {
    let mut rows = effective.iter();
    let row = rows.find(|row| row.setting.name == "LOG_FORMAT");
    let value = row.and_then(|row| row.value.as_deref()).unwrap_or_default();
    match value.eq_ignore_ascii_case("json") {
        true => Format::Json,
        false => Format::Text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{EXIT_FAILED, EXIT_SETTINGS};

    pub(super) struct Outcome {
        pub(super) code: u8,
        pub(super) out: String,
        pub(super) err: String,
        served: Option<Settings>,
    }

    pub(super) fn try_run(arguments: &[&str], environment: &[(&str, &str)]) -> Outcome {
        let (mut out, mut err, mut served) = (Vec::new(), Vec::new(), None);
        let environment: Vec<(OsString, OsString)> = environment
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        let arguments = arguments.iter().map(OsString::from).collect();
        let serve = |settings| {
            served = Some(settings);
            config::EXIT_THREAD_LOST
        };
        let code = run(arguments, &environment, &mut out, &mut err, serve);
        Outcome {
            code,
            out: String::from_utf8(out).unwrap(),
            err: String::from_utf8(err).unwrap(),
            served,
        }
    }

    #[test]
    fn serve_is_the_default_and_its_code_is_the_exit_code() {
        for arguments in [
            &["--workers=3"][..],
            &["serve", "--workers=3"],
            &["--workers", "3", "serve"],
        ] {
            let outcome = try_run(arguments, &[]);
            assert_eq!(outcome.code, config::EXIT_THREAD_LOST);
            assert_eq!(outcome.served.unwrap().workers, 3);
            assert_eq!((outcome.out.as_str(), outcome.err.as_str()), ("", ""));
        }
    }

    #[test]
    fn faults_are_one_line_each_and_nothing_is_served() {
        let environment = [("WORKERS", "0"), ("LOG_LEVEL", "LOUD"), ("READ_ONLY", "2")];
        let outcome = try_run(&["--nope"], &environment);
        assert_eq!(outcome.code, EXIT_SETTINGS);
        assert!(outcome.served.is_none());
        let lines: Vec<&str> = outcome.err.lines().collect();
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines.iter().all(|line| line.starts_with("aws-ecr-proxy: ")));
    }

    #[test]
    fn commands_that_are_not_built_are_refused_by_name() {
        for command in COMMANDS.iter().filter(|command| command.action.is_none()) {
            let outcome = try_run(&[command.name, "ref", "--to", "dir"], &[]);
            assert_eq!(outcome.code, EXIT_SETTINGS);
            let expected = format!(
                "aws-ecr-proxy: {}: not built yet in this version\n",
                command.name
            );
            assert_eq!(outcome.err, expected);
            assert!(outcome.served.is_none());
        }
        assert_eq!(COMMANDS.iter().filter(|c| c.action.is_none()).count(), 5);
    }

    #[test]
    fn unknown_commands_and_odd_words_are_faults_among_others() {
        let outcome = try_run(&["sevre", "--workers=0"], &[]);
        assert_eq!(outcome.code, EXIT_SETTINGS);
        assert!(
            outcome
                .err
                .contains("\"sevre\": unknown command, expected one of serve health")
        );
        assert!(outcome.err.contains("--workers=0: expected"));
        let outcome = try_run(&["serve", "8080"], &[]);
        assert_eq!(outcome.code, EXIT_SETTINGS);
        assert!(outcome.err.contains("\"8080\": unexpected after serve"));
        assert!(outcome.served.is_none());
    }

    #[test]
    fn help_shows_commands_and_settings_whatever_else_is_wrong() {
        for arguments in [
            &["help"][..],
            &["--help"],
            &["-h", "--nope"],
            &["pull", "-h"],
        ] {
            let outcome = try_run(arguments, &[("WORKERS", "0")]);
            assert_eq!(outcome.code, EXIT_OK);
            for command in COMMANDS {
                assert!(outcome.out.contains(&format!("\n  {}", command.name)));
            }
            for setting in config::table_rows().filter(|setting| setting.is_built()) {
                assert!(outcome.out.contains(&config::flag_of(setting.name)));
            }
        }
    }

    #[test]
    fn version_names_commit_and_date() {
        for flag in ["--version", "-V"] {
            let outcome = try_run(&[flag], &[]);
            assert_eq!(outcome.code, EXIT_OK);
            let start = format!("aws-ecr-proxy {VERSION} (commit {COMMIT}, built 20");
            assert!(outcome.out.starts_with(&start), "{}", outcome.out);
        }
    }

    #[test]
    fn settings_shows_values_and_origins_but_no_secret() {
        let environment = [
            ("AWS_SECRET_ACCESS_KEY", "hunter2secret"),
            ("PORT", "9000"),
            ("READ_ONLY", "false"),
        ];
        let outcome = try_run(
            &["settings", "--aws-session-token=hunter2token"],
            &environment,
        );
        assert_eq!((outcome.code, outcome.err.as_str()), (EXIT_OK, ""));
        let line = |name: &str| {
            let mut lines = outcome.out.lines();
            let line = lines.find(|line| line.split_whitespace().next() == Some(name));
            let words: Vec<&str> = line.unwrap().split_whitespace().skip(1).collect();
            words.join(" ")
        };
        assert_eq!(
            line("AWS_SECRET_ACCESS_KEY"),
            "*** environment AWS_SECRET_ACCESS_KEY"
        );
        assert_eq!(line("AWS_SESSION_TOKEN"), "*** flag --aws-session-token");
        assert_eq!(line("LISTEN_PORT"), "9000 environment PORT");
        assert_eq!(line("READ_ONLY"), "false environment READ_ONLY");
        assert_eq!(line("WORKERS"), "8 default");
        assert_eq!(line("ECR"), "- default: the registry that the token names");
        assert!(!outcome.out.contains("hunter2"));
        assert!(
            !outcome.out.contains("SCRUB_INTERVAL"),
            "neither built nor given"
        );
    }

    #[test]
    fn settings_shows_faults_too() {
        let outcome = try_run(&["settings"], &[("WORKERS", "0")]);
        assert_eq!(outcome.code, EXIT_SETTINGS);
        assert!(outcome.out.contains("environment WORKERS"));
        assert!(
            outcome
                .err
                .starts_with("aws-ecr-proxy: WORKERS=0: expected")
        );
    }

    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_broken_pipe_is_success_and_a_full_disk_is_not() {
        for (kind, expected) in [
            (io::ErrorKind::BrokenPipe, EXIT_OK),
            (io::ErrorKind::StorageFull, EXIT_FAILED),
        ] {
            let mut err = Vec::new();
            let arguments = vec!["help".into()];
            let code = run(arguments, &[], &mut Broken(kind), &mut err, |_| EXIT_FAILED);
            assert_eq!(code, expected);
            assert_eq!(err.is_empty(), expected == EXIT_OK);
        }
    }
}
