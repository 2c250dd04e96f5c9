//! Completions and the manual page. Owns: their syntax. Must not: know a command or a setting by
//! name; both come from their tables.

use std::fmt::Write as _;

use super::client;
use super::command::COMMANDS;
use crate::config::{self, VERSION, flag_of, takes_value};

/// The completions of a shell.
///
/// # Errors
/// The shell is not known.
pub(super) fn completions(shell: Option<&str>) -> Result<String, String> {
    match shell.unwrap_or_default() {
        "bash" => Ok(bash()),
        "fish" => Ok(fish()),
        "zsh" => Ok(zsh()),
        shell => Err(format!(
            "{shell:?}: unknown shell, expected one of {SHELLS}"
        )),
    }
}

const SHELLS: &str = "bash zsh fish";

/// All flags, each once: those of settings, then those of commands.
fn flags() -> Vec<String> {
    let settings = config::table_rows().map(|setting| flag_of(setting.name));
    let mut flags: Vec<String> = settings.collect();
    for (flag, _) in COMMANDS.iter().flat_map(|command| command.flags) {
        if !flags.iter().any(|known| known == flag) {
            flags.push((*flag).to_owned());
        }
    }
    flags.push("--help".to_owned());
    flags
}

fn command_names() -> String {
    let names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
    names.join(" ")
}

/// The words that may follow a command, for those where it is one of a few.
fn following() -> [(&'static str, String); 3] {
    [
        ("client", client::names().collect::<Vec<_>>().join(" ")),
        ("completions", SHELLS.to_owned()),
        ("help", command_names()),
    ]
}

fn bash() -> String {
    let (commands, flags) = (command_names(), flags().join(" "));
    let following = following().map(|(name, words)| format!("{name}:2:*) words='{words}' ;;"));
    let following = following.join("\n        ");
    format!(
        "_aws_ecr_proxy() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} words
    case \"${{COMP_WORDS[1]}}:$COMP_CWORD:$word\" in
        *:-*) words='{flags}' ;;
        *:1:*) words='{commands}' ;;
        {following}
        *) COMPREPLY=($(compgen -f -- \"$word\")); return ;;
    esac
    COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))
}}
complete -F _aws_ecr_proxy aws-ecr-proxy
"
    )
}

fn zsh() -> String {
    let mut text = String::from("#compdef aws-ecr-proxy\nlocal rest='*:file:_files'\n");
    text.push_str("case $words[2] in\n");
    for (name, words) in following() {
        let _ = writeln!(text, "  {name}) rest='2:word:({words})' ;;");
    }
    text.push_str("esac\n_arguments \\\n");
    for flag in flags() {
        let value = match takes_value(&flag) {
            true => "=[see aws-ecr-proxy help]:value:_files",
            false => "[see aws-ecr-proxy help]",
        };
        let _ = writeln!(text, "  '{flag}{value}' \\");
    }
    let commands = COMMANDS.iter().map(|command| {
        let about = command.about.replace('\'', "'\\''").replace(':', "\\:");
        format!("{}\\:\"{about}\"", command.name)
    });
    let commands: Vec<String> = commands.collect();
    let _ = writeln!(text, "  '1:command:(({}))' \"$rest\"", commands.join(" "));
    text
}

fn fish() -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let mut text = String::new();
    let mut complete = |rule: String| {
        let _ = writeln!(text, "complete -c aws-ecr-proxy {rule}");
    };
    // `-r` takes a value, a file by default; `-f` takes none.
    let flag_rule = |flag: &str, about: &str| {
        let value = if takes_value(flag) { "-r" } else { "-f" };
        let flag = flag.trim_start_matches('-');
        format!("{value} -l {flag} -d {}", quoted(about))
    };
    for setting in config::table_rows() {
        complete(flag_rule(&flag_of(setting.name), setting.meaning));
    }
    for command in COMMANDS {
        let (name, about) = (command.name, quoted(command.about));
        complete(format!("-f -n __fish_use_subcommand -a {name} -d {about}"));
        for (flag, about) in command.flags {
            let rule = flag_rule(flag, about);
            complete(format!("-n '__fish_seen_subcommand_from {name}' {rule}"));
        }
    }
    for (name, words) in following() {
        let seen = format!("-n '__fish_seen_subcommand_from {name}'");
        complete(format!("-f {seen} -a {}", quoted(&words)));
    }
    text
}

