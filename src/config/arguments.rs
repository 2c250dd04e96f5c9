//! The command line. Owns: telling flags, their values and other words apart. Must not: judge a
//! value: `config.rs` judges flags and variables together.

use std::ffi::OsString;
use std::iter::Peekable;

use super::fault::{Fault, mask};
use super::given::Given;
use super::rows::table_rows;
use super::table::{Setting, Unit, flag_of};
use super::{near, parse};
use crate::secret::Secret;

/// An unknown flag with at most so many edits (insert, delete, replace) counts as misspelt.
const SLIP_EDITS_MAX: usize = 2;
/// Longest word that is compared with the flags: the comparison is quadratic.
const SLIP_LENGTH_MAX: usize = 64;

/// Flags that are no settings, each with an example of its value, if it has one. The commands say
/// which of them they take.
const COMMAND_FLAGS: [(&str, &str); 9] = [
    ("--as", "registry.example.com/team/app"),
    ("--certificate", "client.pem"),
    ("--host", "proxy.example.com:8080"),
    ("--json", ""),
    ("--login", "status.login"),
    ("--platform", "linux/amd64"),
    ("--since", "last-week.tar"),
    ("--to", "images.tar"),
    ("--watch", ""),
];

/// The command line, taken apart.
#[derive(Debug, Default)]
pub struct Arguments {
    /// The command and its arguments: all words that are neither a flag nor its value.
    pub words: Vec<String>,
    /// `--help` or `-h`
    pub help: bool,
    /// `--version` or `-V`
    pub version: bool,
    /// Flags that only some commands take.
    pub flags: Vec<&'static str>,
    values: Vec<(&'static str, String)>,
    pub(super) given: Vec<Given>,
    pub(super) faults: Vec<Fault>,
}

impl Arguments {
    /// Reads the command line without the name of the program. It keeps faults for
    /// [`super::resolve`], which reports them together with all others.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Self {
        let mut parsed = Self::default();
        let mut words = arguments.into_iter().map(ArgumentText::from).peekable();
        while let Some(word) = words.next() {
            match word.text.as_str() {
                "--help" | "-h" => parsed.help = true,
                "--version" | "-V" => parsed.version = true,
                text if command_flag(text).is_some() => {
                    parsed.read_command_flag(text, &mut words);
                }
                text if text.starts_with('-') => match text.split_once('=') {
                    None => parsed.read_flag(text, None, &mut words),
                    Some((flag, value)) => {
                        let value = ArgumentText {
                            text: value.to_owned(),
                            utf8: word.utf8,
                        };
                        parsed.read_flag(flag, Some(value), &mut words);
                    }
                },
                _ => parsed.words.push(word.text),
            }
        }
        parsed
    }

    /// The value of a flag that some commands take, such as `--host`.
    pub fn value(&self, flag: &str) -> Option<&str> {
        let found = self.values.iter().find(|(name, _)| *name == flag);
        found.map(|(_, value)| value.as_str())
    }

    fn read_command_flag(
        &mut self,
        text: &str,
        rest: &mut Peekable<impl Iterator<Item = ArgumentText>>,
    ) {
        let Some((flag, example)) = command_flag(text) else {
            return;
        };
        self.flags.push(flag);
        if example.is_empty() {
            return;
        }
        let value = text.split_once('=').map(|(_, value)| value.to_owned());
        let next = || Some(rest.next_if(|next| !next.text.starts_with('-'))?.text);
        let value = value.or_else(next).filter(|value| !value.trim().is_empty());
        match value {
            Some(value) if self.value(flag).is_none() => self.values.push((flag, value)),
            Some(_) => self
                .faults
                .push(Fault::new(format!("{flag}: is there twice"))),
            None => {
                let why = format!("{flag}: expected a value, as in {flag}={example}");
                self.faults.push(Fault::new(why));
            }
        }
    }

    fn read_flag(
        &mut self,
        flag: &str,
        value: Option<ArgumentText>,
        rest: &mut Peekable<impl Iterator<Item = ArgumentText>>,
    ) {
        let Some((setting, name)) = find_setting(flag) else {
            self.faults.push(unknown_flag(flag));
            if value.is_none() {
                // The next word is probably the flag's value, and may be a secret. It is dropped
                // here, because the fault of an unexpected word would show it.
                rest.next_if(|next| !next.text.starts_with('-'));
            }
            return;
        };
        let value = value.or_else(|| match setting.kind.unit() {
            Unit::Switch => {
                let next = rest.next_if(|next| parse::switch(&next.text).is_some());
                Some(next.unwrap_or_else(|| ArgumentText::from(OsString::from("true"))))
            }
            _ => rest.next_if(|next| !next.text.starts_with("--")),
        });
        let Some(value) = value.filter(|value| !value.text.trim().is_empty()) else {
            let why = format!("{flag}: expected a value, as in {flag}=VALUE");
            self.faults.push(Fault::new(why));
            return;
        };
        self.given.push(Given {
            setting,
            name,
            by_flag: true,
            value: value.utf8.then_some(Secret::new(value.text)),
        });
    }
}

/// True for a flag behind which a value stands: that of any setting, and some of commands.
pub fn takes_value(flag: &str) -> bool {
    let known = COMMAND_FLAGS.iter().find(|(known, _)| *known == flag);
    flag != "--help" && known.is_none_or(|(_, example)| !example.is_empty())
}

