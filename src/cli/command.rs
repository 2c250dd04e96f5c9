//! The commands. Owns: the one table of them, their help, and finding the one that was meant. Must
//! not: run one.

use super::invocation::{CommandFault, Invocation};
use super::output::Streams;
use super::{carry, check, client, health, kept, settings, status};
use crate::config::{self, Arguments, COMMIT, VERSION};

/// A command, and how it is called.
pub(super) struct Command {
    pub(super) name: &'static str,
    /// The words that may follow its name, beside settings.
    pub(super) usage: &'static str,
    pub(super) about: &'static str,
    /// More about it, for its own help.
    pub(super) details: &'static str,
    /// Its own flags, and what each does.
    pub(super) flags: &'static [CommandFlag],
    pub(super) action: Action,
}

/// A flag, and what it does.
type CommandFlag = (&'static str, &'static str);

type RunCommand = fn(Invocation<'_>, &mut Streams<'_>) -> Result<u8, CommandFault>;

/// What a command does.
#[derive(Debug, Clone, Copy)]
pub(super) enum Action {
    Completions,
    Man,
    /// Tells of the settings, also of their faults.
    Report(RunCommand),
    /// Needs settings without a fault.
    Run(RunCommand),
    Serve,
    /// A text that no setting changes, for the word behind the command.
    Text(fn(Option<&str>) -> Result<String, String>),
}

/// Every command, a few lines each.
#[rustfmt::skip]
pub(super) static COMMANDS: &[Command] = &[
    Command { name: "serve", usage: "", action: Action::Serve,
        about: "run the proxy; also without a command",
        details: "It runs until SIGTERM or SIGINT, which let running transfers end. SIGHUP reads \
                  certificates and logins again.",
        flags: &[] },
    Command { name: "health", usage: "", action: Action::Run(health::run),
        about: "ask the running proxy whether it is ready",
        details: "It asks /readyz over loopback and ends with 0 or 1: a health check for an image \
                  without a shell.",
        flags: &[] },
    Command { name: "check", usage: "[IMAGE]", action: Action::Report(check::run),
        about: "try settings, files, identity, token, registry, storage",
        details: "It tries everything that a pull needs, and says what to mend. With IMAGE it \
                  fetches a manifest and one byte of a layer, and so tries the rights on the \
                  repository. It ends with 0 when nothing failed, 1 when something did, 64 when a \
                  setting is at fault.",
        flags: &[JSON] },
    Command { name: "settings", usage: "", action: Action::Report(settings::run),
        about: "show the effective settings and their origin",
        details: "Secrets are hidden.", flags: &[JSON] },
    Command { name: "status", usage: "", action: Action::Run(status::run),
        about: "show what the running proxy does",
        details: "It asks the proxy that these settings describe. A login is sent to the \
                  certificate in SSL_CERTIFICATE alone, where there is one.",
        flags: &[
            ("--json", "the document of /status.json"),
            ("--watch", "again each two seconds, until Ctrl-C"),
            ("--login", "file with USER:PASSWORD, where AUTH_FILE holds"),
            ("--certificate", "PEM file with certificate and key, for SSL_CLIENT_CA"),
        ] },
    Command { name: "client", action: Action::Run(client::run),
        usage: "docker|containerd|podman|flux|kubernetes",
        about: "print a client's own configuration for this proxy",
        details: "The address is where the settings say that the proxy listens; --host gives \
                  another.",
        flags: &[("--host", "HOST:PORT of the proxy, as the client reaches it")] },
    Command { name: "list", usage: "", action: Action::Run(kept::list),
        about: "list the images in the cache",
        details: "One line an image: with a tag or without one, by registry, repository and tag. \
                  It reads the directory; no proxy need run.",
        flags: &[JSON] },
    Command { name: "verify", usage: "[IMAGE]…", action: Action::Run(kept::verify),
        about: "tell whether images are complete in the cache",
        details: "It says of each image whether it is complete, and which digests are missing or \
                  damaged; each blob is hashed. Without IMAGE it looks at all of the cache. It \
                  changes nothing, and may run beside a proxy. It ends with 0 when all is \
                  complete, else with 1.",
        flags: &[("--platform", "only these, as in linux/amd64; else PREFETCH_PLATFORMS")] },
    Command { name: "remove", usage: "IMAGE…", action: Action::Run(kept::remove),
        about: "remove images from the cache",
        details: "It removes tags, or digests with all their tags, and then what no other image \
                  needs. A pinned image stays. It may run beside a proxy.",
        flags: &[] },
    Command { name: "pull", usage: "IMAGE…", action: Action::Run(carry::pull),
        about: "fetch images into the cache",
        details: "It fetches what the cache lacks of each image and of what refers to it, also \
                  while a proxy uses the directory. It ends with 1 when something failed.",
        flags: &[("--platform", "only these, as in linux/amd64,linux/arm64; else all")] },
    Command { name: "export", usage: "IMAGE…", action: Action::Run(carry::export),
        about: "write cached images as an OCI layout",
        details: "The layout (image-spec image-layout.md) has the images with their signatures and \
                  other referrers. The other side takes it with `import`; skopeo and others read \
                  it, too. With --since it has only the blobs that the other side lacks.",
        flags: &[
            ("--to", "a new directory, or a file that ends with .tar"),
            ("--since", "an earlier export, or the other side's cache or index.json"),
            PLATFORM,
        ] },
    Command { name: "import", usage: "DIR|FILE.tar", action: Action::Run(carry::import),
        about: "read an OCI layout into the cache",
        details: "All of it is verified before anything is kept. An import that was stopped goes \
                  on where it was. A tag appears when its whole image is here.",
        flags: &[("--as", "REGISTRY/REPOSITORY[:TAG] instead of the names in it")] },
    Command { name: "completions", usage: "bash|zsh|fish", action: Action::Completions,
        about: "print the completions of a shell",
        details: "For bash: aws-ecr-proxy completions bash > \
                  /usr/share/bash-completion/completions/aws-ecr-proxy",
        flags: &[] },
    Command { name: "man", usage: "", action: Action::Man,
        about: "print the manual page",
        details: "aws-ecr-proxy man | man -l -", flags: &[] },
    Command { name: "help", usage: "[COMMAND]", action: Action::Text(help),
        about: "show this, or the help of a command; also --help and -h",
        details: "", flags: &[] },
    Command { name: "version", usage: "", action: Action::Text(|_| Ok(version())),
        about: "show version, commit and build date",
        details: "", flags: &[] },
];

