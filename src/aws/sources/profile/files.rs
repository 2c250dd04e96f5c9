//! The shared credentials and config files, as one set of profiles. Owns: where they are, which
//! sections are profiles, and how the two files are joined. Must not: know what a profile's keys
//! mean.

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::super::file;
use super::ini::{self, Properties, Section, Sections};
use crate::config::AwsSettings;
use crate::secret::Secret;

/// Largest shared file: thousands of profiles.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most profiles that an error names when the one that was looked for is missing.
const NAMED_MAX: usize = 20;
/// The profile that is used unless another one is set.
const DEFAULT_PROFILE: &str = "default";

/// The places of the files, and the name of the profile in use.
#[derive(Debug, Clone)]
pub(super) struct SharedFiles {
    credentials: Option<FilePlace>,
    config: Option<FilePlace>,
    /// `AWS_PROFILE`
    named: Option<String>,
}

/// A file, and the setting that names it, if one does.
#[derive(Debug, Clone)]
struct FilePlace {
    path: PathBuf,
    setting: Option<&'static str>,
}

/// All profiles of both files.
#[derive(Debug, Default)]
pub(super) struct Profiles {
    profiles: HashMap<String, Section>,
    services: HashMap<String, Properties>,
    /// The places where a missing profile was looked for.
    looked_in: String,
    /// A file that a setting names and that is not there.
    absent: Option<String>,
}

impl SharedFiles {
    pub(super) fn new(settings: &AwsSettings) -> Self {
        let home = settings.home.as_deref();
        let place = |named: &Option<PathBuf>, setting, name: &str| match named {
            Some(path) => Some(FilePlace {
                path: expand_home(path, home),
                setting: Some(setting),
            }),
            None => home.map(|home| FilePlace {
                path: home.join(".aws").join(name),
                setting: None,
            }),
        };
        Self {
            credentials: place(
                &settings.credentials_file,
                "AWS_SHARED_CREDENTIALS_FILE",
                "credentials",
            ),
            config: place(&settings.config_file, "AWS_CONFIG_FILE", "config"),
            named: settings.profile.clone(),
        }
    }

    /// The name of the profile in use.
    pub(super) fn profile(&self) -> &str {
        self.named.as_deref().unwrap_or(DEFAULT_PROFILE)
    }

    /// True when a setting names the profile.
    pub(super) const fn is_named(&self) -> bool {
        self.named.is_some()
    }

    /// Reads both files. None when the profile is not there and no setting names it.
    ///
    /// # Errors
    /// A file that cannot be read, or a named profile or file that is missing.
    pub(super) fn load(&self) -> Result<Option<Profiles>, String> {
        let mut profiles = Profiles {
            looked_in: self.describe_places(),
            ..Profiles::default()
        };
        let mut read = |place: &Option<FilePlace>| match place {
            Some(place) => place.read(&mut profiles.absent),
            None => Ok(Sections::default()),
        };
        let (config, credentials) = (read(&self.config)?, read(&self.credentials)?);
        let stray = config.fault.or(credentials.fault);
        profiles.add_config(config.sections);
        profiles.add_credentials(credentials.sections);
        let name = self.profile();
        if profiles.profiles.contains_key(name) {
            return Ok(Some(profiles));
        }
        if self.is_named() {
            let why = profiles.absent.clone();
            let why = why.unwrap_or_else(|| profiles.explain_missing(name));
            let stray = stray.map(|stray| format!("; {stray}")).unwrap_or_default();
            return Err(format!("AWS_PROFILE={name}: {why}{stray}"));
        }
        match profiles.absent.or(stray) {
            Some(why) => Err(why),
            None => Ok(None),
        }
    }

    /// The places where the profile was not found, for a user that expects one.
    pub(super) fn describe_search(&self) -> String {
        let state = |place: &Option<FilePlace>| match place {
            None => "HOME is not set".to_owned(),
            Some(place) => {
                let path = place.path.display();
                match place.path.metadata() {
                    Ok(_) => format!("{path} has none"),
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        format!("{path} is not there")
                    }
                    Err(error) => format!("{path}: {error}"),
                }
            }
        };
        let (credentials, config) = (state(&self.credentials), state(&self.config));
        let name = self.profile();
        if credentials == config {
            return format!("no profile {name}: {config}");
        }
        format!("no profile {name} with keys or a role: {credentials}, {config}")
    }

    fn describe_places(&self) -> String {
        let shown = |place: &Option<FilePlace>| {
            let path = place.as_ref().map(|place| place.path.display().to_string());
            path.unwrap_or_else(|| "no file (HOME is not set)".into())
        };
        format!(
            "[profile NAME] in {} (AWS_CONFIG_FILE) or [NAME] in {} (AWS_SHARED_CREDENTIALS_FILE)",
            shown(&self.config),
            shown(&self.credentials)
        )
    }
}

