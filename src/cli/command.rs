//! The commands. Owns: the one table of them, their help, and finding the one that was meant. Must
//! not: run one.

use crate::config::{self, Arguments, VERSION};

/// A command, and how it is called.
pub(super) struct Command {
    pub(super) name: &'static str,
    /// What follows its name, beside settings.
    pub(super) usage: &'static str,
    pub(super) about: &'static str,
    /// What its own help says beyond that.
    pub(super) details: &'static str,
    /// Its own flags, and what each does.
    pub(super) flags: &'static [(&'static str, &'static str)],
    pub(super) action: Action,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Check,
    Client,
    Completions,
    Export,
    Health,
    Help,
    Import,
    List,
    Man,
    Pull,
    Remove,
    Serve,
    Settings,
    Status,
    Verify,
    Version,
}

const fn command(name: &'static str, about: &'static str, action: Action) -> Command {
    Command {
        name,
        usage: "",
        about,
        details: "",
        flags: &[],
        action,
    }
}

/// Every command.
pub(super) static COMMANDS: &[Command] = &[
    Command {
        details: "It runs until SIGTERM or SIGINT, which let running transfers end. SIGHUP reads \
                  certificates and logins again.",
        ..command(
            "serve",
            "run the proxy; also without a command",
            Action::Serve,
        )
    },
    Command {
        details: "It asks /readyz over loopback and ends with 0 or 1: a health check for an image \
                  without a shell.",
        ..command(
            "health",
            "ask the running proxy whether it is ready",
            Action::Health,
        )
    },
    Command {
        usage: "[IMAGE]",
        details: "It tries everything that a pull needs, and says what to mend. With IMAGE it \
                  fetches a manifest and one byte of a layer, and so tries the rights on the \
                  repository. It ends with 0 when nothing failed, 1 when something did, 64 when a \
                  setting is at fault.",
        flags: &[("--json", "one JSON document instead of a table")],
        ..command(
            "check",
            "try settings, files, identity, token, registry, storage",
            Action::Check,
        )
    },
    Command {
        details: "Secrets are hidden.",
        flags: &[("--json", "one JSON document instead of a table")],
        ..command(
            "settings",
            "show the effective settings and their origin",
            Action::Settings,
        )
    },
    Command {
        details: "It asks the proxy that these settings describe. A login is sent to the \
                  certificate in SSL_CERTIFICATE alone, where there is one.",
        flags: &[
            ("--json", "the document of /status.json"),
            ("--watch", "again each two seconds, until a key stops it"),
            ("--login", "file with USER:PASSWORD, where AUTH_FILE holds"),
            (
                "--certificate",
                "PEM file with certificate and key, for SSL_CLIENT_CA",
            ),
        ],
        ..command("status", "show what the running proxy does", Action::Status)
    },
    Command {
        usage: "docker|containerd|podman|flux|kubernetes",
        details: "The address is where the settings say that the proxy listens; --host gives \
                  another.",
        flags: &[("--host", "HOST:PORT of the proxy, as the client reaches it")],
        ..command(
            "client",
            "print a client's own configuration for this proxy",
            Action::Client,
        )
    },
    Command {
        details: "One line an image: with a tag or without one, by registry, repository and tag. \
                  It reads the directory; no proxy need run.",
        flags: &[("--json", "one JSON document instead of a table")],
        ..command("list", "list the images in the cache", Action::List)
    },
    Command {
        usage: "[IMAGE]…",
        details: "It says of each image whether it is complete, and which digests are missing or \
                  damaged; each blob is hashed. Without IMAGE it looks at all of the cache. It \
                  changes nothing, and may run beside a proxy. It ends with 0 when all is \
                  complete, else with 1.",
        flags: &[(
            "--platform",
            "only these, as in linux/amd64; else PREFETCH_PLATFORMS",
        )],
        ..command(
            "verify",
            "tell whether images are complete in the cache",
            Action::Verify,
        )
    },
    Command {
        usage: "IMAGE…",
        details: "It removes tags, or digests with all their tags, and then what no other image \
                  needs. A pinned image stays. It may run beside a proxy.",
        ..command("remove", "remove images from the cache", Action::Remove)
    },
    Command {
        usage: "IMAGE…",
        details: "It fetches what the cache lacks of each image and of what refers to it, also \
                  while a proxy uses the directory. It ends with 1 when something failed.",
        flags: &[(
            "--platform",
            "only these, as in linux/amd64,linux/arm64; else all",
        )],
        ..command("pull", "fetch images into the cache", Action::Pull)
    },
    Command {
        usage: "IMAGE…",
        details: "The layout (image-spec image-layout.md) has the images with their signatures and \
                  other referrers. The other side takes it with `import`; skopeo and others read \
                  it, too. With --since it has only the blobs that the other side lacks.",
        flags: &[
            ("--to", "a new directory, or a file that ends with .tar"),
            (
                "--since",
                "an earlier export, or the other side's cache or index.json",
            ),
            ("--platform", "only these, as in linux/amd64,linux/arm64"),
        ],
        ..command(
            "export",
            "write cached images as an OCI layout",
            Action::Export,
        )
    },
    Command {
        usage: "DIR|FILE.tar",
        details: "All of it is verified before anything is kept. An import that was stopped goes \
                  on where it was. A tag appears when its whole image is here.",
        flags: &[(
            "--as",
            "REGISTRY/REPOSITORY[:TAG] instead of the names in it",
        )],
        ..command(
            "import",
            "read an OCI layout into the cache",
            Action::Import,
        )
    },
    Command {
        usage: "bash|zsh|fish",
        details: "For bash: aws-ecr-proxy completions bash > \
                  /usr/share/bash-completion/completions/aws-ecr-proxy",
        ..command(
            "completions",
            "print the completions of a shell",
            Action::Completions,
        )
    },
    Command {
        details: "aws-ecr-proxy man | man -l -",
        ..command("man", "print the manual page", Action::Man)
    },
    Command {
        usage: "[COMMAND]",
        ..command(
            "help",
            "show this, or the help of a command; also --help and -h",
            Action::Help,
        )
    },
    command(
        "version",
        "show version, commit and build date",
        Action::Version,
    ),
];

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) action: Action,
    /// The words behind the command: one at the most, unless its usage ends with `…`.
    pub(super) words: Vec<String>,
}