const JSON: CommandFlag = ("--json", "one JSON document instead of a table");
const PLATFORM: CommandFlag = ("--platform", "only these, as in linux/amd64,linux/arm64");

impl Command {
    fn named(name: &str) -> Result<&'static Self, String> {
        let found = COMMANDS.iter().find(|command| command.name == name);
        found.ok_or_else(|| {
            let names = COMMANDS.iter().map(|command| command.name);
            let meant = match config::nearest(name, names.clone().map(str::to_owned)) {
                Some(known) => format!("did you mean {known}?"),
                None => format!("expected one of {}", names.collect::<Vec<_>>().join(" ")),
            };
            format!("{name:?}: unknown command, {meant}")
        })
    }

    /// The words behind the command: one at the most, unless its usage has `…`.
    fn words(&self, arguments: &Arguments) -> Result<Vec<String>, String> {
        let (name, usage) = (self.name, self.usage);
        let takes = |flag: &str| self.flags.iter().any(|(own, _)| *own == flag);
        if let Some(odd) = arguments.flags.iter().find(|flag| !takes(flag)) {
            return Err(format!("{odd}: {name} does not take it"));
        }
        let words: Vec<String> = arguments.words.iter().skip(1).cloned().collect();
        let (most, taken) = match usage {
            "" => (0, "flags only".to_owned()),
            _ if usage.contains('…') => (usize::MAX, String::new()),
            _ => (1, format!("{usage} and flags")),
        };
        let needs_word = !usage.is_empty() && !usage.starts_with('[');
        match words.get(most) {
            Some(odd) => Err(format!(
                "{odd:?}: unexpected after {name}, which takes {taken}"
            )),
            None if words.is_empty() && needs_word => Err(format!("{name}: expected {usage}")),
            None => Ok(words),
        }
    }

    fn help(&self) -> String {
        let usage = match self.usage {
            "" => String::new(),
            usage => format!(" {usage}"),
        };
        let mut text = format!("Usage: aws-ecr-proxy {}{usage} [FLAGS]\n\n", self.name);
        text.push_str(&format!("{}\n", self.about));
        if !self.details.is_empty() {
            text.push_str(&format!("\n{}\n", config::wrapped(self.details)));
        }
        text.push_str("\nFlags\n");
        for (flag, about) in self.flags {
            text.push_str(&format!("  {flag:<17} {about}\n"));
        }
        text.push_str("  --SETTING VALUE   a setting; `aws-ecr-proxy help` lists them\n");
        text
    }
}

/// Finds what the arguments ask for, and the words behind the command. `--help` with a command is
/// the help of that command.
///
/// # Errors
/// There is no such command, or it takes no such words or flags.
pub(super) fn find(arguments: &Arguments) -> Result<(Action, Vec<String>), String> {
    let word = arguments.words.first().cloned();
    if arguments.help {
        // Whatever else is wrong, help is given.
        let known = word.filter(|word| word != "help" && Command::named(word).is_ok());
        return Ok((Action::Text(help), known.into_iter().collect()));
    }
    if arguments.version {
        return Ok((Action::Text(|_| Ok(version())), Vec::new()));
    }
    let command = Command::named(word.as_deref().unwrap_or("serve"))?;
    Ok((command.action, command.words(arguments)?))
}

/// Version, commit and build date.
fn version() -> String {
    let date = config::build_date();
    format!("aws-ecr-proxy {VERSION} (commit {COMMIT}, built {date})\n")
}

/// The help of a command, or of all.
///
/// # Errors
/// There is no such command.
pub(super) fn help(name: Option<&str>) -> Result<String, String> {
    if let Some(name) = name {
        return Ok(Command::named(name)?.help());
    }
    let mut text = format!(
        "aws-ecr-proxy {VERSION}: lets any OCI client use AWS ECR without AWS credentials\n\n\
         Usage: aws-ecr-proxy [COMMAND] [--SETTING VALUE | --SETTING=VALUE]...\n\nCommands\n"
    );
    for command in COMMANDS {
        text.push_str(&format!("  {:<11} {}\n", command.name, command.about));
    }
    text.push_str(
        "\n`aws-ecr-proxy help COMMAND` shows a command's own flags.\n\
         \nExit codes: 0 ok, 1 failed, 64 bad settings, 70 a thread was lost\n\nSettings\n",
    );
    text.push_str(&config::help());
    Ok(text)
}