impl FilePlace {
    /// The sections of the file. A file that no setting names need not be there, nor be readable:
    /// its directory may belong to somebody else. A named one that is missing goes to `absent`: the
    /// profile may be whole without it, and AWS's own tools go on, too.
    fn read(&self, absent: &mut Option<String>) -> Result<Sections, String> {
        let fault = |why: &str| match self.setting {
            Some(setting) => format!("{setting}={}: {why}", self.path.display()),
            None => format!("{}: {why}", self.path.display()),
        };
        if self.setting.is_none() && out_of_reach(&self.path) {
            return Ok(Sections::default());
        }
        let Some(bytes) =
            file::read_bytes(&self.path, FILE_BYTES_MAX).map_err(|why| fault(&why))?
        else {
            if self.setting.is_some() {
                let why = fault("there is no such file; mount it or unset the setting");
                *absent = Some(match absent.take() {
                    Some(other) => format!("{other}; {why}"),
                    None => why,
                });
            }
            return Ok(Sections::default());
        };
        // A comment in another encoding is no reason to refuse every profile.
        let mut found = ini::parse(&String::from_utf8_lossy(&bytes)).map_err(|why| fault(&why))?;
        let sections = found
            .sections
            .iter_mut()
            .map(|(_, section)| &mut section.fault);
        for why in sections.chain([&mut found.fault]).flatten() {
            *why = fault(why);
        }
        Ok(found)
    }
}

/// True when its directory cannot be searched for the file.
fn out_of_reach(path: &Path) -> bool {
    path.metadata().is_err_and(|error| {
        matches!(
            error.kind(),
            ErrorKind::PermissionDenied | ErrorKind::NotADirectory
        )
    })
}

