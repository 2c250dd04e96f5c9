//! The format of the shared credentials and config files. Owns: lines, sections, keys and their
//! values. Must not: know what a section or key means, or show a value in an error.
//!
//! The rules are those of the AWS SDKs (SDKs and Tools reference guide, "Format of the config and
//! credentials files"; aws-runtime, `env_config/parse.rs`).

use std::collections::HashMap;

use crate::secret::Secret;

/// The keys of a section, in lower case, with their values.
pub(super) type Properties = HashMap<String, Secret<String>>;

/// Most sections of a file; people have dozens, generated files hundreds.
const SECTIONS_MAX: usize = 10_000;

/// Reads a file: the text between the brackets and the keys of each section, in order. Sections
/// of one name are one section, and of two values of a key the later one holds.
///
/// # Errors
/// The number of the line and what is wrong with it, without its content.
pub(super) fn parse(text: &str) -> Result<Vec<(String, Properties)>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut sections: Vec<(String, Properties)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    // Where the next line belongs: a section, and a key of it.
    let mut place: Option<usize> = None;
    let mut key: Option<String> = None;
    for (number, line) in text.lines().enumerate() {
        let fault = |what: &str| format!("line {}: {what}", number + 1);
        let bare = line.trim();
        if bare.is_empty() || bare.starts_with(['#', ';']) {
            continue;
        }
        if line.starts_with('[') {
            let name = header(line).ok_or_else(|| fault("expected [name]"))?;
            if sections.len() >= SECTIONS_MAX {
                return Err(fault(&format!("more than {SECTIONS_MAX} sections")));
            }
            let at = *places.entry(name.clone()).or_insert(sections.len());
            if at == sections.len() {
                sections.push((name, Properties::new()));
            }
            (place, key) = (Some(at), None);
            continue;
        }
        let section = place.and_then(|at| sections.get_mut(at));
        let (_, properties) = section.ok_or_else(|| fault("expected [name] before any key"))?;
        if line.starts_with([' ', '\t']) {
            let parent = key.as_ref().and_then(|key| properties.get_mut(key));
            let parent = parent.ok_or_else(|| fault("is indented below no key"))?;
            *parent = Secret::new(format!("{}\n{}", parent.expose(), uncommented(bare)));
            continue;
        }
        let (name, value) = property(line).ok_or_else(|| fault("expected key = value"))?;
        properties.insert(name.clone(), Secret::new(value.to_owned()));
        key = Some(name);
    }
    Ok(sections)
}

/// The value of a key that stands indented below another one, in the other's `value`.
pub(super) fn nested<'a>(value: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = value.lines().rev();
    lines.find_map(|line| {
        let (name, value) = line.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case(key)
            .then_some(value.trim())
    })
}

/// `[name]`, with nothing but a comment after it.
fn header(line: &str) -> Option<String> {
    let (name, rest) = line.strip_prefix('[')?.split_once(']')?;
    let rest = rest.trim_start();
    let ends = rest.is_empty() || rest.starts_with(['#', ';']);
    let name = name.trim();
    (ends && !name.is_empty()).then(|| name.to_owned())
}

fn property(line: &str) -> Option<(String, &str)> {
    let (name, value) = line.split_once('=')?;
    let name = name.trim();
    (!name.is_empty()).then(|| (name.to_ascii_lowercase(), uncommented(value)))
}

/// A value without the comment that follows it. Only a blank makes `#` or `;` begin one: either
/// may stand in a value.
fn uncommented(value: &str) -> &str {
    let mut blank = false;
    for (at, c) in value.char_indices() {
        if blank && matches!(c, '#' | ';') {
            return value.get(..at).unwrap_or_default().trim();
        }
        blank = matches!(c, ' ' | '\t');
    }
    value.trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str, section: &str, key: &str) -> Option<String> {
        let sections = parse(text).unwrap();
        let (_, properties) = sections.iter().find(|(name, _)| name == section)?;
        properties.get(key).map(|value| value.expose().clone())
    }

    #[test]
    fn sections_and_keys_are_found_in_every_spelling() {
        let text = "\u{feff}# a comment\r\n[default]\r\nregion = eu-west-1\r\n\r\n\
                    [ profile  dev ] ; why\nROLE_ARN=arn:x # note\n\
                    \t\n  ; indented comment\naws_secret_access_key = a#b;c=d==\n empty =\n\
                    [other]\nkey =\n";
        assert_eq!(
            value(text, "default", "region").as_deref(),
            Some("eu-west-1")
        );
        let dev = "profile  dev";
        assert_eq!(value(text, dev, "role_arn").as_deref(), Some("arn:x"));
        // Indented, so it goes on with the key before it.
        let secret = value(text, dev, "aws_secret_access_key");
        assert_eq!(secret.as_deref(), Some("a#b;c=d==\nempty ="));
        assert_eq!(value(text, "other", "key").as_deref(), Some(""));
        assert_eq!(value(text, "other", "region"), None);
    }

    #[test]
    fn later_values_hold_and_sections_of_one_name_are_one() {
        let text = "[a]\nx = 1\nx = 2\ny = 3\n[b]\nx = 9\n[a]\ny = 4\n";
        assert_eq!(value(text, "a", "x").as_deref(), Some("2"));
        assert_eq!(value(text, "a", "y").as_deref(), Some("4"));
        assert_eq!(parse(text).unwrap().len(), 2);
    }

    #[test]
    fn nested_keys_stay_with_their_parent() {
        let text = "[services s]\necr =\n  endpoint_url = http://ecr # ours\n  other = 1\n\
                    sts =\n\tEndpoint_URL=http://sts\n[profile p]\nservices = s\n";
        let ecr = value(text, "services s", "ecr").unwrap();
        assert_eq!(nested(&ecr, "endpoint_url"), Some("http://ecr"));
        let sts = value(text, "services s", "sts").unwrap();
        assert_eq!(nested(&sts, "endpoint_url"), Some("http://sts"));
        assert_eq!(nested(&sts, "region"), None);
        assert_eq!(value(text, "services s", "endpoint_url"), None);
    }

    #[test]
    fn comments_need_a_blank_before_them() {
        for (line, kept) in [
            ("a#b", "a#b"),
            ("a #b", "a"),
            ("a\t;b", "a"),
            ("a;b #c", "a;b"),
            ("  # all of it", ""),
            ("é # x", "é"),
        ] {
            assert_eq!(uncommented(line), kept, "{line}");
        }
    }

    #[test]
    fn what_is_no_such_file_is_refused_by_line_without_its_content() {
        for (text, told) in [
            ("hunter2 = x\n", "line 1: expected [name] before any key"),
            ("[a]\nhunter2\n", "line 2: expected key = value"),
            ("[a]\n= hunter2\n", "line 2: expected key = value"),
            ("[a\n", "line 1: expected [name]"),
            ("[]\n", "line 1: expected [name]"),
            ("[a] hunter2\n", "line 1: expected [name]"),
            ("[a]\n\n  hunter2 = 1\n", "line 3: is indented below no key"),
        ] {
            assert_eq!(parse(text).unwrap_err(), told, "{text}");
        }
        let many: String = (0..=SECTIONS_MAX).map(|n| format!("[{n}]\n")).collect();
        let fault = parse(&many).unwrap_err();
        assert!(fault.ends_with("more than 10000 sections"), "{fault}");
        assert!(parse("").unwrap().is_empty());
    }
}