impl Wanted {
    /// The word behind the command, for those that take one.
    pub(super) fn word(&self) -> Option<&str> {
        self.words.first().map(String::as_str)
    }
}

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

    fn checked(&self, arguments: &Arguments) -> Result<Wanted, String> {
        let name = self.name;
        let takes = |flag: &str| self.flags.iter().any(|(own, _)| *own == flag);
        if let Some(odd) = arguments.flags.iter().find(|flag| !takes(flag)) {
            let fault = format!("{odd}: {name} does not take it");
            return Err(fault);
        }
        let words: Vec<String> = arguments.words.iter().skip(1).cloned().collect();
        let most = match self.usage {
            "" => 0,
            usage if usage.contains('…') => usize::MAX,
            _ => 1,
        };
        if let Some(odd) = words.get(most) {
            let most = match self.usage {
                "" => "flags only".to_owned(),
                usage => format!("{usage} and flags"),
            };
            let fault = format!("{odd:?}: unexpected after {name}, which takes {most}");
            return Err(fault);
        }
        if words.is_empty() && !self.usage.is_empty() && !self.usage.starts_with('[') {
            let fault = format!("{name}: expected {}", self.usage);
            return Err(fault);
        }
        let action = self.action;
        Ok(Wanted { action, words })
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

/// Finds the command that the arguments name. `--help` with a command is the help of that command.
pub(super) fn find(arguments: &Arguments) -> Result<Wanted, String> {
    let word = arguments.words.first().cloned();
    if arguments.help {
        // Whatever else is wrong, help is given.
        let known = word.filter(|word| word != "help" && Command::named(word).is_ok());
        return Ok(Wanted {
            action: Action::Help,
            words: known.into_iter().collect(),
        });
    }
    if arguments.version {
        return Ok(Wanted {
            action: Action::Version,
            words: Vec::new(),
        });
    }
    Command::named(word.as_deref().unwrap_or("serve"))?.checked(arguments)
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
