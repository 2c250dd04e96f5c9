//! Running a command. Owns: which one, with which settings, and the exit code. Must not: read the
//! environment (`config` does), or build the proxy (`app` does).

mod bounded;
mod carry;
mod check;
mod client;
mod command;
mod health;
mod images;
mod invocation;
mod kept;
mod output;
mod progress;
mod running;
mod settings;
mod shell;
mod status;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use self::command::Action;
use self::invocation::Invocation;
use self::output::{Streams, finish};
use crate::app;
use crate::config::{self, Arguments, Effective, Fault, Settings};

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
    let (settings, effective, faults) = resolve(&arguments, environment);
    let streams = &mut Streams { out, err };
    let (action, words) = match command::find(&arguments) {
        Ok(found) => found,
        Err(fault) => {
            streams.complain_as(settings.log_format, &[fault]);
            return streams.complain_as(settings.log_format, &faults);
        }
    };
    let command = Invocation {
        settings: &settings,
        effective: &effective,
        faults: &faults,
        words: &words,
        arguments: &arguments,
    };
    let name = arguments.words.first().map_or("", String::as_str);
    match action {
        Action::Completions => streams.print_result(shell::completions(command.word())),
        Action::Man => streams.print(&shell::manual_page()),
        Action::Text(text) => streams.print_result(text(command.word())),
        Action::Serve if faults.is_empty() => serve(settings),
        // A log store reads these faults, too.
        Action::Serve => streams.complain_as(settings.log_format, &faults),
        Action::Run(_) if !faults.is_empty() => streams.complain(&faults),
        Action::Report(run) | Action::Run(run) => finish(name, run(command, streams), streams),
    }
}

/// Reads the settings, as far as they can be read, and finds their faults. `app` has the rules
/// about plain tokens. If there is a fault, the files that the settings name are checked too, so
/// that all faults are shown at once.
fn resolve(
    arguments: &Arguments,
    environment: &[(OsString, OsString)],
) -> (Settings, Vec<Effective>, Vec<Fault>) {
    let resolved = config::resolve(arguments, environment);
    let settings = resolved.as_read;
    let mut faults = resolved.settings.err().unwrap_or_default();
    faults.extend(
        app::plain_token::faults(&settings)
            .into_iter()
            .map(Fault::new),
    );
    if !faults.is_empty() {
        faults.extend(app::file_faults(&settings).into_iter().map(Fault::new));
    }
    (settings, resolved.effective, faults)
}