/// `~/` at the start is the home directory, as in the SDKs.
fn expand_home(path: &Path, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

impl Profiles {
    /// The sections of a config file and of a credentials file, for the fuzzer.
    #[cfg(any(fuzzing, test))]
    pub(super) fn of(config: Vec<(String, Section)>, credentials: Vec<(String, Section)>) -> Self {
        let mut profiles = Self::default();
        profiles.add_config(config);
        profiles.add_credentials(credentials);
        profiles
    }

    /// The profile of that name; none when there is none.
    ///
    /// # Errors
    /// A bad line in it.
    pub(super) fn get(&self, name: &str) -> Result<Option<&Properties>, String> {
        match self.profiles.get(name) {
            None => Ok(None),
            Some(Section {
                fault: Some(fault), ..
            }) => Err(format!("profile {name}: {fault}")),
            Some(profile) => Ok(Some(&profile.properties)),
        }
    }

    /// The fault of a profile that is named and not there.
    pub(super) fn explain_missing(&self, name: &str) -> String {
        let looked_in = self.looked_in.replace("NAME", name);
        let mut names: Vec<&str> = self.profiles.keys().map(String::as_str).collect();
        names.sort_unstable();
        let more = if names.len() > NAMED_MAX { ", …" } else { "" };
        names.truncate(NAMED_MAX);
        let there = match names.join(", ") {
            none if none.is_empty() => "no profile at all".to_owned(),
            names => format!("{names}{more}"),
        };
        format!("there is no such profile; expected {looked_in}; there is {there}")
    }

    /// A file that a setting names and that is not there.
    pub(super) const fn absent(&self) -> Option<&String> {
        self.absent.as_ref()
    }

    /// A key of a `[services]` section that stands below the name of a service.
    pub(super) fn of_service(&self, section: &str, service: &str, key: &str) -> Option<&str> {
        let value = self.services.get(section)?.get(service)?;
        ini::find_nested(value.expose(), key)
    }

    /// True when there is a section `[services name]`.
    pub(super) fn has_services(&self, name: &str) -> bool {
        self.services.contains_key(name)
    }

    /// `[default]`, `[profile NAME]` and `[services NAME]`; everything else is for others.
    fn add_config(&mut self, sections: Vec<(String, Section)>) {
        let mut prefixed = HashSet::new();
        for (header, section) in sections {
            let (kind, name) = match header.split_once(char::is_whitespace) {
                Some((kind, name)) => (kind, unquote(name.trim())),
                None => ("", Some(header.as_str())),
            };
            match (kind, name) {
                ("profile", Some(name)) => {
                    // [profile default] beats [default], wherever either stands.
                    if prefixed.insert(name.to_owned()) {
                        self.profiles.insert(name.to_owned(), section);
                    } else {
                        self.merge(name, section);
                    }
                }
                ("services", Some(name)) => {
                    self.services.insert(name.to_owned(), section.properties);
                }
                ("", Some(DEFAULT_PROFILE)) if !prefixed.contains(DEFAULT_PROFILE) => {
                    self.merge(DEFAULT_PROFILE, section);
                }
                _ => {}
            }
        }
    }

    /// `[NAME]`. A key that is in both files has the value of this one.
    fn add_credentials(&mut self, sections: Vec<(String, Section)>) {
        for (name, section) in sections {
            if !name.contains(char::is_whitespace) {
                self.merge(&name, section);
            }
        }
    }

    fn merge(&mut self, name: &str, section: Section) {
        let profile = self.profiles.entry(name.to_owned()).or_default();
        profile.properties.extend(section.properties);
        profile.fault = profile.fault.take().or(section.fault);
    }
}

/// A name in quotation marks, as the AWS CLI writes names with blanks, or one without either.
fn unquote(name: &str) -> Option<&str> {
    let inner = |mark: char| name.strip_prefix(mark)?.strip_suffix(mark);
    let quoted = inner('"').or_else(|| inner('\''));
    quoted.or_else(|| (!name.contains(char::is_whitespace)).then_some(name))
}

/// A key's value; blank counts as unset.
pub(super) fn text<'a>(properties: &'a Properties, key: &str) -> Option<&'a str> {
    let value = properties.get(key).map(Secret::expose)?;
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    mod botocore;

    use super::super::super::super::fake::Folder;
    use super::*;

    fn load(profile: Option<&str>, config: &str, credentials: &str) -> Result<Profiles, String> {
        let folder = Folder::new();
        let settings = AwsSettings {
            profile: profile.map(Into::into),
            config_file: Some(folder.write("config", config)),
            credentials_file: Some(folder.write("credentials", credentials)),
            ..AwsSettings::default()
        };
        let loaded = SharedFiles::new(&settings).load()?;
        Ok(loaded.unwrap_or_default())
    }

    fn value(profiles: &Profiles, profile: &str, key: &str) -> Option<String> {
        text(profiles.get(profile).unwrap()?, key).map(ToOwned::to_owned)
    }

    #[test]
    fn the_credentials_file_beats_the_config_file_key_by_key() {
        let config = "[default]\nregion = a\naws_access_key_id = c\n[profile dev]\nregion = b\n\
                      [stray]\nregion = x\n[sso-session dev]\nregion = y\n";
        let credentials = "[default]\naws_access_key_id = k\n[dev]\naws_access_key_id = d\n\
                           [profile dev]\nregion = z\n";
        let found = load(None, config, credentials).unwrap();
        let get = |profile, key| value(&found, profile, key).unwrap_or_default();
        assert_eq!(get("default", "aws_access_key_id"), "k");
        assert_eq!(get("default", "region"), "a");
        assert_eq!(get("dev", "aws_access_key_id"), "d");
        assert_eq!(get("dev", "region"), "b");
        assert!(found.get("stray").unwrap().is_none());
    }

    #[test]
    fn the_default_profile_with_a_prefix_beats_the_one_without() {
        for config in [
            "[default]\na = 1\nb = 1\n[profile default]\na = 2\n",
            "[profile default]\na = 2\n[default]\na = 1\nb = 1\n",
        ] {
            let found = load(None, config, "").unwrap();
            assert_eq!(value(&found, "default", "a").as_deref(), Some("2"));
            assert_eq!(value(&found, "default", "b"), None);
        }
        let quoted = load(Some("a b"), "[profile \"a b\"]\nx = 1\n", "").unwrap();
        assert_eq!(value(&quoted, "a b", "x").as_deref(), Some("1"));
    }

    #[test]
    fn a_named_profile_must_be_there() {
        let fault = load(Some("dev"), "[dev]\nx = 1\n", "").unwrap_err();
        assert!(
            fault.starts_with("AWS_PROFILE=dev: there is no such profile"),
            "{fault}"
        );
        assert!(fault.contains("expected [profile dev] in /"), "{fault}");
        assert!(load(Some("dev"), "", "[dev]\nx = 1\n").is_ok());
        assert!(
            load(None, "", "")
                .unwrap()
                .get("default")
                .unwrap()
                .is_none()
        );
        let nowhere = AwsSettings {
            profile: Some("dev".into()),
            ..AwsSettings::default()
        };
        let fault = SharedFiles::new(&nowhere).load().unwrap_err();
        assert!(fault.contains("HOME is not set"), "{fault}");
    }

    #[test]
    fn named_files_must_be_there_and_others_need_not() {
        let settings = |file: Option<&str>, home: &str| AwsSettings {
            credentials_file: file.map(Into::into),
            home: Some(home.into()),
            ..AwsSettings::default()
        };
        let load = |settings: &AwsSettings| SharedFiles::new(settings).load();
        assert!(load(&settings(None, "/nonexistent")).unwrap().is_none());
        assert!(load(&settings(None, "/dev/null")).unwrap().is_none());
        let fault = load(&settings(Some("/nonexistent"), "/")).unwrap_err();
        let told = "AWS_SHARED_CREDENTIALS_FILE=/nonexistent: there is no such file";
        assert!(fault.starts_with(told), "{fault}");
        let folder = Folder::new();
        let path = folder.write("creds", "[default]\naws_access_key_id = k\n");
        let home = path.parent().unwrap().to_str().unwrap();
        let found = load(&settings(Some("~/creds"), home)).unwrap().unwrap();
        assert_eq!(
            value(&found, "default", "aws_access_key_id").as_deref(),
            Some("k")
        );
    }

    #[test]
    fn a_bad_line_is_named_with_its_file_and_refuses_its_profile_alone() {
        let config = "[profile bad]\nhunter2\n[profile good]\nregion = a\n";
        let found = load(Some("good"), config, "").unwrap();
        assert_eq!(value(&found, "good", "region").as_deref(), Some("a"));
        let fault = found.get("bad").unwrap_err();
        assert!(
            fault.starts_with("profile bad: AWS_CONFIG_FILE=/"),
            "{fault}"
        );
        assert!(
            fault.ends_with("config: line 2: expected key = value"),
            "{fault}"
        );
        let latin: &[u8] = b"# caf\xe9\n[default]\nregion = a\n";
        let folder = Folder::new();
        let path = folder.write("config", "");
        std::fs::write(&path, latin).unwrap();
        let settings = AwsSettings {
            config_file: Some(path),
            ..AwsSettings::default()
        };
        let found = SharedFiles::new(&settings).load().unwrap().unwrap();
        assert_eq!(value(&found, "default", "region").as_deref(), Some("a"));
    }

    #[test]
    fn a_file_that_holds_no_profile_says_where_it_looked_and_why() {
        let fault = load(None, "region = hunter2\n", "").unwrap_err();
        assert!(fault.ends_with("line 1: expected [name] before any key"));
        let large = "#".repeat(1 << 20) + "\n";
        let fault = load(None, &large, "").unwrap_err();
        assert!(fault.contains("larger than 1 MiB"), "{fault}");
        let fault = load(Some("x"), "[profile b]\na = 1\n", "[a]\na = 1\n").unwrap_err();
        assert!(fault.ends_with("; there is a, b"), "{fault}");
        let many: String = (0..99).map(|n| format!("[p{n:02}]\na = 1\n")).collect();
        let fault = load(Some("x"), "", &many).unwrap_err();
        assert!(fault.ends_with("p18, p19, …"), "{fault}");
    }

    #[test]
    fn a_named_file_that_is_missing_is_no_fault_for_a_profile_that_is_whole() {
        let folder = Folder::new();
        let settings = AwsSettings {
            credentials_file: Some(folder.write("credentials", "[default]\nregion = a\n")),
            config_file: Some("/nonexistent/config".into()),
            ..AwsSettings::default()
        };
        let found = SharedFiles::new(&settings).load().unwrap().unwrap();
        assert_eq!(value(&found, "default", "region").as_deref(), Some("a"));
        let absent = found.absent().unwrap();
        assert!(absent.starts_with("AWS_CONFIG_FILE=/nonexistent/config: there is no"));
    }
}