/// The manual page, in the macros of man(7).
pub(super) fn manual_page() -> String {
    let mut text = format!(
        ".TH AWS\\-ECR\\-PROXY 1 \"\" \"aws\\-ecr\\-proxy {VERSION}\"\n.SH NAME\n\
         aws\\-ecr\\-proxy \\- lets any OCI client use AWS ECR without AWS credentials\n\
         .SH SYNOPSIS\n.B aws\\-ecr\\-proxy\n[COMMAND] [\\-\\-SETTING VALUE]...\n.SH COMMANDS\n"
    );
    for command in COMMANDS {
        let (name, usage) = (roff(command.name), roff(command.usage));
        let _ = writeln!(text, ".TP\n.B {name}\n{usage}");
        let _ = writeln!(text, ".br\n{}.", roff(command.about));
        if !command.details.is_empty() {
            let _ = writeln!(text, "{}", roff(command.details));
        }
        for (flag, about) in command.flags {
            let _ = writeln!(text, ".br\n{}: {}.", roff(flag), roff(about));
        }
    }
    text.push_str(
        ".SH SETTINGS\nEach is a flag and, in the same words, an environment variable. A flag \
         beats a variable, which beats the default.\n",
    );
    for setting in config::table_rows() {
        let (flag, name) = (roff(&flag_of(setting.name)), roff(setting.name));
        let preset = roff(setting.preset.text());
        let _ = writeln!(
            text,
            ".TP\n.B {flag}\n{name}. {} Default: {preset}.",
            roff(setting.meaning)
        );
    }
    text.push_str(
        ".SH EXIT STATUS\n0 ok, 1 failed, 64 bad settings, 70 a thread was lost.\n\
         .SH SIGNALS\nSIGTERM and SIGINT end it, after the transfers that run; SIGHUP reads \
         certificates and logins again; SIGUSR1 is ignored.\n",
    );
    text
}

/// A text in which nothing is a request of roff.
fn roff(text: &str) -> String {
    let text = text
        .replace('…', "...")
        .replace('`', "")
        .replace('\\', "\\e")
        .replace('-', "\\-");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::try_run;
    use super::*;
    use std::process::{Command as Process, Stdio};

    fn output(program: &str, arguments: &[&str], input: &str) -> String {
        let mut child = Process::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
        let done = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&done.stderr), "", "{program}");
        String::from_utf8(done.stdout).unwrap()
    }

    #[test]
    fn all_shells_know_all_commands_and_flags() {
        for shell in ["bash", "zsh", "fish"] {
            let text = try_run(&["completions", shell], &[]).out;
            for command in COMMANDS {
                assert!(text.contains(command.name), "{} in {shell}", command.name);
            }
            for flag in flags().iter().filter(|flag| *flag != "--help") {
                assert!(
                    text.contains(flag.trim_start_matches('-')),
                    "{flag} in {shell}"
                );
            }
        }
        assert_eq!(try_run(&["completions", "tcsh"], &[]).code, 64);
    }

    #[test]
    fn bash_completes() {
        let complete = |words: &str, at: usize| {
            let script = format!(
                "{}COMP_WORDS=({words})\nCOMP_CWORD={at}\n_aws_ecr_proxy\n\
                 echo \"${{COMPREPLY[*]}}\"",
                bash()
            );
            output("bash", &["-s"], &script).trim().to_owned()
        };
        assert_eq!(complete("aws-ecr-proxy che", 1), "check");
        assert_eq!(complete("aws-ecr-proxy client po", 2), "podman");
        assert_eq!(complete("aws-ecr-proxy help se", 2), "serve settings");
        assert_eq!(complete("aws-ecr-proxy --listen-p", 1), "--listen-port");
        assert_eq!(complete("aws-ecr-proxy check --js", 2), "--json");
    }

    #[test]
    fn the_manual_page_names_everything() {
        // In roff, a hyphen that can be copied is `\-`. groff reads the page in an e2e check.
        let shown = try_run(&["man"], &[]).out.replace('\\', "");
        for command in COMMANDS {
            assert!(shown.contains(command.name), "{}", command.name);
        }
        for setting in config::table_rows() {
            assert!(shown.contains(&flag_of(setting.name)), "{}", setting.name);
        }
    }
}