#[cfg(test)]
mod tests {
    use super::command::COMMANDS;
    use super::*;
    use crate::config::{COMMIT, EXIT_FAILED, EXIT_OK, EXIT_SETTINGS, VERSION};

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
    fn unknown_commands_and_odd_words_are_faults_among_others() {
        let outcome = try_run(&["frobnicate", "--workers=0"], &[]);
        assert_eq!(outcome.code, EXIT_SETTINGS);
        let all = "\"frobnicate\": unknown command, expected one of serve health";
        assert!(outcome.err.contains(all), "{}", outcome.err);
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
            &["help", "--help"],
            &["frobnicate", "-h"],
        ] {
            let outcome = try_run(arguments, &[("WORKERS", "0")]);
            assert_eq!(outcome.code, EXIT_OK);
            for command in COMMANDS {
                assert!(outcome.out.contains(&format!("\n  {}", command.name)));
            }
            for setting in config::table_rows() {
                assert!(outcome.out.contains(&config::flag_of(setting.name)));
            }
        }
    }

    #[test]
    fn version_names_commit_and_date() {
        for flag in ["--version", "-V", "version"] {
            let outcome = try_run(&[flag], &[]);
            assert_eq!(outcome.code, EXIT_OK);
            let start = format!("aws-ecr-proxy {VERSION} (commit {COMMIT}, built 20");
            assert!(outcome.out.starts_with(&start), "{}", outcome.out);
        }
    }

    #[test]
    fn each_command_has_its_own_help() {
        for command in COMMANDS.iter().filter(|command| command.name != "help") {
            let asked = try_run(&["help", command.name], &[("WORKERS", "0")]);
            let flag = try_run(&[command.name, "--help", "--nope"], &[]);
            assert_eq!((asked.code, flag.code), (EXIT_OK, EXIT_OK));
            assert_eq!(asked.out, flag.out);
            let usage = format!("Usage: aws-ecr-proxy {}", command.name);
            assert!(asked.out.starts_with(&usage) && asked.out.contains(command.about));
            for (flag, about) in command.flags {
                assert!(asked.out.contains(flag) && asked.out.contains(about));
            }
            assert!(
                asked.out.lines().all(|line| line.len() <= 80),
                "{}",
                asked.out
            );
            assert!(!asked.out.contains("--listen-port"));
        }
        let odd = try_run(&["help", "chekc"], &[]);
        assert_eq!((odd.code, odd.out.as_str()), (EXIT_SETTINGS, ""));
        assert!(odd.err.contains("did you mean check?"), "{}", odd.err);
    }

    #[test]
    fn the_readme_has_every_command() {
        let readme = std::fs::read_to_string("README.md").unwrap();
        let (_, commands) = readme.split_once("\n## Commands\n").unwrap();
        let rows = commands
            .lines()
            .skip(1)
            .take_while(|line| !line.starts_with("Exit codes"));
        let named = rows.filter_map(|row| row.strip_prefix("| `")?.split(['`', ' ']).next());
        let named: std::collections::BTreeSet<&str> = named.collect();
        assert_eq!(named, COMMANDS.iter().map(|command| command.name).collect());
    }

    #[test]
    fn a_misspelt_command_is_corrected() {
        for (word, meant) in [
            ("sevre", "serve"),
            ("chek", "check"),
            ("setings", "settings"),
        ] {
            let outcome = try_run(&[word], &[]);
            assert_eq!(outcome.code, EXIT_SETTINGS);
            let said = format!("{word:?}: unknown command, did you mean {meant}?");
            assert!(outcome.err.contains(&said), "{}", outcome.err);
        }
    }

    #[test]
    fn flags_belong_to_their_commands() {
        for (arguments, said) in [
            (&["serve", "--json"][..], "--json: serve does not take it"),
            (&["check", "--host=a"], "--host: check does not take it"),
            (
                &["client", "docker", "--host"],
                "--host: expected a value, as in --host=proxy.example.com:8080",
            ),
            (&["check", "a", "b"], "\"b\": unexpected after check"),
            (&["settings", "--jsno"], "did you mean --json?"),
        ] {
            let outcome = try_run(arguments, &[]);
            assert_eq!(outcome.code, EXIT_SETTINGS, "{arguments:?}");
            assert!(outcome.err.contains(said), "{arguments:?}: {}", outcome.err);
        }
    }

    #[test]
    fn settings_as_json_have_value_and_origin_and_no_secret() {
        let environment = [
            ("PORT", "9000"),
            ("AWS_ACCESS_KEY_ID", "AKIA"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ];
        let outcome = try_run(&["settings", "--json"], &environment);
        assert_eq!((outcome.code, outcome.err.as_str()), (EXIT_OK, ""));
        assert!(!outcome.out.contains("hunter2"));
        let document: serde_json::Value = serde_json::from_str(&outcome.out).unwrap();
        let rows = document["settings"].as_array().unwrap();
        let row = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap();
        assert_eq!(row("LISTEN_PORT")["value"], "9000");
        assert_eq!(row("LISTEN_PORT")["origin"], "environment PORT");
        assert_eq!(row("AWS_SECRET_ACCESS_KEY")["value"], "***");
        assert!(row("ECR")["value"].is_null());
    }

    #[test]
    fn settings_shows_values_and_origins_but_no_secret() {
        let environment = [
            ("AWS_ACCESS_KEY_ID", "AKIA"),
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
