//! The shared credentials and config files, as one set of profiles. Owns: where they are, which
//! sections are profiles, and how the two files are joined. Must not: know what a profile's keys
//! mean.

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::super::file;
use super::ini::{self, Properties};
use crate::config::AwsSettings;
use crate::secret::Secret;

/// Largest shared file: thousands of profiles.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The profile that is used unless another one is set.
const DEFAULT_PROFILE: &str = "default";

/// The places of the files, and the name of the profile in use.
#[derive(Debug, Clone)]
pub(super) struct SharedFiles {
    credentials: Option<Place>,
    config: Option<Place>,
    /// `AWS_PROFILE`
    named: Option<String>,
}

/// A file, and the setting that names it, if one does.
#[derive(Debug, Clone)]
struct Place {
    path: PathBuf,
    setting: Option<&'static str>,
}

/// All profiles of both files.
#[derive(Debug, Default)]
pub(super) struct Profiles {
    profiles: HashMap<String, Properties>,
    services: HashMap<String, Properties>,
    /// Where a missing one was looked for.
    looked_in: String,
}

impl SharedFiles {
    pub(super) fn new(settings: &AwsSettings) -> Self {
        let home = settings.home.as_deref();
        let place = |named: &Option<PathBuf>, setting, name: &str| match named {
            Some(path) => Some(Place {
                path: expanded(path, home),
                setting: Some(setting),
            }),
            None => home.map(|home| Place {
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
    /// What is wrong with a file, or that a named profile is missing.
    pub(super) fn load(&self) -> Result<Option<Profiles>, String> {
        let config = self.config.as_ref().map_or(Ok(Vec::new()), Place::read)?;
        let credentials = self.credentials.as_ref();
        let credentials = credentials.map_or(Ok(Vec::new()), Place::read)?;
        let mut profiles = Profiles {
            looked_in: self.looked_in(),
            ..Profiles::default()
        };
        profiles.add_config(config);
        profiles.add_credentials(credentials);
        let name = self.profile();
        if profiles.profiles.contains_key(name) {
            return Ok(Some(profiles));
        }
        if self.is_named() {
            return Err(format!("AWS_PROFILE={name}: {}", profiles.missing(name)));
        }
        Ok(None)
    }

    fn looked_in(&self) -> String {
        let shown = |place: &Option<Place>| {
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

impl Place {
    /// The sections of the file. A file that no setting names need not be there, nor be readable:
    /// its directory may belong to somebody else.
    fn read(&self) -> Result<Vec<(String, Properties)>, String> {
        let fault = |why: &str| match self.setting {
            Some(setting) => format!("{setting}={}: {why}", self.path.display()),
            None => format!("{}: {why}", self.path.display()),
        };
        if self.setting.is_none() && out_of_reach(&self.path) {
            return Ok(Vec::new());
        }
        match file::read(&self.path, FILE_BYTES_MAX).map_err(|why| fault(&why))? {
            Some(text) => ini::parse(&text).map_err(|why| fault(&why)),
            None if self.setting.is_some() => Err(fault(
                "there is no such file; mount it or unset the setting",
            )),
            None => Ok(Vec::new()),
        }
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
fn expanded(path: &Path, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

impl Profiles {
    /// The sections of a config file and of a credentials file, for the fuzzer.
    #[cfg(any(fuzzing, test))]
    pub(super) fn of(
        config: Vec<(String, Properties)>,
        credentials: Vec<(String, Properties)>,
    ) -> Self {
        let mut profiles = Self::default();
        profiles.add_config(config);
        profiles.add_credentials(credentials);
        profiles
    }

    /// The profile of that name.
    pub(super) fn get(&self, name: &str) -> Option<&Properties> {
        self.profiles.get(name)
    }

    /// Why a profile that is named is a fault.
    pub(super) fn missing(&self, name: &str) -> String {
        let looked_in = self.looked_in.replace("NAME", name);
        format!("there is no such profile; expected {looked_in}")
    }

    /// A key of a `[services]` section that stands below the name of a service.
    pub(super) fn of_service(&self, section: &str, service: &str, key: &str) -> Option<&str> {
        let value = self.services.get(section)?.get(service)?;
        ini::nested(value.expose(), key)
    }

    /// True when there is a section `[services name]`.
    pub(super) fn has_services(&self, name: &str) -> bool {
        self.services.contains_key(name)
    }

    /// `[default]`, `[profile NAME]` and `[services NAME]`; everything else is for others.
    fn add_config(&mut self, sections: Vec<(String, Properties)>) {
        let mut prefixed = HashSet::new();
        for (header, properties) in sections {
            let (kind, name) = match header.split_once(char::is_whitespace) {
                Some((kind, name)) => (kind, unquoted(name.trim())),
                None => ("", header.as_str()),
            };
            match (kind, name) {
                ("profile", name) => {
                    // [profile default] beats [default], wherever either stands.
                    if prefixed.insert(name.to_owned()) {
                        self.profiles.insert(name.to_owned(), properties);
                    } else {
                        self.merge(name, properties);
                    }
                }
                ("services", name) => {
                    self.services.insert(name.to_owned(), properties);
                }
                ("", DEFAULT_PROFILE) if !prefixed.contains(DEFAULT_PROFILE) => {
                    self.merge(DEFAULT_PROFILE, properties);
                }
                _ => {}
            }
        }
    }

    /// `[NAME]`; of a key in both files the value here holds.
    fn add_credentials(&mut self, sections: Vec<(String, Properties)>) {
        for (name, properties) in sections {
            if !name.contains(char::is_whitespace) {
                self.merge(&name, properties);
            }
        }
    }

    fn merge(&mut self, name: &str, properties: Properties) {
        let profile = self.profiles.entry(name.to_owned()).or_default();
        profile.extend(properties);
    }
}

/// A name in quotation marks, as the AWS CLI writes names with blanks.
fn unquoted(name: &str) -> &str {
    let inner = |mark: char| name.strip_prefix(mark)?.strip_suffix(mark);
    inner('"').or_else(|| inner('\'')).unwrap_or(name)
}

/// A key's value; blank counts as unset.
pub(super) fn text<'a>(properties: &'a Properties, key: &str) -> Option<&'a str> {
    let value = properties.get(key).map(Secret::expose)?;
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
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
        text(profiles.get(profile)?, key).map(ToOwned::to_owned)
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
        assert!(found.get("stray").is_none());
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
        assert!(load(None, "", "").unwrap().get("default").is_none());
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
    fn a_bad_file_is_named_with_its_line_and_without_its_content() {
        let fault = load(None, "[default]\nhunter2\n", "").unwrap_err();
        assert!(fault.starts_with("AWS_CONFIG_FILE=/"), "{fault}");
        assert!(
            fault.ends_with("config: line 2: expected key = value"),
            "{fault}"
        );
        let large = "#".repeat(1 << 20) + "\n";
        let fault = load(None, &large, "").unwrap_err();
        assert!(fault.contains("larger than 1048576 bytes"), "{fault}");
    }
}