/// The flag that a word is, and the example of its value, which may stand behind an equals sign.
fn command_flag(text: &str) -> Option<(&'static str, &'static str)> {
    let name = text.split_once('=').map_or(text, |(name, _)| name);
    let is =
        |(flag, example): &(&str, &str)| text == *flag || (name == *flag && !example.is_empty());
    COMMAND_FLAGS.into_iter().find(is)
}

/// A word of the command line.
struct ArgumentText {
    text: String,
    /// False for bytes that are not UTF-8; `text` is then no more than their likeness.
    utf8: bool,
}

impl From<OsString> for ArgumentText {
    fn from(word: OsString) -> Self {
        match word.into_string() {
            Ok(text) => Self { text, utf8: true },
            Err(word) => Self {
                text: word.to_string_lossy().into_owned(),
                utf8: false,
            },
        }
    }
}

fn find_setting(flag: &str) -> Option<(&'static Setting, &'static str)> {
    table_rows().find_map(|setting| {
        let name = setting.names().find(|name| flag_of(name) == flag)?;
        Some((setting, name))
    })
}

/// The word that was probably meant.
pub fn nearest(word: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let short = Some(word).filter(|word| word.len() <= SLIP_LENGTH_MAX)?;
    known
        .map(|known| (near::edits(short, &known), known))
        .filter(|(distance, _)| *distance <= SLIP_EDITS_MAX)
        .min()
        .map(|(_, known)| known)
}

fn unknown_flag(flag: &str) -> Fault {
    let shown = mask(flag);
    let own = ["--help", "--version"].into_iter();
    let own = own.chain(COMMAND_FLAGS.iter().map(|(flag, _)| *flag));
    let flags = table_rows()
        .flat_map(Setting::names)
        .map(flag_of)
        .chain(own.map(str::to_owned));
    let nearest = nearest(flag, flags);
    Fault::new(match nearest {
        Some(known) => format!("{shown}: unknown flag; did you mean {known}?"),
        None => format!("{shown}: unknown flag; --help lists all"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt as _;

    fn parse(words: &[&str]) -> Arguments {
        Arguments::parse(words.iter().map(OsString::from))
    }

    fn given(arguments: &Arguments) -> Vec<(&str, &str)> {
        let mut pairs = Vec::new();
        for given in &arguments.given {
            let value = given.value.as_ref().map(Secret::expose);
            pairs.push((given.name, value.map_or("(not UTF-8)", String::as_str)));
        }
        pairs
    }

    fn faults(arguments: &Arguments) -> Vec<String> {
        arguments.faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn both_forms_of_a_flag() {
        let arguments = parse(&["--listen-port", "1", "serve", "--port=2", "--ecr=a=b"]);
        assert_eq!(
            given(&arguments),
            [("LISTEN_PORT", "1"), ("PORT", "2"), ("ECR", "a=b")]
        );
        assert_eq!(arguments.words, ["serve"]);
        assert_eq!(faults(&arguments), [""; 0]);
    }

    #[test]
    fn a_switch_alone_is_true() {
        let switch = "--disable-proxy-headers";
        for (words, value) in [
            (vec![switch], "true"),
            (vec![switch, "off"], "off"),
            (vec![switch, "serve"], "true"),
            (vec!["--disable-proxy-headers=no"], "no"),
        ] {
            let arguments = parse(&words);
            assert_eq!(given(&arguments), [("DISABLE_PROXY_HEADERS", value)]);
            assert_eq!(arguments.words.len(), usize::from(words.contains(&"serve")));
        }
    }

    #[test]
    fn a_flag_without_its_value_is_a_fault() {
        for words in [
            &["--listen-port"][..],
            &["--listen-port="],
            &["--listen-port", ""],
            &["--listen-port", "--workers=1"],
        ] {
            let faults = faults(&parse(words));
            let expected = "--listen-port: expected a value, as in --listen-port=VALUE";
            assert_eq!(faults, [expected], "{words:?}");
        }
    }

    #[test]
    fn unknown_flags_are_faults_with_a_suggestion() {
        let arguments = parse(&["--listen-prot=1", "--frobnicate", "-x", "--vrsion"]);
        assert_eq!(
            faults(&arguments),
            [
                "--listen-prot: unknown flag; did you mean --listen-port?",
                "--frobnicate: unknown flag; --help lists all",
                "-x: unknown flag; --help lists all",
                "--vrsion: unknown flag; did you mean --version?",
            ]
        );
    }

    #[test]
    fn a_secret_behind_a_misspelt_flag_is_not_shown() {
        for words in [
            &["--aws-secret-acess-key", "hunter2"][..],
            &["--aws-secret-acess-key=hunter2"],
        ] {
            let arguments = parse(words);
            assert_eq!(arguments.words, [""; 0]);
            let faults = faults(&arguments).join("\n");
            assert!(faults.contains("did you mean --aws-secret-access-key?"));
            assert!(!faults.contains("hunter2"), "{faults}");
        }
    }

    #[test]
    fn a_value_that_is_not_utf_8_is_kept_as_such() {
        let word = OsString::from_vec(b"--ecr=\xff".to_vec());
        assert_eq!(given(&Arguments::parse([word])), [("ECR", "(not UTF-8)")]);
    }

    #[test]
    fn help_and_version() {
        let arguments = parse(&["-h", "-V"]);
        assert!(arguments.help && arguments.version);
        let arguments = parse(&["help"]);
        assert!(!arguments.help && !arguments.version);
    }
}
